"""The callbacks that measure and draw reconstructions."""

import json
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from callbacks import CodebookUsage, JudgeAccuracy, PSNRByClass, ReconstructionGrid, ReconstructionMetrics
from lightning_modules import TokenizerModule
from losses import Reconstruction, TokenizerObjective
from metrics import paint_patches, psnr, to_uint8
from models.classifier import SmallClassifier
from tests.support.tokenizers import tiny_tokenizer


class Images(pl.LightningDataModule):
    """Ten images of two classes, and one row that only pads."""

    class_to_idx = {"a": 0, "b": 1}

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.images = torch.rand(11, 3, 16, 16, generator=generator) * 2 - 1
        self.labels = torch.arange(11) % 2

    def val_dataloader(self) -> DataLoader:
        indices = [*range(10), -1]
        rows = [
            {"image": image, "label": label, "index": index}
            for image, label, index in zip(self.images, self.labels, indices, strict=True)
        ]
        return DataLoader(rows, batch_size=4)

    test_dataloader = val_dataloader


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    directory = tmp_path_factory.mktemp("run")
    SmallClassifier(num_classes=2, widths=(8,)).save(directory / "judge.safetensors", 0.5)
    judge = JudgeAccuracy(str(directory / "judge.safetensors"))
    callbacks = [CodebookUsage(), judge, PSNRByClass(), ReconstructionGrid(columns=4, rows=2), ReconstructionMetrics()]
    trainer = pl.Trainer(
        default_root_dir=directory,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
        callbacks=callbacks,
    )
    module = TokenizerModule(tiny_tokenizer(), TokenizerObjective(reconstruction=Reconstruction()))
    data = Images()
    trainer.validate(module, data, verbose=False)
    with torch.no_grad():
        reconstruction, encoding = module.eval()(data.images[:10])
    return SimpleNamespace(
        directory=directory,
        metrics={name: float(value) for name, value in trainer.callback_metrics.items()},
        images=data.images[:10],
        labels=data.labels[:10],
        reconstruction=reconstruction.clamp(-1, 1),
        codes=encoding.codes,
        judge=judge,
    )


def test_psnr_counts_every_image_once(measured: SimpleNamespace) -> None:
    expected = psnr(to_uint8(measured.reconstruction), to_uint8(measured.images)).mean()
    assert measured.metrics["val/psnr"] == pytest.approx(expected.item(), abs=1e-4)
    assert 0 < measured.metrics["val/ssim"] < 1


def test_usage_counts_the_whole_set(measured: SimpleNamespace) -> None:
    for codebook in (0, 1):
        seen = len(measured.codes[:, codebook].unique())
        assert measured.metrics[f"val/usage/{codebook}"] == pytest.approx(seen / 16)
        assert measured.metrics[f"val/dead/{codebook}"] == 16 - seen


def test_judge(measured: SimpleNamespace) -> None:
    judge = measured.judge._judge
    for name, images in (("", measured.reconstruction), ("_originals", measured.images)):
        expected = (judge(images).argmax(1) == measured.labels).float().mean()
        assert measured.metrics[f"val/judge_accuracy{name}"] == pytest.approx(expected.item(), abs=1e-6)


def test_psnr_by_class(measured: SimpleNamespace) -> None:
    rows = json.loads((measured.directory / "psnr_by_class.json").read_text())
    assert set(rows) == {"a", "b", "all images"}
    painted = psnr(to_uint8(paint_patches(measured.images, 8)), to_uint8(measured.images))
    assert rows["b"]["painted"] == pytest.approx(painted[measured.labels == 1].mean().item())
    assert rows["all images"]["painted"] == pytest.approx(painted.mean().item())
    assert rows["all images"]["tokenizer"] == pytest.approx(measured.metrics["val/psnr"], abs=1e-4)


def test_picture_shows_originals_over_reconstructions(measured: SimpleNamespace) -> None:
    with Image.open(measured.directory / "reconstructions.png") as picture:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert pixels.shape == (3, 4 * 66 + 2, 4 * 66 + 2)
    first = pixels[:, 2:66:4, 2:66:4]
    below = pixels[:, 68:132:4, 2:66:4]
    assert torch.equal(first, to_uint8(measured.images)[0])
    assert torch.equal(below, to_uint8(measured.reconstruction)[0])
