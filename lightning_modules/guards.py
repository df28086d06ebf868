"""Checks that reject unsupported trainer settings."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from polytoken.errors import UserError


def check_generator_strategy(trainer: pl.Trainer, goes_on_from: str | Path | None) -> None:
    """Refuse what would train a generator wrongly.

    Args:
        trainer: before or after it has set anything up.
        goes_on_from: the checkpoint that a fit resumes from.

    Raises:
        ValueError: on FSDP version 1, sizes other than data-parallel on all ranks, and a sharded run that would go on
            from an unsharded one.
    """
    strategy = trainer.strategy
    if isinstance(strategy, FSDPStrategy):
        raise UserError(
            "trainer.strategy is FSDP version 1, which cannot clip the norm of gradients and adds them up in bfloat16: "
            "use ModelParallelStrategy (configs/cluster/fsdp.yaml) or ddp"
        )
    if not isinstance(strategy, ModelParallelStrategy):
        return
    ranks = trainer.num_devices * trainer.num_nodes
    sizes = strategy._data_parallel_size, strategy._tensor_parallel_size
    if sizes != (ranks, 1):
        raise UserError(
            f"trainer.strategy has data_parallel_size {sizes[0]} and tensor_parallel_size {sizes[1]}, and a generator "
            f"is sharded over data alone, here on {ranks} devices: set trainer.strategy.init_args.data_parallel_size "
            f"to {ranks} and tensor_parallel_size to 1"
        )
    if trainer.state.fn == "fit" and goes_on_from is not None and not Path(goes_on_from).is_dir():
        raise UserError(
            f"{goes_on_from} is of a run that was not sharded, and Lightning would hand its optimizer's moments "
            "to other weights: go on with the strategy it began with, or begin another run with its weights (init_from)"
        )


def check_precision(trainer: pl.Trainer) -> None:
    """Refuse fp16, whose gradient scaler makes non-finite gradients of its own.

    Raises:
        ValueError: on 16-mixed and 16-true.
    """
    if str(trainer.precision) in ("16-mixed", "16-true"):
        raise UserError(f"trainer.precision={trainer.precision} is fp16, which is not supported: use bf16-mixed")
