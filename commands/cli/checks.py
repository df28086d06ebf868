"""Mistakes that show only when configuration, checkpoint and model are put side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.checkpoint.run_record import differences, recorded_model
from polytoken.errors import UserError

SHOWN = 5

# What trades memory for time and changes no number but by rounding: a run that ran out of memory goes on with another.
NO_NUMBER_CHANGES = (
    ".trunk.checkpointing",  # activations kept, or computed again
    ".trunk.compile",  # kernels
    ".init_args.max_matrix_elements",  # size of the chunks that a look-up works in
)


def check_drift(checkpoint: Path, model: dict[str, Any], subcommand: str) -> None:
    """Compare the model section of a checkpoint with the one of this command.

    Raises UserError before fit if they differ in more than NO_NUMBER_CHANGES; the other commands go on with a
    warning, for they may sample or measure in another way. A checkpoint without a record is only warned of.
    """
    recorded = recorded_model(checkpoint)
    if recorded is None:
        rank_zero_warn(f"{checkpoint} does not say which model section it was trained with: nothing is compared.")
        return
    changed = [change for change in differences(recorded, model) if not change[0].endswith(NO_NUMBER_CHANGES)]
    if not changed:
        return
    lines = [f"  {key}: {_short(old)} -> {_short(new)}" for key, old, new in changed[:SHOWN]]
    if len(changed) > SHOWN:
        lines.append(f"  ... and {len(changed) - SHOWN} more")
    text = "\n".join([f"{checkpoint} was trained with another model section (there -> here):", *lines])
    if subcommand == "fit":
        raise UserError(
            f"{text}\nRestore these values to go on with the run, or start another one: set run.stage to a new name."
        )
    rank_zero_warn(text)


def check_manual_optimization(model: LightningModule, trainer: Trainer) -> None:
    """Raise UserError if the module rejects the trainer: see ``check_trainer`` of the LightningModules."""
    check = getattr(model, "check_trainer", None)
    if check is not None:
        check(trainer)


def check_shards(checkpoint: str | None, trainer: Trainer) -> None:
    """Raise UserError if a strategy that reads one file is given a sharded checkpoint."""
    path = Path(checkpoint or "")
    if checkpoint and path.is_dir() and not isinstance(trainer.strategy, ModelParallelStrategy):
        run = path.parent.parent
        raise UserError(
            f"{path} is a sharded checkpoint, which only ModelParallelStrategy reads (configs/cluster/fsdp.yaml): "
            f"go on with that, or make one file of it (make consolidate RUN={run}) and pass --ckpt_path "
            f"{path.with_name('whole.ckpt')}"
        )


def check_prediction(model: LightningModule, subcommand: str) -> None:
    """Raise UserError if predict is asked for the codes of a tokenizer that has none."""
    from lightning_modules import TokenizerModule

    if subcommand == "predict" and isinstance(model, TokenizerModule):
        model.tokenizer.require_codes()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
