"""Lines of progress in a log, their numbers, and the bar in a terminal."""

import csv
import re
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from artifacts.timing import images_per_second, read_timing, training_seconds
from callbacks import StepProgressBar, TextProgress
from callbacks.steer import text_progress
from callbacks.steer.text_progress import Window, batch_length
from datamodules import LabelDataModule
from tests.support.ranks import two_ranks

NUMBER = r"[\d.e+-]+"


class Clock:
    """Time that passes only where the toy and its data say so."""

    now = 0.0

    def monotonic(self) -> float:
        return Clock.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clock, "now", 100.0)
    monkeypatch.setattr(text_progress, "time", Clock())


class Toy(pl.LightningModule):
    """Four parameters that train on batches of five, each for half a second."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch: dict, index: int) -> torch.Tensor:
        Clock.now += 0.5
        loss = self.layer(batch["image"]).square().mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict, index: int) -> None:
        self.log("val/psnr", 21.25, prog_bar=True, batch_size=1)
        self.log("val/other", 1.0, batch_size=1)

    def predict_step(self, batch: dict, index: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Slow(list):
    """A data set that is read for a second and a half a batch."""

    def __getitem__(self, index: int) -> dict:
        Clock.now += 0.3
        return super().__getitem__(index)


class Encoder(Toy):
    """Two sub-codes at three positions of each image."""

    def predict_step(self, batch: dict, index: int) -> dict:
        super().predict_step(batch, index)
        return {"codes": torch.zeros(len(batch["image"]), 2, 3)}


def loader() -> DataLoader:
    return DataLoader(Slow({"image": torch.randn(3)} for _ in range(20)), batch_size=5)  # type: ignore[arg-type]


def trainer(place: Path, every: float = 0.0, **changes) -> pl.Trainer:
    given = {"max_steps": 6, "max_epochs": -1, "accelerator": "cpu", "default_root_dir": place, "logger": False}
    given |= {"enable_model_summary": False, "enable_checkpointing": False, "log_every_n_steps": 2}
    return pl.Trainer(**given | {"callbacks": [StepProgressBar(), TextProgress(every)]} | changes)


def test_lines_hold_step_metrics_speed_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    trainer(tmp_path, val_check_interval=3, check_val_every_n_epoch=None, logger=CSVLogger(tmp_path, "", "")).fit(
        Toy(), loader(), loader()
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "trainable parameters: layer 4"
    steps = [line for line in lines if line.startswith("step ")]
    assert [line.split(" · ")[0] for line in steps] == [
        f"step {n}/6 ({share} %)" for n, share in enumerate((16.7, 33.3, 50.0, 66.7, 83.3, 100.0), start=1)
    ]
    metrics = rf"train/loss {NUMBER} · val/psnr 21.25"
    speed = rf"2.5 img/s · {NUMBER} GB · data wait 75 %"
    assert [line for line in steps if not re.search(speed, line)] == [], "validation counts as training"
    assert re.fullmatch(rf"step 5/6 \(83.3 %\) · {metrics} · {speed} · ETA 3 s", steps[4]), steps[4]
    assert lines.count("validation batch 2/4 · ETA 3 s") == 2
    assert lines.count("validated in 6 s · val/psnr 21.25") == 2
    assert re.fullmatch(rf"trained 6 steps in 24 s, with validation: 1.25 img/s, {NUMBER} GB", lines[-1]), lines[-1]
    curves = (tmp_path / "metrics.csv").read_text().splitlines()
    assert {"speed/images_per_second", "speed/data_wait", "speed/memory_gb"} <= set(curves[0].split(","))


def test_all_curves_have_one_axis(tmp_path: Path) -> None:
    """Batches, where a module steps its optimizer itself after every second one."""

    class Accumulating(Toy):
        automatic_optimization = False

        def training_step(self, batch: dict, index: int) -> None:
            self.manual_backward(super().training_step(batch, index))
            if index % 2:
                self.optimizers().step()

    options = {"max_steps": 3, "log_every_n_steps": 1, "limit_val_batches": 0, "logger": CSVLogger(tmp_path, "", "")}
    trainer(tmp_path, **options).fit(Accumulating(), loader())
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    steps = {name: [int(row["step"]) for row in rows if row[name]] for name in ("train/loss", "speed/data_wait")}
    assert steps == {"train/loss": [0, 1, 2, 3, 4, 5], "speed/data_wait": [1, 3, 5]}


def test_at_most_a_line_in_the_interval(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    trainer(tmp_path, every=60.0, val_check_interval=3, check_val_every_n_epoch=None).fit(Toy(), loader(), loader())
    out = capsys.readouterr().out
    assert out.count("step 1/6") == 1 and "step 2/6" not in out and "validation batch" not in out
    assert out.count("validated in") == 2, "a validation always says its result"


def test_frequent_validations_leave_the_lines_of_steps(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    often = {"val_check_interval": 3, "check_val_every_n_epoch": None, "limit_val_batches": 1}
    trainer(tmp_path, every=7.0, **often).fit(Toy(), loader(), loader())
    lines = [line.split(" · ")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines[1:4] == ["step 1/6 (16.7 %)", "validated in 1 s", "step 4/6 (66.7 %)"]


def test_times_of_all_sessions_are_kept(tmp_path: Path) -> None:
    checks = {"val_check_interval": 3, "check_val_every_n_epoch": None}
    first = trainer(tmp_path, **checks)
    first.fit(Toy(), loader(), loader())
    timing = read_timing(tmp_path)
    assert timing["parameters"] == {"layer": 4}
    (session,) = timing["fit"]
    assert (session["first_step"], session["last_step"], session["images"]) == (0, 6, 30)
    assert (session["validation_seconds"], session["seconds"]) == pytest.approx((12, 24))
    assert (training_seconds(timing), images_per_second(timing)) == pytest.approx((24, 2.5))
    first.save_checkpoint(tmp_path / "last.ckpt")
    trainer(tmp_path, max_steps=6).fit(Toy(), loader(), ckpt_path=tmp_path / "last.ckpt")
    assert read_timing(tmp_path) == timing, "a finished run that is started again takes no time"
    trainer(tmp_path, max_steps=9, **checks).fit(Toy(), loader(), loader(), ckpt_path=tmp_path / "last.ckpt")
    assert [(one["first_step"], one["last_step"]) for one in read_timing(tmp_path)["fit"]] == [(0, 6), (6, 9)]


def test_a_prediction_counts_images(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    trainer(tmp_path).predict(Toy(), loader())
    out = capsys.readouterr().out
    assert "prediction batch 2/4 · 3.33 img/s · ETA 3 s\n" in out
    assert "predicted 20 images in 6 s, 3.33 img/s\n" in out
    trainer(tmp_path).predict(Encoder(), loader())
    assert "predicted 20 images in 6 s, 3.33 img/s, 20 codes/s\n" in capsys.readouterr().out
    timing = read_timing(tmp_path)
    assert timing == {"predict": {"images": 20, "seconds": pytest.approx(6)}}
    assert images_per_second(timing) == pytest.approx(20 / 6)


class Sampler(Toy):
    """A module that LabelDataModule knows the classes of."""

    num_classes = 2


@pytest.mark.cluster
@pytest.mark.parametrize("images", [50, 20])  # 30 and 20 of the ranks; the second has none
def test_a_prediction_counts_the_images_of_each_rank(images: int, tmp_path: Path) -> None:
    trainer(tmp_path, **two_ranks()).predict(Sampler(), LabelDataModule(images, batch_size=10, part_size=20))
    assert read_timing(tmp_path)["predict"]["images"] == images


def test_a_terminal_has_a_bar_over_all_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    seen: list[tuple[float, float | None]] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, *_) -> None:
            seen.append((bar.train_progress_bar.completed, bar.train_progress_bar.total))

    bar = StepProgressBar()
    trainer(tmp_path, callbacks=[bar, TextProgress(), Look()]).fit(Toy(), loader())
    assert seen == [(step, 6) for step in range(1, 7)], "an epoch of four batches does not restart it"
    assert "step 1/6" not in capsys.readouterr().out


def test_wait_and_rate_are_those_of_the_window() -> None:
    window = Window(10.0)
    window.images, window.waited = 300, 0.5
    speed = window.speed(12.0)
    assert (speed["images_per_second"], speed["data_wait"]) == (150, 0.25)


def test_images_of_a_batch() -> None:
    assert batch_length({"names": ["a"], "image": torch.zeros(4, 3), "label": torch.zeros(2)}) == 4
    assert batch_length([torch.zeros(3)]) == batch_length(torch.zeros(3)) == 3
    assert batch_length({"names": ["a"]}) == 0
