"""rFID and rIS of a tokenizer's reconstructions, by any network."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from callbacks import EMA, ReconstructionDistance, SubspaceAblation
from callbacks.measure.metrics_file import MetricsFile
from polytoken.classifier import SmallClassifier
from polytoken.discriminators import DinoDiscriminator
from polytoken.errors import UserError
from polytoken.files import file_sha256
from polytoken.losses import Adversarial, ClassifierFeatures, FeatureAlignment, TokenizerObjective
from polytoken.metrics.images import to_uint8
from polytoken.teachers import Teacher
from tests.support.extractors import MeanColours
from tests.support.tokenizers import tiny_tokenizer
from tests.support.validation import Images, logged_metrics, module_of, quiet_trainer


class Colours(MeanColours):
    """Network of mean colours in place of Inception."""

    name = "inception"


def inception_score(logits: Tensor) -> float:
    """Inception score with image i in split i mod 10."""
    probabilities = logits.double().softmax(1)
    splits = [probabilities[start::10] for start in range(10)]
    return float(torch.stack([(p * (p / p.mean(0)).log()).sum(1).mean().exp() for p in splits]).mean())


def test_inception_metrics_use_8_bit_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polytoken.metrics.extractors.Inception", lambda weights, device: Colours())
    trainer, data = quiet_trainer(tmp_path, [ReconstructionDistance(), MetricsFile()]), Images(25)
    module = module_of(tiny_tokenizer())
    trainer.validate(module, data, verbose=False)
    with torch.no_grad():
        shown = to_uint8(module.eval()(data.images[:25])[0].image)  # the last row only pads
    own, other = Colours()(shown), Colours()(to_uint8(data.images[:25]))
    assert own.logits is not None and other.logits is not None and own.spatial is not None
    rows = [features.pooled.double().numpy() for features in (own, other)]
    first, second = (np.cov(features, rowvar=False) for features in rows)
    apart = np.square(rows[0].mean(0) - rows[1].mean(0)).sum()
    expected = apart + np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second).real)
    found = logged_metrics(trainer)
    assert found.keys() == {"val/rfid/inception", "val/rsfid/inception", "val/ris/inception"}
    assert found["val/rfid/inception"] == pytest.approx(expected, rel=1e-5)
    assert found["val/ris/inception"] == pytest.approx(inception_score(own.logits), rel=1e-5)

    sections = json.loads((tmp_path / "metrics.json").read_text())
    assert sections["validate"]["n"] == 25
    record = sections["reconstruction"]["inception"]
    assert record["extractor"] == {"name": "inception", "sha256": "0" * 64, "resize": "none"}
    figure = record["metrics"]["reconstructions"]["rfid/inception"]
    assert figure["value"] == pytest.approx(expected, rel=1e-5)
    assert (figure["n"], figure["reference_n"], figure["reference"]) == (25, 25, "the images that were fed in")
    originals = record["metrics"]["validation"]["is/inception"]
    assert originals["value"] == pytest.approx(inception_score(other.logits), rel=1e-5)
    assert originals["splits"] == "10 splits, images dealt out in turn"


def test_a_judge_also_measures_accuracy_originals_and_raw_output(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    SmallClassifier(num_classes=2, widths=(8,)).save(path, 0.5)
    trainer = quiet_trainer(tmp_path, [ReconstructionDistance("judge", str(path)), MetricsFile()])
    trainer.test(module_of(tiny_tokenizer()), Images(), verbose=False)
    found = logged_metrics(trainer)
    names = {"judge_accuracy", "rfd/judge", "ris/judge", "rfd_raw/judge", "ris_raw/judge"}
    assert found.keys() == {f"test/{name}" for name in (*names, "judge_accuracy_originals", "ris/judge_originals")}
    sections = json.loads((tmp_path / "metrics.json").read_text())
    assert sections.keys() == {"test", "reconstruction"}
    record = sections["reconstruction"]["judge"]
    assert record["extractor"]["sha256"] == file_sha256(path)
    for name, key in (("recognised/judge", "judge_accuracy"), ("rfd/judge", "rfd/judge"), ("ris/judge", "ris/judge")):
        assert record["metrics"]["reconstructions"][name]["value"] == pytest.approx(found[f"test/{key}"], rel=1e-6)


def test_a_fit_writes_no_section(tmp_path: Path) -> None:
    """For make, metrics.json marks the end of the fit."""
    path = tmp_path / "judge.safetensors"
    SmallClassifier(num_classes=2, widths=(8,)).save(path, 0.5)
    trainer = quiet_trainer(tmp_path, [ReconstructionDistance("judge", str(path))], max_epochs=1)
    trainer.fit(module_of(tiny_tokenizer()), Images())
    assert "val/rfd/judge" in logged_metrics(trainer) and not (tmp_path / "metrics.json").exists()


def test_the_section_records_averaged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An EMA callback added by an overlay adds no average to the checkpoint."""
    monkeypatch.setattr("polytoken.metrics.extractors.Inception", lambda weights, device: Colours())
    module, average = module_of(tiny_tokenizer()), EMA()
    for expected in (False, True):
        trainer = quiet_trainer(tmp_path, [average, ReconstructionDistance()], precision="bf16-mixed")
        trainer.validate(module, Images(25), verbose=False)
        record = json.loads((tmp_path / "metrics.json").read_text())["reconstruction"]["inception"]
        assert record["samples"]["settings"]["averaged"] is expected
        assert record["samples"]["settings"]["precision"] == "float32"
        assert record["reference"]["reference_kind"] == "validation"
        average.on_train_start(SimpleNamespace(global_step=0), module)  # type: ignore[arg-type]


