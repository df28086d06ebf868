from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from sklearn.metrics import silhouette_score

from callbacks import CodeMap
from callbacks.measure.code_map import first_of_each
from tests.support.tokenizers import tiny_tokenizer
from tests.support.validation import Images, logged_metrics, module_of, quiet_trainer


def test_first_of_each() -> None:
    labels = torch.tensor([0, 2, 2, 1, 2, 0])
    assert first_of_each(labels, [0, 2], 2).tolist() == [True, True, True, False, False, True]
    assert first_of_each(labels[:0], [0, 2], 2).tolist() == []


def test_silhouettes_are_those_of_the_vectors(tmp_path: Path) -> None:
    tokenizer, data = tiny_tokenizer(), Images(20)
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = quiet_trainer(tmp_path, [CodeMap(classes=["b", "a"], max_points=12)], logger=logger)
    trainer.validate(module_of(tokenizer), data, verbose=False)
    found = logged_metrics(trainer)
    assert found.keys() == {f"val/silhouette/{level}/{index}" for level in ("image", "patch") for index in (0, 1)}
    with torch.no_grad():
        parts = tokenizer.eval().encode(data.images[:12]).subspaces  # six of each class, the first
    expected = silhouette_score(parts[1].mean((2, 3)).numpy(), data.labels[:12].numpy())
    assert found["val/silhouette/image/1"] == pytest.approx(expected, abs=1e-5)
    with Image.open(tmp_path / "code_map.png") as picture:
        assert picture.size == (900, 900) and np.array(picture).std() > 10
    vectors = next(tmp_path.glob("**/codes_patch_0/tensors.tsv")).read_text().splitlines()
    names = next(tmp_path.glob("**/codes_patch_0/metadata.tsv")).read_text().split()
    assert len(vectors) == len(names) == 12 and set(names) <= {"a", "b"}


def test_patches_keep_the_class_of_their_image(tmp_path: Path) -> None:
    """Codes that encode only the class have silhouette 1."""
    callback, data = CodeMap(classes=2), Images(8)
    tokenizer = tiny_tokenizer()
    encode = tokenizer.encode

    def by_class(images: torch.Tensor) -> object:
        encoding = encode(images)
        first = [int((data.images - image).abs().flatten(1).sum(1).argmin()) for image in images]
        sides = torch.tensor([1.0, -1.0])[torch.tensor(first) % 2].view(-1, 1, 1, 1)
        encoding.subspaces = (encoding.subspaces[0], torch.ones_like(encoding.subspaces[1]) * sides)
        return encoding

    tokenizer.encode = by_class
    trainer = quiet_trainer(tmp_path, [callback])
    trainer.validate(module_of(tokenizer), data, verbose=False)
    assert logged_metrics(trainer)["val/silhouette/patch/1"] == pytest.approx(1)
    assert logged_metrics(trainer)["val/silhouette/image/1"] == pytest.approx(1)
    assert logged_metrics(trainer)["val/silhouette/patch/0"] < 0.5


def test_silent_inside_a_fit(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, [CodeMap(classes=2)], max_steps=1, max_epochs=-1)
    trainer.fit(module_of(tiny_tokenizer()), Images(4))
    assert not any("silhouette" in name for name in logged_metrics(trainer))
    assert not (tmp_path / "code_map.png").exists()


def test_invalid_settings_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 classes and max_points 1000; give two classes or more"):
        CodeMap(classes=["a"])
    trainer = quiet_trainer(tmp_path, [CodeMap(classes=["a", "zebra"])])
    with pytest.raises(ValueError, match="no class 'zebra'; name some of its 2 classes: a, b"):
        trainer.validate(module_of(tiny_tokenizer()), Images(), verbose=False)
