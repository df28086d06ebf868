"""Progress as lines of text, for log files; and the speed of training as curves."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from artifacts.timing import read_timing, write_timing
from callbacks.measure.plots import logged_step
from polytoken.text import duration, memory


def shows_bar(trainer: pl.Trainer) -> bool:
    """True if a progress bar is drawn: it is on, and the output is a terminal."""
    return sys.stdout.isatty() and trainer.progress_bar_callback is not None


class TextProgress(pl.Callback):
    """Prints a line at the first step and at most one a minute where no progress bar is shown; and at each end.

    `step 1200/200000 (0.6 %) · train/loss 0.412 · val/psnr 21.3 · 812 img/s · 38 GB · data wait 2 % · ETA 1 d 3 h`.
    Speed and wait are those since the last line, without validation; the ETA is that of the whole fit, with it. The
    wait is the share of the time between two steps: for the next batch, or for a checkpoint to be written. Memory is
    the peak of the first GPU, or of the process on a CPU. The curves `speed/…` show the same numbers. Only printing a
    line waits for the device, to read the metrics. Rank 0 alone prints. Its lines take the other ranks to be as far as
    it is; at the end of a prediction, where ranks have different numbers of batches, the images of all are added up.
    `timing.json` in the run's directory keeps sizes, times and speeds for the report; it is written after each
    validation and at the end.

    Args:
        every_seconds: least time between two lines.
    """

    def __init__(self, every_seconds: float = 60.0) -> None:
        self.every_seconds = every_seconds
        self._printed = -float("inf")
        self._images = self._codes = 0  # of this rank, in an evaluation or a prediction

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the number of trainable parameters of each part."""
        if trainer.is_global_zero:
            sizes = {name: trainable(child) for name, child in pl_module.named_children()}
            parts = ", ".join(f"{name} {count:,}" for name, count in sizes.items() if count)
            print(f"trainable parameters: {parts or 0}", flush=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start, self._first_step, self._all_images = time.monotonic(), trainer.global_step, 0
        self._logged = trainer.global_step
        self._validated, self._timing = 0.0, read_timing(Path(trainer.default_root_dir))
        # a run that starts over leaves its earlier sessions behind
        self._earlier = [one for one in self._timing.get("fit", []) if one["first_step"] < trainer.global_step]
        self._line, self._curve = Window(self._start), Window(self._start)
        self._idle_since = self._start

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        waited = time.monotonic() - self._idle_since
        for window in (self._line, self._curve):
            window.waited += waited

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        now = self._idle_since = time.monotonic()
        images = batch_length(batch) * trainer.world_size
        self._all_images += images
        for window in (self._line, self._curve):
            window.images += images
        # batches that only accumulate do not advance the step
        step, every = trainer.global_step, trainer.log_every_n_steps
        if every and step != self._logged and step % every == 0:
            self._logged = step
            curves = {f"speed/{name}": value for name, value in self._curve.speed(now).items()}
            for logger in trainer.loggers:  # not by self.log: they are no metrics of the run
                logger.log_metrics(curves, step=logged_step(trainer))
            self._curve = Window(now)
        if self._due(trainer, now):
            self._print(self._training_line(trainer, now))
            self._line = Window(now)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, index: int, loader: int = 0
    ) -> None:
        self._batch(trainer, "validation", batch, index, loader, trainer.num_val_batches)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = time.monotonic()
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            for window in (self._line, self._curve):
                window.start += now - self._began
            self._idle_since = now
            self._validated += now - self._began
            self._keep_times(trainer, pl_module)
        if self._prints(trainer):
            # frequent validations leave the lines of steps alone
            print(f"validated in {duration(now - self._began)}{_metrics(trainer, 'val/')}", flush=True)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, index: int, loader: int = 0
    ) -> None:
        self._batch(trainer, "test", batch, index, loader, trainer.num_test_batches)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer)

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, index: int, loader: int = 0
    ) -> None:
        codes = outputs.get("codes") if isinstance(outputs, dict) else None
        self._codes += 0 if codes is None else codes.numel()
        self._batch(trainer, "prediction", batch, index, loader, trainer.num_predict_batches)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Say how long a prediction took; here since a rank without batches runs no other hook."""
        if stage != "predict":
            return
        counts = torch.tensor([self._images, self._codes], device=trainer.strategy.root_device)
        images, codes = trainer.strategy.reduce(counts, reduce_op="sum").tolist()  # waits for the slowest rank
        if not trainer.is_global_zero or not images:
            return
        seconds = max(time.monotonic() - self._began, 1e-9)
        directory = Path(trainer.default_root_dir)
        times = read_timing(directory)
        times["predict"] = {"images": images, "seconds": seconds}
        write_timing(directory, times)
        rate = f"{images / seconds:.3g} img/s" + (f", {codes / seconds:.3g} codes/s" if codes else "")
        print(f"predicted {images:,} images in {duration(seconds)}, {rate}", flush=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how long the fit took; in a terminal too."""
        if trainer.is_global_zero and (steps := trainer.global_step - self._first_step):
            self._keep_times(trainer, pl_module)
            took = time.monotonic() - self._start
            print(
                f"trained {steps:,} steps in {duration(took)}, with validation: {self._all_images / took:.3g} img/s, "
                f"{memory(peak_memory())}",
                flush=True,
            )

    def _keep_times(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write `timing.json`, with the sessions of earlier processes."""
        if not trainer.is_global_zero or trainer.fast_dev_run or trainer.global_step == self._first_step:
            return
        self._timing["parameters"] = {name: trainable(child) for name, child in pl_module.named_children()}
        self._timing["fit"] = [
            *self._earlier,
            {
                "first_step": self._first_step,
                "last_step": trainer.global_step,
                "images": self._all_images,
                "seconds": time.monotonic() - self._start,
                "validation_seconds": self._validated,
                "memory_bytes": peak_memory(),
            },
        ]
        write_timing(Path(trainer.default_root_dir), self._timing)

    def _training_line(self, trainer: pl.Trainer, now: float) -> str:
        step, total = trainer.global_step, trainer.max_steps
        parts = [f"step {step}/{total} ({100 * step / total:.1f} %)" if total > 0 else f"step {step}"]
        speed = self._line.speed(now)
        parts += [
            f"{speed['images_per_second']:.3g} img/s",
            memory(1e9 * speed["memory_gb"]),
            f"data wait {100 * speed['data_wait']:.0f} %",
        ]
        if total > 0 and (done := step - self._first_step):
            parts += [f"ETA {duration((total - step) * (now - self._start) / done)}"]
        return f"{parts[0]}{_metrics(trainer)} · {' · '.join(parts[1:])}"

    def _begin(self, trainer: pl.Trainer) -> None:
        self._began = time.monotonic()
        if trainer.state.fn != "fit":
            self._images = self._codes = 0

    def _batch(
        self, trainer: pl.Trainer, what: str, batch: Any, index: int, loader: int, totals: Iterable[float]
    ) -> None:
        now = time.monotonic()
        if trainer.state.fn != "fit":
            self._images += batch_length(batch)
        elif trainer.sanity_checking:
            return
        if self._due(trainer, now):
            counts = list(totals)
            done, total = sum(counts[:loader]) + index + 1, sum(counts)
            left = (total - done) * (now - self._began) / done
            speed = self._images * trainer.world_size / max(now - self._began, 1e-9)
            rate = "" if trainer.state.fn == "fit" else f" · {speed:.3g} img/s"
            self._print(f"{what} batch {done:.0f}/{total:.0f}{rate} · ETA {duration(left)}")

    def _prints(self, trainer: pl.Trainer) -> bool:
        return trainer.is_global_zero and not trainer.sanity_checking and not shows_bar(trainer)

    def _due(self, trainer: pl.Trainer, now: float) -> bool:
        return now - self._printed >= self.every_seconds and self._prints(trainer)

    def _print(self, line: str) -> None:
        print(line, flush=True)
        self._printed = time.monotonic()


class Window:
    """Images, and seconds without a batch, since a moment.

    Args:
        start: the moment, on the monotonic clock.
    """

    def __init__(self, start: float) -> None:
        self.start, self.images, self.waited = start, 0, 0.0

    def speed(self, now: float) -> dict[str, float]:
        """Images a second, share of the time without a batch, and peak memory."""
        elapsed = max(now - self.start, 1e-9)
        return {
            "images_per_second": self.images / elapsed,
            "data_wait": min(1.0, self.waited / elapsed),
            "memory_gb": peak_memory() / 1e9,
        }


def batch_length(batch: Any) -> int:
    """Images in a batch: rows of its first tensor."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 1
    values = batch.values() if isinstance(batch, Mapping) else batch
    return next((batch_length(value) for value in values if isinstance(value, Tensor)), 0)


def trainable(module: nn.Module) -> int:
    """Number of the parameters that have gradients."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def peak_memory() -> float:
    """Bytes: the most that tensors took on the GPU, or the process on a CPU."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated())
    scale = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)


def _metrics(trainer: pl.Trainer, prefix: str = "") -> str:
    """The metrics of the progress bar, each after a separator."""
    values = {name: value for name, value in trainer.progress_bar_metrics.items() if name.startswith(prefix)}
    return "".join(f" · {name} {value:.4g}" for name, value in values.items() if isinstance(value, float | int))