def test_a_non_finite_reconstruction_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polytoken.metrics.extractors.Inception", lambda weights, device: Colours())
    module = module_of(tiny_tokenizer())
    with torch.no_grad():
        module.tokenizer.last_layer.fill_(torch.nan)
    with pytest.raises(ValueError, match="reconstructions are not finite"):
        quiet_trainer(tmp_path, [ReconstructionDistance()]).validate(module, Images(25), verbose=False)


def test_missing_files_stop_before_the_first_batch(tmp_path: Path) -> None:
    for callback, error, says in (
        (ReconstructionDistance(weights=str(tmp_path / "none.pth")), FileNotFoundError, "none.pth: run `make weights`"),
        (ReconstructionDistance("judge"), ValueError, "name its file"),
        (ReconstructionDistance("dinov9"), ValueError, "no teacher is called 'dinov9'"),
    ):
        with pytest.raises(error, match=says):
            quiet_trainer(tmp_path, [callback]).validate(module_of(tiny_tokenizer()), Images(), verbose=False)


def test_a_network_that_training_reads_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    objective = TokenizerObjective(
        perceptual=ClassifierFeatures("perceptual.safetensors"),
        alignment_high=FeatureAlignment("high", 0),
        adversarial=Adversarial(DinoDiscriminator(Teacher("dinov2_base"), [1])),
        teachers={"high": Teacher("dino_small_16"), "unread": Teacher("dinov2_small")},
    )
    installed = {Path(f"weights/{name}.safetensors") for name in ("dino_small_16", "dinov2_base")}
    assert objective.networks == {Path("perceptual.safetensors")} | installed
    foundation = Teacher("siglip2_large", "weights/siglip2_large.safetensors")  # the file that its name means
    module = SimpleNamespace(objective=objective, tokenizer=SimpleNamespace(networks={foundation.file}))
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    files = ("perceptual.safetensors", "./perceptual.safetensors", f"{tmp_path}/perceptual.safetensors")
    teachers = (("dino_small_16",), ("dinov2_base", "weights/dinov2_base.safetensors"), ("siglip2_large",))
    for given in (*(("judge", file) for file in files), *teachers):
        for callback in (ReconstructionDistance, SubspaceAblation):
            with pytest.raises(UserError, match=f"training reads {given[-1]}, .*: measure by another network"):
                callback(*given).setup(trainer, module, "validate")
