from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks import SubspaceAblation
from callbacks.measure.subspace_ablation import columns
from polytoken.classifier import SmallClassifier
from polytoken.images import resize_displayed
from polytoken.metrics import FeatureStatistics, frechet_distance, psnr, to_uint8
from polytoken.tokenizers import Tokenizer
from tests.support.recipes import write_judge
from tests.support.tokenizers import tiny_folded, tiny_scales, tiny_tokenizer
from tests.support.validation import Images, logged_metrics, module_of, quiet_trainer


def test_columns() -> None:
    assert columns(3) == {
        "all": (0, 1, 2),
        "without_0": (1, 2),
        "without_1": (0, 2),
        "without_2": (0, 1),
        "only_0": (0,),
        "only_1": (1,),
        "only_2": (2,),
    }
    assert columns(2)["without_0"] == columns(2)["only_1"] == (1,)
    assert columns(0) == {}


@pytest.mark.parametrize(
    "tokenizer",
    [tiny_tokenizer(num_subspaces=3), tiny_scales(3), tiny_folded(3)],
    ids=["one scale", "scales", "folded"],
)
def test_metrics_and_plot(tokenizer: Tokenizer, tmp_path: Path) -> None:
    judge = write_judge(tmp_path / "judge.safetensors", 2)
    data = Images()
    trainer = quiet_trainer(tmp_path, [SubspaceAblation("judge", str(judge), rows=5, pixels=32)])
    trainer.validate(module_of(tokenizer), data, verbose=False)
    images, network = data.images[:10], SmallClassifier.load(judge)

    def features(shown: torch.Tensor) -> FeatureStatistics:
        statistics = FeatureStatistics(32)
        statistics.update(network.embed(to_uint8(shown) / 127.5 - 1))
        return statistics.compute()

    decoded = {}
    with torch.no_grad():
        for name, kept in columns(3).items():
            quantized = tokenizer.eval().encode(images).quantized.clone()
            for part in {0, 1, 2} - set(kept):
                quantized[:, 4 * part : 4 * part + 4] = 0
            decoded[name] = tokenizer.decode(quantized).image
    found = logged_metrics(trainer)
    for name, reconstruction in decoded.items():
        expected = psnr(to_uint8(reconstruction), to_uint8(images)).mean().item()
        assert found.pop(f"val/ablation/psnr_{name}") == pytest.approx(expected, abs=1e-3)
        distance = frechet_distance(features(reconstruction), features(images)).item()
        assert found.pop(f"val/ablation/rfd/judge_{name}") == pytest.approx(distance, rel=1e-2)
    assert not found
    with Image.open(tmp_path / "subspaces.png") as picture:
        pixels = np.array(picture)
    pitch = (pixels.shape[1] - 2) // 8
    top = pixels.shape[0] - 5 * 34
    assert top > 10 and (pixels[: top - 2].min(axis=2) < 100).any()  # the titles
    third = pixels[top + 2 * 34 : top + 2 * 34 + 32 : 2]
    for column, reconstruction in enumerate([images, *decoded.values()]):
        shown = third[:, 2 + column * pitch : 2 + column * pitch + 32 : 2]
        expected = to_uint8(reconstruction)[2].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(shown - expected).max() <= 1, column


def test_columns_are_compared_at_the_metric_size(tmp_path: Path) -> None:
    tokenizer, judge = tiny_tokenizer(num_subspaces=2), write_judge(tmp_path / "judge.safetensors", 2)
    module, data, network = module_of(tokenizer), Images(), SmallClassifier.load(judge)
    module.metric_size = 8
    trainer = quiet_trainer(tmp_path, [SubspaceAblation("judge", str(judge), rows=2, pixels=32)])
    trainer.validate(module, data, verbose=False)
    with torch.no_grad():
        quantized = tokenizer.eval().encode(data.images[:10]).quantized
        decoded = tokenizer.decode(tokenizer.keep_subspaces(quantized, (0,))).image
    statistics = [FeatureStatistics(32), FeatureStatistics(32)]
    shown = [to_uint8(resize_displayed(images, 8)) for images in (decoded, data.images[:10])]
    for one, pixels in zip(statistics, shown, strict=True):
        one.update(network.embed(pixels / 127.5 - 1))
    found = logged_metrics(trainer)
    assert found["val/ablation/psnr_only_0"] == pytest.approx(psnr(*shown).mean().item(), abs=1e-3)
    distance = frechet_distance(*(one.compute() for one in statistics)).item()
    assert found["val/ablation/rfd/judge_only_0"] == pytest.approx(distance, rel=1e-2)


def test_equal_columns_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer(num_subspaces=2)
    decode, calls = tokenizer.decode, []
    monkeypatch.setattr(tokenizer, "decode", lambda quantized: calls.append(1) or decode(quantized))
    trainer = quiet_trainer(tmp_path, [SubspaceAblation()])
    trainer.validate(module_of(tokenizer), Images(3), verbose=False)
    assert len(calls) == 1 + 2  # the validation step on its one batch, and each subspace alone
    assert logged_metrics(trainer).keys() == {f"val/ablation/psnr_{name}" for name in columns(2)}
