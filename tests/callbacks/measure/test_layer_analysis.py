import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from PIL import Image
from torch import Tensor

from callbacks import LayerAnalysis
from datamodules import ImageDataModule
from polytoken.errors import UserError
from polytoken.metrics.layers import LayerStatistics
from polytoken.specs import Tokens
from tests.datamodules.memory import MemoryRecords, MemorySource
from tests.support.generators import small_generator
from tests.support.validation import Images, logged_metrics, quiet_trainer


class Features(NamedTuple):
    patches: Tensor


class FakeTeacher:
    """Shows every pixel as a patch of 3 numbers."""

    identity = "fake 0123"
    checked = False

    def check(self) -> None:
        self.checked = True

    def prepare(self, device: torch.device) -> None:
        assert self.checked

    def features(self, images: Tensor, full_precision: bool = False) -> tuple[Features]:
        assert full_precision and torch.get_float32_matmul_precision() == "highest"
        return (Features(images.permute(0, 2, 3, 1)),)


class Coded(pl.LightningModule):
    """A generator whose codes are a function of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = small_generator()

    def tokens_of(self, batch: dict[str, Tensor]) -> Tokens:
        pixels = batch["image"].flatten(1)[:, : 2 * self.generator.spec.num_positions]
        return Tokens(codes=(pixels * 100).long().remainder(11).unflatten(1, (2, -1)))

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        pass


class Larger(MemorySource):
    """22 validation images in place of 7."""

    def split(self, name: str) -> MemoryRecords:
        return MemoryRecords(22, int(name == "validation"), ())


def data() -> ImageDataModule:
    return ImageDataModule(Larger(), image_size=8, batch_size=4, num_workers=0)


def measure(directory: Path, callback: LayerAnalysis, source: pl.LightningDataModule) -> tuple[dict[str, float], Coded]:
    module, trainer = Coded(), quiet_trainer(directory, [callback])
    trainer.validate(module, source, verbose=False)
    return logged_metrics(trainer), module


@pytest.fixture(autouse=True)
def tf32() -> Iterator[None]:
    """The precision in which cli.py fits and validates on a GPU."""
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_curves_are_those_of_all_validation_images(tmp_path: Path) -> None:
    found, module = measure(tmp_path, LayerAnalysis(FakeTeacher(), k=3), data())
    source = data()
    source.setup("validate")
    expected = LayerStatistics(2, torch.device("cpu"), 3)
    for batch in source.val_dataloader():
        with torch.no_grad():
            hidden = module.generator.loss(module.tokens_of(batch), batch["label"], taps=(1, 2)).hidden
        expected.update(hidden, batch["image"].mean((2, 3)))
    curves = expected.compute()
    record = json.loads((tmp_path / "layers.json").read_text())
    for curve in ("sts", "nts", "cknna", "cka"):
        for block, value in enumerate(getattr(curves, curve), 1):
            assert found[f"val/layers/{curve}/{block}"] == pytest.approx(value, rel=1e-5)
            assert record[curve][block - 1] == pytest.approx(value, rel=1e-5)
    assert found["val/layers/correlation"] == pytest.approx(curves.correlation)
    assert found["val/layers/peak"] == (1.0 if curves.cknna[1] > curves.cknna[0] else 0.5)
    assert (record["n"], record["k"], record["positions"]) == (curves.images, 3, 12)
    assert (record["teacher"], record["source"]) == ("fake 0123", "validation")
    assert record["time"] is None and record["aligned"] is None
    with Image.open(tmp_path / "layers.png") as picture:
        assert picture.size == (900, 450)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_subset_and_the_probe(tmp_path: Path) -> None:
    found, _ = measure(tmp_path, LayerAnalysis(FakeTeacher(), max_images=5, k=2, probe=True), data())
    record = json.loads((tmp_path / "layers.json").read_text())
    assert record["n"] == 5  # every fifth: an even stride would leave out ranks
    assert len(record["probe"]) == len(record["probe_standard_error"]) == 2
    assert found["val/layers/probe/1"] == pytest.approx(record["probe"][0])


def test_invalid_input_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="k is 10 and max_images 10; CKNNA needs a k of 2 or more, and more"):
        LayerAnalysis(FakeTeacher(), max_images=10)
    with pytest.raises(UserError, match="time is 1; it must lie between 0, noise, and 1, data"):
        LayerAnalysis(FakeTeacher(), time=1)
    with pytest.raises(UserError, match="LayerAnalysis measures 8 images, and CKNNA with k = 10 needs more than 10"):
        measure(tmp_path, LayerAnalysis(FakeTeacher(), max_images=11), data())
    with pytest.raises(UserError, match="LayerAnalysis shows a teacher the images, and Images reads none: set data"):
        measure(tmp_path, LayerAnalysis(FakeTeacher()), Images())
