"""Random states of training in the checkpoint."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from polytoken.errors import UserError
from polytoken.loading import RANDOM_STATE


class RandomState(Callback):
    """Carries the random states of torch, CUDA, numpy and Python from one training step to the next, on every rank.

    The states are taken at the end of a training batch and restored at the start of the next one, in the same process
    or, through the checkpoint, in a later one. Neither a resume nor anything between two batches (validation, the
    workers of a new epoch, sampling) changes the numbers that training draws. A validation starts from them too, so
    that one that is repeated, in the fit or after it, draws the same numbers.

    `seed_everything` gives all ranks one seed, so that they build equal weights. From the first step on, each rank
    draws its own numbers; otherwise all ranks would apply one dropout mask to different images.

    Data are loaded ahead of the step, hence not covered: they must be a function of (seed, epoch, index).

    Lightning's functions for this (lightning.fabric.utilities.seed) are private, and torch.load(weights_only=True)
    rejects their numpy state.
    """

    def __init__(self) -> None:
        self._states: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the first states, unless the checkpoint has restored some; rank 0 keeps its seed."""
        if self._states is None:
            if trainer.global_rank > 0:
                _seed_for(trainer.global_rank)
            self._states = take_states(pl_module.device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Restore the states at the end of the previous batch, after which a resumed run may validate first."""
        if self._states is not None:
            put_states(self._states, pl_module.device)

    on_train_batch_start = on_validation_start = on_train_start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the states; Lightning calls the callbacks that save checkpoints later."""
        self._states = take_states(pl_module.device)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Gather the states of all ranks; every rank must call this."""
        states: list[dict[str, Any] | None] = [self._states]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            dist.all_gather_object(states, self._states)
        if None not in states:
            checkpoint[RANDOM_STATE] = states

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the states of this rank for the next training batch."""
        states = checkpoint.get(RANDOM_STATE)
        if states is None or trainer.state.fn != "fit":
            return
        if not isinstance(states, list):
            raise UserError(f"{RANDOM_STATE} in the checkpoint is no list of states: name an earlier checkpoint")
        if len(states) != trainer.world_size:
            rank_zero_warn(
                f"The checkpoint holds the random states of {len(states)} rank(s) and this run has "
                f"{trainer.world_size}: training continues, but not bit for bit."
            )
            return
        self._states = states[trainer.global_rank]


def _seed_for(rank: int) -> None:
    seed = int(np.random.SeedSequence((torch.initial_seed(), rank)).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # CUDA as well


def take_states(device: torch.device) -> dict[str, Any]:
    """Random states of this process as tensors and plain data, which weights_only=True loads."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    states = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def put_states(states: dict[str, Any], device: torch.device) -> None:
    """Restore the states of `take_states`; a CUDA state is ignored on another device."""
    try:
        torch.set_rng_state(states["torch"].cpu())
        version, words, gauss = states["python"]
        random.setstate((version, tuple(words), gauss))
        name, keys, *rest = states["numpy"]
        np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
        if device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"].cpu(), device)
    except (AttributeError, LookupError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"the random states in the checkpoint are broken ({type(error).__name__}: {error}): name an earlier one"
        ) from error
