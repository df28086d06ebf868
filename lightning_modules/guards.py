"""What stops a run before it spoils itself: values not finite, settings that would be ignored, codes there are not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor

from polytoken.errors import RunError, UserError
from polytoken.tokenizers import Tokenizer

logger = logging.getLogger(__name__)

PRECISIONS = ("32-true", "bf16-mixed")  # fp16 needs a gradient scaler, which two optimizers cannot share


class NonFiniteError(RunError):
    """Too many steps in a row had a loss or gradient that is not finite."""


class NonFiniteGuard:
    """Counts updates in a row whose values are not finite; such an update must be left out, not applied.

    One guard a network: call :meth:`accept` on what may break, :meth:`reset` once an update was applied.

    Args:
        max_in_a_row: how many are borne before :class:`NonFiniteError`.
    """

    def __init__(self, max_in_a_row: int) -> None:
        self.max_in_a_row = max_in_a_row
        self.in_a_row = 0

    def accept(self, values: Mapping[str, Tensor], step: int) -> bool:
        """Whether all values are finite; if not, name step, terms and ranks, and give up after too many in a row.

        Under several ranks, every rank must call it, and one rank's failure rejects the step on all.
        """
        finite = torch.stack([torch.isfinite(value.detach()).all() for value in values.values()])
        bad_ranks = (~finite.all()).float()
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if several:
            dist.all_reduce(bad_ranks)
        if bad_ranks.item() == 0:
            return True
        self.in_a_row += 1
        names = ", ".join(name for name, is_finite in zip(values, finite.tolist(), strict=True) if not is_finite)
        message = f"step {step}: {_of_ranks(names) if several else names} not finite, so this step was left out"
        if not several or dist.get_rank() == 0:
            logger.warning("%s (%d in a row, %d allowed)", message, self.in_a_row, self.max_in_a_row)
        if self.in_a_row > self.max_in_a_row:
            raise NonFiniteError(
                f"{message}; {self.in_a_row} in a row is more than max_nonfinite_steps={self.max_in_a_row}. "
                "The last checkpoint is good and stays. With a lower learning rate, start under another run.stage"
            )
        return False

    def reset(self) -> None:
        """An update was applied: the row of failures, if there was one, is over."""
        self.in_a_row = 0


def _of_ranks(names: str) -> str:
    """What is not finite on each rank; every rank must call it."""
    gathered: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(gathered, names)
    return "; ".join(f"{names} on rank {rank}" for rank, names in enumerate(gathered) if names)


def check_manual_trainer(trainer: pl.Trainer) -> None:
    """Refuse trainer settings that manual optimization cannot honour, naming what stands in for them.

    Raises:
        ValueError: on accumulate_grad_batches, gradient_clip_val, fp16, bf16-true, or FSDP of either version.
    """
    for flag, value, neutral, ours in (
        ("accumulate_grad_batches", trainer.accumulate_grad_batches, 1, "accumulate_steps"),
        ("gradient_clip_val", trainer.gradient_clip_val, None, "gradient_clip"),
    ):
        if value != neutral:
            raise UserError(
                f"trainer.{flag} is set, but this model steps its optimizers itself: "
                f"set model.init_args.{ours}={value} instead"
            )
    if str(trainer.precision) not in PRECISIONS:
        raise UserError(
            f"trainer.precision={trainer.precision} does not suit a model that steps two optimizers itself and "
            f"quantizes in float32: use {' or '.join(PRECISIONS)}"
        )
    if isinstance(trainer.strategy, FSDPStrategy):
        raise UserError(
            "trainer.strategy is FSDP version 1, which cannot step two optimizers by hand: "
            "use ddp_find_unused_parameters_true (configs/cluster/ddp.yaml)"
        )
    if isinstance(trainer.strategy, ModelParallelStrategy):
        raise UserError(
            "trainer.strategy is ModelParallelStrategy (FSDP version 2), which is for generators: a tokenizer is not "
            "sharded, use ddp_find_unused_parameters_true (configs/cluster/ddp.yaml)"
        )


def check_takes_turns(trainer: pl.Trainer) -> None:
    """Refuse to fit networks that take turns under a DDP that waits for the gradients of all of them.

    Raises:
        ValueError: if DDP does not look for unused parameters; it would fail in the second step.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters"):
        raise UserError(
            "trainer.strategy is ddp, which waits for gradients of all weights, and autoencoder and discriminator take "
            "turns: use ddp_find_unused_parameters_true (configs/cluster/ddp.yaml)"
        )


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


def check_has_codes(tokenizer: Tokenizer) -> None:
    """Refuse to predict the codes of a tokenizer that has none.

    Raises:
        ValueError: if its bottleneck is continuous.
    """
    if tokenizer.spec is None:
        raise UserError(
            "predict writes the codes of images, and this tokenizer has no codes: its bottleneck is continuous. "
            "Train one with a quantizer (fq_dual, vq, fsq, …), or read latents with tokenizer.encode(images).quantized"
        )
