import json
import os
import platform
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from callbacks import ReconstructionMetrics
from callbacks.measure import metrics_file
from callbacks.measure.metrics_file import MetricsFile
from polytoken.errors import UserError
from tests.support.tokenizers import tiny_tokenizer
from tests.support.validation import Images, module_of, quiet_trainer


def trainer(directory: Path, function: str, step: int = 7, rank: int = 0, **metrics: float) -> SimpleNamespace:
    return SimpleNamespace(
        is_global_zero=rank == 0,
        fast_dev_run=0,
        default_root_dir=str(directory),
        global_step=step,
        ckpt_path="last.ckpt",
        state=SimpleNamespace(fn=function),
        callback_metrics={name: torch.tensor(value) for name, value in metrics.items()},
    )


def test_each_command_has_its_section(tmp_path: Path) -> None:
    callback = MetricsFile()
    callback.on_fit_end(trainer(tmp_path, "fit", loss=1.5), None)
    callback.on_validation_end(trainer(tmp_path, "fit", loss=9.0), None)  # part of fit: not a command
    callback.on_validation_end(trainer(tmp_path, "validate", psnr=20.0), None)
    callback.on_test_end(trainer(tmp_path, "test", psnr=21.0), None)
    callback.on_fit_end(trainer(tmp_path, "fit", step=9, loss=0.5), None)
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert {name: section["metrics"] for name, section in content.items()} == {
        "fit": {"loss": 0.5},
        "validate": {"psnr": 20.0},
        "test": {"psnr": 21.0},
    }
    assert content["fit"]["global_step"] == 9 and content["fit"]["n"] is None
    assert content["fit"]["versions"].keys() == {"python", "torch", "lightning"}
    assert content["fit"]["machine"].startswith(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_other_ranks_and_empty_metrics_write_nothing(tmp_path: Path) -> None:
    MetricsFile().on_fit_end(trainer(tmp_path, "fit", rank=1, loss=1.0), None)
    MetricsFile().on_fit_end(trainer(tmp_path, "fit"), None)
    assert not list(tmp_path.iterdir())


def test_a_non_finite_number_becomes_null(tmp_path: Path) -> None:
    MetricsFile().on_fit_end(trainer(tmp_path, "fit", loss=float("nan")), None)
    content = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=lambda name: 1 / 0)
    assert content["fit"]["metrics"] == {"loss": None}


def test_a_run_that_resumes_after_its_last_step_writes_the_metrics_of_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint: dict = {"global_step": 7}
    metrics = {"train/loss": 1.5, "train/norm": float("nan"), "val/psnr": 20.0}
    MetricsFile().on_save_checkpoint(trainer(tmp_path, "fit", **metrics), None, checkpoint)

    def resume(**logged: float) -> dict:
        callback, resumed = MetricsFile(), trainer(tmp_path, "fit", **logged)
        callback.on_load_checkpoint(resumed, None, checkpoint)
        callback.on_fit_end(resumed, None)
        return json.loads((tmp_path / "metrics.json").read_text())["fit"]

    written = resume()
    assert written["metrics"] == {"train/loss": 1.5, "train/norm": None} and written["n"] is None
    monkeypatch.setattr(metrics_file, "commit", lambda: "another")
    assert resume() == written  # a finished run that is started again
    trained = resume(**{"train/loss": 1.0})
    assert trained["metrics"] == {"train/loss": 1.0, "train/norm": None} and trained["commit"] == "another"


def test_broken_metrics_in_a_checkpoint_are_refused(tmp_path: Path) -> None:
    checkpoint = {"global_step": 7, "training_metrics": {"train/loss": "1.5"}}
    with pytest.raises(UserError, match=r"training_metrics in last.ckpt: \$\[\.\.\.\]: expected float"):
        MetricsFile().on_load_checkpoint(trainer(tmp_path, "fit"), None, checkpoint)


def test_images_are_counted_per_command_without_padding(tmp_path: Path) -> None:
    callback, module = MetricsFile(), module_of(tiny_tokenizer())
    for images in (10, 7):
        quiet_trainer(tmp_path, [callback, ReconstructionMetrics()]).validate(module, Images(images), verbose=False)
        assert json.loads((tmp_path / "metrics.json").read_text())["validate"]["n"] == images
