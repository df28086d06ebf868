import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from callbacks import AffinityMatrix
from polytoken.metrics import cknna, linear_cka
from polytoken.tokenizers import ConvolutionalTokenizer
from tests.support.tokenizers import tiny_tokenizer
from tests.support.validation import Images, logged_metrics, module_of, quiet_trainer


class Features(NamedTuple):
    cls: Tensor
    patches: Tensor


class FakeTeacher:
    """Returns the pixels of an image: (B, 12) as class token, and 2 × 2 patches of 3 numbers."""

    prepared = False

    def prepare(self, device: torch.device) -> None:
        self.prepared = True

    def features(self, images: Tensor, full_precision: bool = False) -> tuple[Features]:
        assert self.prepared and full_precision
        maps = functional.adaptive_avg_pool2d(images, 2)
        return (Features(maps.flatten(1), maps.permute(0, 2, 3, 1)),)


def measure(
    directory: Path,
    callback: AffinityMatrix,
    tokenizer: ConvolutionalTokenizer,
    teachers: dict,
    count: int = 24,
    metric_size: int | None = None,
) -> tuple[dict[str, float], Images]:
    module, data = module_of(tokenizer), Images(count)
    module.objective.teachers, module.metric_size = teachers, metric_size
    trainer = quiet_trainer(directory, [callback])
    trainer.validate(module, data, verbose=False)
    return logged_metrics(trainer), data


def parts_of(tokenizer: ConvolutionalTokenizer, images: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tokenizer.eval().encode(images).subspaces


@pytest.mark.parametrize("teacher_features", ["patches", "cls"])
def test_tables_equal_slow_references(teacher_features: str, tmp_path: Path) -> None:
    tokenizer, teacher = tiny_tokenizer(num_subspaces=3), FakeTeacher()
    callback = AffinityMatrix(k=3, teacher_features=teacher_features)
    found, data = measure(tmp_path, callback, tokenizer, {"high": teacher})
    images = data.images[:24]
    parts = parts_of(tokenizer, images)
    assert found.keys() == {
        *(f"val/{name}/{pair}" for name in ("cosine", "squared_cosine") for pair in ("0_1", "0_2", "1_2")),
        *(f"val/{name}/{index}_high" for name in ("cknna", "cka") for index in range(3)),
    }
    cosine = torch.cosine_similarity(parts[0], parts[2], dim=1)
    assert found["val/cosine/0_2"] == pytest.approx(cosine.mean().item(), abs=1e-5)
    assert found["val/squared_cosine/0_2"] == pytest.approx(cosine.square().mean().item(), abs=1e-5)
    pooled = parts[1].mean((2, 3))
    (features,) = teacher.features(images, full_precision=True)
    guide = features.cls if teacher_features == "cls" else features.patches.mean((1, 2))
    assert found["val/cknna/1_high"] == pytest.approx(cknna(pooled, guide, 3).item(), abs=1e-4)
    assert found["val/cka/1_high"] == pytest.approx(linear_cka(pooled, guide).item(), abs=1e-4)
    record = json.loads((tmp_path / "affinity.json").read_text())
    assert (record["images"], record["k"], record["teachers"]) == (24, 3, ["high"])
    assert record["teacher_features"] == teacher_features
    assert np.array(record["cosine"]).diagonal() == pytest.approx([1, 1, 1], abs=1e-5)
    with Image.open(tmp_path / "affinity.png") as picture:
        assert picture.size == (4 * 450, 450)


def test_teachers_see_the_images_that_were_fed_in(tmp_path: Path) -> None:
    class Strict(FakeTeacher):
        def features(self, images: Tensor, full_precision: bool = False) -> tuple[Features]:
            assert images.shape[-1] == 16
            return super().features(images, full_precision)

    plain, resized = (
        measure(tmp_path, AffinityMatrix(k=3), tiny_tokenizer(), {"high": Strict()}, metric_size=size)[0]
        for size in (None, 8)
    )
    assert resized == plain


def test_without_teachers_and_with_few_images(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    found, data = measure(tmp_path, AffinityMatrix(max_images=5, k=2), tokenizer, {})
    assert found.keys() == {"val/cosine/0_1", "val/squared_cosine/0_1"}
    parts = parts_of(tokenizer, data.images[:24:5])  # every fifth of 25 rows
    assert found["val/cosine/0_1"] == pytest.approx(torch.cosine_similarity(*parts, dim=1).mean().item(), abs=1e-5)
    assert json.loads((tmp_path / "affinity.json").read_text())["images"] == 5


def test_cknna_is_omitted_for_a_short_validation(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="got 6 images, and CKNNA with k = 10 needs more than 10"):
        found, _ = measure(tmp_path, AffinityMatrix(), tiny_tokenizer(), {"mid": FakeTeacher()}, count=6)
    assert np.isnan(found["val/cknna/0_mid"]) and np.isfinite(found["val/cka/0_mid"])
    assert json.loads((tmp_path / "affinity.json").read_text())["cknna"] == [[None], [None]]


def test_invalid_settings_are_rejected() -> None:
    for arguments in ({"k": 1}, {"k": 10, "max_images": 10}):
        with pytest.raises(ValueError, match="CKNNA needs a k of 2 or more, and more images than"):
            AffinityMatrix(**arguments)


def test_a_single_subspace_has_a_picture_too(tmp_path: Path) -> None:
    found, _ = measure(tmp_path, AffinityMatrix(k=3), tiny_tokenizer(num_subspaces=1), {})
    assert not found and (tmp_path / "affinity.png").exists()
    assert json.loads((tmp_path / "affinity.json").read_text())["cosine"] == [[pytest.approx(1, abs=1e-5)]]
