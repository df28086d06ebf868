"""A callback that records what a long run uses."""

from __future__ import annotations

import os
import resource
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from polytoken import records

USED = "used.json"


class Watch(pl.Callback):
    """Writes memory, open files, threads and time a step to `used.json`, `count` times in a run.

    Memory is resident, in MiB, of this process (`memory`) and of its data workers together (`workers`). Time is that of
    the clock (`step`) and of the processor (`cpu`), in ms a step since the last record.
    """

    def __init__(self, count: int = 40) -> None:
        self.count = count
        self.seen: list[dict[str, Any]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        steps = trainer.global_step - self._step
        if steps < max(1, trainer.max_steps // self.count):
            return
        workers = _children(os.getpid())
        self.seen.append(
            {
                "step": trainer.global_step,
                "memory": _resident(os.getpid()),
                "workers": sum(map(_resident, workers)),
                "processes": len(workers),
                "files": len(os.listdir("/proc/self/fd")),
                "threads": len(os.listdir("/proc/self/task")),
                "ms": (time.monotonic() - self._clock) / steps * 1000,
                "cpu_ms": (time.process_time() - self._cpu) / steps * 1000,
            }
        )
        records.write(Path(trainer.default_root_dir) / USED, self.seen)
        self._begin(trainer)

    def _begin(self, trainer: pl.Trainer) -> None:
        self._step, self._clock, self._cpu = trainer.global_step, time.monotonic(), time.process_time()


def _resident(process: int) -> float:
    with suppress(OSError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    return 0.0


def _children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]
