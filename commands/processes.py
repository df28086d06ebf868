"""Processes of a configuration, and the global batch of one update.

`data.batch_size` counts per process, so what an update sees follows from three settings together.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

# where a run is computed, not what
MACHINE_SETTINGS = ("accelerator", "devices", "num_nodes", "strategy", "plugins", "use_distributed_sampler")


class GlobalBatch(NamedTuple):
    """Rows of one update, as factors."""

    share: int  # rows of a process in a batch
    processes: int | None  # None if the machine decides
    accumulated: int  # batches of an update

    @property
    def rows(self) -> int:
        """Rows of an update; those of one process if the machine decides on their number."""
        return self.share * (self.processes or 1) * self.accumulated

    def __str__(self) -> str:
        factors = [f"{self.processes} processes"] if self.processes not in (None, 1) else []
        factors += [f"{self.accumulated} accumulated"] if self.accumulated != 1 else []
        product = f" ({' × '.join([str(self.share), *factors])})" if factors else ""
        return f"{self.rows}{product}" + (" on each process" if self.processes is None else "")


def global_batch(config: Mapping[str, Any]) -> GlobalBatch | None:
    """The global batch of a configuration of a fit; None if its data have no `batch_size`."""
    trainer, model, data = (config.get(name) or {} for name in ("trainer", "model", "data"))
    share = _count((data.get("init_args") or {}).get("batch_size"))
    # Lightning accumulates for models with one optimizer, and a tokenizer for itself
    counts = trainer.get("accumulate_grad_batches"), (model.get("init_args") or {}).get("accumulate_steps")
    return share and GlobalBatch(share, processes(trainer), prod(_count(count) or 1 for count in counts))


def processes(trainer: Mapping[str, Any]) -> int | None:
    """Processes of a trainer's section on all its nodes; None if the machine decides."""
    count = devices(trainer)
    return count and count * (_count(trainer.get("num_nodes")) or 1)


def take_machine(trainer: dict[str, Any]) -> int | None:
    """Remove the machine's settings from a trainer's section, and return the number of processes that they give."""
    count = processes(trainer)
    for name in MACHINE_SETTINGS:
        trainer.pop(name, None)
    return count


def devices(trainer: Mapping[str, Any]) -> int | None:
    """Devices of a node; None if the machine decides (`auto`, -1). The command line gives `8` and `0,1` as text."""
    given = trainer.get("devices", 1)
    if isinstance(given, str) and "," in given:
        given = [index for index in given.split(",") if index.strip()]
    return len(given) if isinstance(given, list) else _count(given)


def _count(value: Any) -> int | None:
    """A whole number above 0, or None."""
    return (int(text) or None) if (text := str(value)).isdecimal() else None
