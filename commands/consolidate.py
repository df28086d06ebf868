"""One file out of a sharded checkpoint: `python -m commands.consolidate runs/imagenet/stage2/fq_dual`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from artifacts.checkpoint_files import LAST, SyncedCheckpointIO, fault
from polytoken.errors import MissingFileError, UserError
from polytoken.loading import SHARDED, WHOLE, read_metadata


def consolidate(run: Path) -> Path:
    """Write `whole.ckpt` beside the sharded checkpoint of a run: weights, optimizers, averages and all the rest.

    What reads a run reads it from then on, until the run is trained further; and a run can go on from it with another
    strategy (`--ckpt_path`). It is held in memory once.

    Args:
        run: the run's directory, or the sharded checkpoint itself.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if it is not sharded, or not whole.
    """
    path = run if (run / SHARDED).exists() else run / "checkpoints" / LAST
    if not path.exists():
        raise MissingFileError(f"there is no checkpoint {path}: name a run that was trained with cluster/fsdp.yaml")
    if not path.is_dir():
        raise UserError(f"{path} is one file already: everything reads it as it is")
    if (reason := fault(path)) is not None:
        raise UserError(f"{path} cannot be read: {reason}")
    target = path.with_name(WHOLE)
    tensors = target.with_name(f"{WHOLE}.tensors")
    try:
        dcp_to_torch_save(path, tensors)
        checkpoint = torch.load(tensors, map_location="cpu", mmap=True, weights_only=True)
        optimizers = sorted(name for name in checkpoint if name.startswith("optimizer_"))
        states = [_numbered(checkpoint.pop(name)) for name in optimizers]
        SyncedCheckpointIO().save_checkpoint({**read_metadata(path), **checkpoint, "optimizer_states": states}, target)
    finally:
        tensors.unlink(missing_ok=True)
    return target


def _numbered(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state under the numbers that an optimizer gives its parameters, where it was under their names."""
    numbers: dict[str, int] = {}
    groups = []
    for group in state["param_groups"]:
        for name in group["params"]:
            numbers[name] = len(numbers)
        groups.append({**group, "params": [numbers[name] for name in group["params"]]})
    return {"state": {numbers[name]: value for name, value in state["state"].items()}, "param_groups": groups}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run's directory, or a sharded checkpoint")
    try:
        print(f"the checkpoint as one file is {consolidate(parser.parse_args(arguments).run)}")
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
