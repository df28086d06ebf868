"""Convert a sharded checkpoint to one file (`make consolidate RUN=runs/imagenet/stage2/fq_dual`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from artifacts.checkpoint_files import SyncedCheckpointIO, fault
from commands.program import new_parser, run
from polytoken.errors import MissingFileError, UserError
from polytoken.layout import whole_of
from polytoken.loading import checkpoint_path, read_metadata


def consolidate(run_or_checkpoint: Path) -> Path:
    """Write a sharded checkpoint as one file next to it, with weights, optimizers and averages.

    All readers use `whole.ckpt`, made of a run's last checkpoint, until the run is trained further, and a run can
    resume from it with another strategy (`--ckpt_path`). The checkpoint is held in memory once.

    Args:
        run_or_checkpoint: the run's directory, or the sharded checkpoint itself.

    Raises:
        MissingFileError: there is no checkpoint.
        UserError: it is not sharded, or not whole.
    """
    path = checkpoint_path(run_or_checkpoint)
    if not path.exists():
        raise MissingFileError(f"there is no checkpoint {path}: name a run that was trained with cluster/fsdp.yaml")
    if not path.is_dir():
        raise UserError(f"{path} is one file already: everything reads it as it is")
    if (reason := fault(path)) is not None:
        raise UserError(f"{path} cannot be read: {reason}. Restore it, or name an earlier checkpoint of the run")
    target = whole_of(path)
    tensors = target.with_name(f"{target.name}.tensors")
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
    """The state of an optimizer keyed by parameter number, as optimizers do, instead of by parameter name."""
    numbers: dict[str, int] = {}
    groups = []
    for group in state["param_groups"]:
        for name in group["params"]:
            numbers[name] = len(numbers)
        groups.append({**group, "params": [numbers[name] for name in group["params"]]})
    return {"state": {numbers[name]: value for name, value in state["state"].items()}, "param_groups": groups}


def main(arguments: list[str] | None = None) -> None:
    """Write the file, and print its path."""
    parser = new_parser("commands.consolidate", __doc__)
    parser.add_argument("run", type=Path, help="a run's directory, or a sharded checkpoint")
    run(parser, lambda given: print(f"the checkpoint as one file is {consolidate(given.run)}"), arguments)


if __name__ == "__main__":
    main()
