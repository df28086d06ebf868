"""Several ranks on one machine, over gloo."""

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

SECONDS = 240  # a deadlock fails the test


def run_on_ranks(function: Callable[[int], Any], directory: Path, world_size: int = 2) -> list[Any]:
    """Results of ``function(rank)`` on all ranks; it must be importable, since every rank is a new process.

    The working directory is ``directory``, and a Trainer finds the ranks as torchrun would have started them.
    """
    mp.start_processes(_rank, (function, directory, world_size), world_size, start_method="forkserver")
    return [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def two_ranks() -> dict[str, Any]:
    """Settings of a Trainer which starts two ranks itself."""
    return {"devices": 2, "strategy": DDPStrategy(start_method="forkserver", timeout=timedelta(seconds=SECONDS))}


def _rank(rank: int, function: Callable[[int], Any], directory: Path, world_size: int) -> None:
    signal.alarm(SECONDS)
    os.chdir(directory)
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in names.items()})
    rank_zero_only.rank = rank  # which a fresh process reads from the environment at import
    os.environ.update(TORCHELASTIC_RUN_ID="test", GROUP_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{directory / 'meeting'}", rank=rank, world_size=world_size)
    torch.save(function(rank), directory / f"{rank}.pt")
    dist.destroy_process_group()
