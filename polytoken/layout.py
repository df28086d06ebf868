"""Names of the checkpoints in a run's directory."""

from __future__ import annotations

from pathlib import Path

CHECKPOINTS = "checkpoints"  # folder in a run's directory
LAST = "last.ckpt"
SHARDED = "meta.pt"  # Lightning writes it into a sharded checkpoint, which is a directory


def whole_of(sharded: Path) -> Path:
    """File that commands.consolidate makes of a sharded checkpoint; for step_9.ckpt it is whole_step_9.ckpt."""
    return sharded.with_name("whole.ckpt" if sharded.name == LAST else f"whole_{sharded.name}")
