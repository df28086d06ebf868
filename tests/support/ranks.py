"""Several ranks on one machine, over gloo."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_on_ranks(function: Callable[[int], Any], directory: Path, world_size: int = 2) -> list[Any]:
    """What ``function(rank)`` returns on each rank; it must be importable, as every rank is a new process."""
    mp.spawn(_rank, args=(function, directory, world_size), nprocs=world_size)
    return [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _rank(rank: int, function: Callable[[int], Any], directory: Path, world_size: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory / 'meeting'}", rank=rank, world_size=world_size)
    torch.save(function(rank), directory / f"{rank}.pt")
    dist.destroy_process_group()
