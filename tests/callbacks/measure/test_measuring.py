"""The callbacks that measure and draw reconstructions."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.patches import StepPatch
from PIL import Image
from skimage.metrics import structural_similarity
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import callbacks
from callbacks import (
    CodebookUsage,
    PerceptualDistance,
    PSNRByClass,
    ReconstructionDistance,
    ReconstructionGrid,
    ReconstructionMetrics,
)
from callbacks.measure.codebook_usage import draw_uses
from callbacks.measure.plots import new_plot, render
from polytoken.classifier import SmallClassifier
from polytoken.metrics import FeatureStatistics, InceptionScore, frechet_distance, paint_patches, psnr, to_uint8
from tests.support.tokenizers import tiny_tokenizer
from tests.support.validation import Images, logged_metrics, module_of, quiet_trainer
from tests.support.vgg import random_vgg


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    torch.manual_seed(0)  # the tests before it may have drawn any number
    directory = tmp_path_factory.mktemp("run")
    SmallClassifier(num_classes=2, widths=(8,)).save(directory / "judge.safetensors", 0.5)
    judge = ReconstructionDistance("judge", str(directory / "judge.safetensors"))
    callbacks = [CodebookUsage(), judge, PSNRByClass(), ReconstructionGrid(columns=4, rows=2), ReconstructionMetrics()]
    trainer = quiet_trainer(directory, callbacks, logger=TensorBoardLogger(directory, name="", version=""))
    module = module_of(tiny_tokenizer())
    with torch.no_grad():
        module.tokenizer.decoder.conv_out.weight.mul_(4)  # some of the output lies outside of [-1, 1]
    data = Images()
    trainer.validate(module, data, verbose=False)
    with torch.no_grad():
        decoded, encoding = module.eval()(data.images[:10])
    return SimpleNamespace(
        directory=directory,
        metrics=logged_metrics(trainer),
        images=data.images[:10],
        labels=data.labels[:10],
        reconstruction=decoded.image,
        codes=encoding.codes,
        judge=judge,
        usage=callbacks[0],
    )


def test_a_single_class_has_a_row(tmp_path: Path) -> None:
    data = Images()
    data.class_to_idx = {"all": 0}
    data.labels = torch.zeros_like(data.labels)
    quiet_trainer(tmp_path, [PSNRByClass()]).validate(module_of(tiny_tokenizer()), data, verbose=False)
    assert {*json.loads((tmp_path / "psnr_by_class.json").read_text())} == {"all", "all images"}


def test_psnr_counts_every_image_once(measured: SimpleNamespace) -> None:
    expected = psnr(to_uint8(measured.reconstruction), to_uint8(measured.images)).mean()
    assert measured.metrics["val/psnr"] == pytest.approx(expected.item(), abs=1e-4)
    assert measured.reconstruction.abs().max() > 1
    raw = (measured.reconstruction - measured.images).double().square().flatten(1).mean(1)
    assert measured.metrics["val/psnr_raw"] == pytest.approx((10 * (4 / raw).log10()).mean().item(), abs=1e-4)
    assert measured.metrics["val/psnr_raw"] < measured.metrics["val/psnr"]
    originals, shown = (to_uint8(images).permute(0, 2, 3, 1) for images in (measured.images, measured.reconstruction))
    options = {"channel_axis": 2, "data_range": 255, "gaussian_weights": True, "use_sample_covariance": False}
    around = ((0, 0), (5, 5), (5, 5), (0, 0))  # structural_similarity excludes the border
    padded = [np.pad(one.numpy(), around, mode="reflect") for one in (originals, shown)]
    ssim = [structural_similarity(one, other, **options) for one, other in zip(*padded, strict=True)]
    assert measured.metrics["val/ssim"] == pytest.approx(np.mean(ssim), abs=1e-5)


def test_the_compression_ratio_is_that_of_the_spec(measured: SimpleNamespace) -> None:
    assert measured.metrics["val/compression_ratio"] == 24 * 8**2 / (2 * 4)  # two codebooks of 16 at f8


def test_usage_counts_the_whole_set(measured: SimpleNamespace) -> None:
    for codebook in (0, 1):
        seen = len(measured.codes[:, codebook].unique())
        assert measured.metrics[f"val/usage/{codebook}"] == pytest.approx(seen / 16)
        assert measured.metrics[f"val/dead/{codebook}"] == 16 - seen
    tuples = measured.codes.transpose(1, 2).flatten(0, 1)
    distinct, counts = tuples.unique(dim=0, return_counts=True)
    assert measured.metrics["val/usage/joint"] == pytest.approx(len(distinct) / len(tuples))
    entropy = torch.distributions.Categorical(counts.float()).entropy()
    assert measured.metrics["val/perplexity/joint"] == pytest.approx(entropy.exp().item(), rel=1e-5)


def test_judge(measured: SimpleNamespace) -> None:
    judge = measured.judge._network.network
    features = {}
    for name, shown in (
        ("ris/judge", to_uint8(measured.reconstruction) / 127.5 - 1),
        ("ris_raw/judge", measured.reconstruction),
        ("ris/judge_originals", to_uint8(measured.images) / 127.5 - 1),
    ):
        logits = judge(shown)
        if "raw" not in name:
            expected = (logits.argmax(1) == measured.labels).float().mean()
            accuracy = name.replace("ris/judge", "val/judge_accuracy")
            assert measured.metrics[accuracy] == pytest.approx(expected.item(), abs=1e-6)
        score = InceptionScore(2)
        score.update(logits)
        assert measured.metrics[f"val/{name}"] == pytest.approx(score.compute().item(), rel=1e-5)
        features[name] = FeatureStatistics(8)
        features[name].update(judge.embed(shown))
    shown, raw, originals = (one.compute() for one in features.values())
    for name, gaussian in (("rfd/judge", shown), ("rfd_raw/judge", raw)):
        distance = frechet_distance(gaussian, originals).item()
        assert measured.metrics[f"val/{name}"] == pytest.approx(distance, rel=1e-4)
        assert distance > 0
    assert measured.metrics["val/rfd_raw/judge"] != pytest.approx(measured.metrics["val/rfd/judge"], rel=1e-2)


def test_psnr_by_class(measured: SimpleNamespace) -> None:
    rows = json.loads((measured.directory / "psnr_by_class.json").read_text())
    assert set(rows) == {"a", "b", "all images"}
    painted = psnr(to_uint8(paint_patches(measured.images, (2, 2))), to_uint8(measured.images))
    assert rows["b"]["painted"] == pytest.approx(painted[measured.labels == 1].mean().item())
    assert rows["all images"]["painted"] == pytest.approx(painted.mean().item())
    assert rows["all images"]["tokenizer"] == pytest.approx(measured.metrics["val/psnr"], abs=1e-4)


def test_plot_shows_originals_over_reconstructions(measured: SimpleNamespace) -> None:
    with Image.open(measured.directory / "reconstructions.png") as picture:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert pixels.shape[1] == 4 * 66 + 2
    left = pixels.shape[2] - 4 * 66  # the margin left of the images holds the labels
    assert 60 < left < 120
    assert (pixels[:, :, : left - 4] < 128).any() and (pixels[:, 66:68] == 255).all()
    first = pixels[:, 2:66:4, left : left + 64 : 4]
    below = pixels[:, 68:132:4, left : left + 64 : 4]
    assert torch.equal(first, to_uint8(measured.images)[0])
    assert torch.equal(below, to_uint8(measured.reconstruction)[0])


def test_tensorboard_gets_plot_and_histograms(measured: SimpleNamespace) -> None:
    events = EventAccumulator(str(measured.directory)).Reload().Tags()
    assert sorted(events["images"]) == ["reconstructions", "usage"]
    assert events["histograms"] == ["code_use/0", "code_use/1"]


def test_plot_of_code_usage(measured: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    with Image.open(measured.directory / "usage.png") as picture:
        assert picture.size == (800, 400)  # two panels
        assert np.array(picture).std() > 10
    figures = []
    monkeypatch.setattr("callbacks.measure.codebook_usage.publish", lambda *_: None)
    monkeypatch.setattr("callbacks.measure.codebook_usage.render", lambda figure: figures.append(figure))
    usage = measured.usage
    usage.draw(SimpleNamespace(loggers=[]))
    counts = measured.codes[:, 1].flatten().bincount(minlength=16)
    panel = figures[0].axes[1]
    dead = measured.metrics["val/dead/1"]
    assert 0 < dead < 15
    perplexity = measured.metrics["val/perplexity/1"]
    assert panel.get_title() == (
        f"codebook 1: {(16 - dead) / 16:.1%} of 16 codes used\nperplexity {perplexity:.1f}, {dead:.0f} dead"
    )
    assert panel.get_yscale() == "log" and panel.get_xlabel() and panel.get_ylabel() and panel.get_legend()
    (bars,) = (patch for patch in panel.patches if isinstance(patch, StepPatch))
    expected = counts[counts > 0].sort(descending=True).values * 16 / counts.sum()
    assert bars.get_data().values == pytest.approx(expected.numpy(), rel=1e-6)
    assert panel.get_xlim() == (0, 16) and panel.get_ylim()[0] < expected[-1] <= expected[0] < panel.get_ylim()[1]


@pytest.mark.parametrize("uses", [[0.0] * 4, [1.0] * 4, [4.0, 0, 0, 0]])
def test_code_usage_of_extreme_counts(uses: list[float]) -> None:
    """No code used, all equally, one only."""
    figure, axes = new_plot(1)
    draw_uses(axes[0, 0], np.array(uses))
    assert render(figure).std() > 10
    assert [text.get_text() for text in axes[0, 0].get_legend().get_texts()][-1] == "uniform use"
    assert ("dead" in [text.get_text() for text in axes[0, 0].get_legend().get_texts()]) == (0 in uses)


def test_lpips(tmp_path: Path) -> None:
    random_vgg(tmp_path / "vgg16.pth")
    callback = PerceptualDistance(str(tmp_path / "vgg16.pth"))
    trainer, module, data = quiet_trainer(tmp_path, [callback]), module_of(tiny_tokenizer(32)), Images(5, 32)
    with torch.no_grad():
        module.tokenizer.decoder.conv_out.weight.mul_(4)  # some of the output lies outside of [-1, 1]
    trainer.validate(module, data, verbose=False)
    with torch.no_grad():
        reconstruction = module.eval()(data.images[:5])[0].image
        one, other = (to_uint8(images) / 127.5 - 1 for images in (reconstruction, data.images[:5]))
        expected = callback._network(one, other).mean()
        raw = callback._network(reconstruction, data.images[:5]).mean()
    assert reconstruction.abs().max() > 1
    assert logged_metrics(trainer)["val/lpips/vgg"] == pytest.approx(expected.item(), rel=1e-4)
    assert logged_metrics(trainer)["val/lpips_raw/vgg"] == pytest.approx(raw.item(), rel=1e-4)
    assert raw.item() != pytest.approx(expected.item(), rel=1e-3)


def test_measurements_compute_in_full_float32(tmp_path: Path) -> None:
    """Under the precision and the TF32 of a fit on a GPU; LPIPS, SSIM and the decoders of pictures depend on it."""
    seen = []

    class Watched(ReconstructionMetrics):
        def measure(self, images: torch.Tensor, *others: object) -> None:
            seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            seen.append((images.new_ones(1, 1) @ images.new_ones(1, 1)).dtype)
            super().measure(images, *others)

        def results(self) -> dict:
            seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            return super().results()

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        trainer = quiet_trainer(tmp_path, [Watched()], precision="bf16-mixed")
        trainer.validate(module_of(tiny_tokenizer()), Images(4), verbose=False)
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {("highest", False), torch.float32}


def test_missing_weights_stop_before_the_first_batch(tmp_path: Path) -> None:
    for callback in (
        PerceptualDistance(str(tmp_path / "none.pth")),
        ReconstructionDistance("judge", str(tmp_path / "none.safetensors")),
    ):
        with pytest.raises(FileNotFoundError, match="no weights at .*none.*make"):
            quiet_trainer(tmp_path, [callback]).validate(module_of(tiny_tokenizer()), Images(), verbose=False)


def test_usage_during_training(tmp_path: Path) -> None:
    """Usage of the last two batches, logged when Lightning writes its log."""

    class Codes(pl.Callback):
        def __init__(self) -> None:
            self.codes: list[torch.Tensor] = []

        def on_train_batch_end(
            self, trainer: pl.Trainer, module: pl.LightningModule, outputs: dict, *_: object
        ) -> None:
            assert not outputs["codes"].requires_grad
            self.codes.append(outputs["codes"])

    codes, written = Codes(), CSVLogger(tmp_path, name="", version="")
    trainer = quiet_trainer(
        tmp_path, [CodebookUsage(window=2), codes], logger=written, max_steps=6, log_every_n_steps=3, max_epochs=-1
    )
    trainer.fit(module_of(tiny_tokenizer()), Images(11))
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    found = [float(row["train/usage/1"]) for row in rows if row.get("train/usage/1")]
    expected = [
        len(torch.cat([one[:, 1].flatten() for one in codes.codes[stop - 2 : stop]]).unique()) / 16 for stop in (3, 6)
    ]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("callback", "argument"),
    [
        (callbacks.ReconstructionGrid, "rows"),
        (callbacks.ReconstructionGrid, "columns"),
        (callbacks.ScaleReconstructions, "rows"),
        (callbacks.ScaleReconstructions, "max_images"),
        (callbacks.SubspaceAblation, "rows"),
    ],
)
def test_a_picture_without_images_is_refused_at_construction(callback: type, argument: str) -> None:
    with pytest.raises(ValueError, match=f"{callback.__name__}: {argument} is 0; it must be at least 1"):
        callback(**{argument: 0})
