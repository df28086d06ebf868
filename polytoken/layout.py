"""Names of the checkpoints in a run's directory."""

from __future__ import annotations

CHECKPOINTS = "checkpoints"  # folder in a run's directory
LAST = "last.ckpt"
WHOLE = "whole.ckpt"  # written by commands.consolidate from a sharded checkpoint
SHARDED = "meta.pt"  # Lightning writes it into a sharded checkpoint, which is a directory
