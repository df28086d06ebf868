"""The random numbers of training, kept in the checkpoint."""

import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

KEY = "random_state"


class RandomState(Callback):
    """Carries torch's, CUDA's, numpy's and python's random states of every rank from one training step to the next.

    The states are taken at the end of a training batch and put back at the start of the following one, in the same
    process or, through the checkpoint, in a later one. So neither a resume nor anything between two batches
    (validation, a new epoch's workers, drawing samples) changes what training draws.

    `seed_everything` gives all ranks one seed, so that they build equal weights. From the first step on each draws
    numbers of its own: with those of another, ranks would drop and disturb the same places of different images.

    Data are loaded ahead of the step, hence not covered: they must be a function of (seed, epoch, index).
    """

    def __init__(self) -> None:
        self._states: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the first states, unless the checkpoint has brought some; rank 0 goes on with those it has."""
        if self._states is None:
            if trainer.global_rank > 0:
                _seed_for(trainer.global_rank)
            self._states = take_states(pl_module.device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Go on where the previous batch ended."""
        if self._states is not None:
            put_states(self._states, pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the states, ahead of the callbacks that save checkpoints (Lightning calls those last)."""
        self._states = take_states(pl_module.device)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the states of all ranks into the checkpoint; every rank calls this."""
        states: list[dict[str, Any] | None] = [self._states]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            dist.all_gather_object(states, self._states)
        if None not in states:
            checkpoint[KEY] = states

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep this rank's states for the next training batch."""
        states = checkpoint.get(KEY)
        if states is None:
            return
        if len(states) != trainer.world_size:
            rank_zero_warn(
                f"The checkpoint holds the random states of {len(states)} rank(s) and this run has "
                f"{trainer.world_size}: training goes on, but not bit for bit as it would have."
            )
            return
        self._states = states[trainer.global_rank]


def _seed_for(rank: int) -> None:
    seed = int(np.random.SeedSequence((torch.initial_seed(), rank)).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # CUDA as well


def take_states(device: torch.device) -> dict[str, Any]:
    """The random states of this process as tensors and plain data, which weights_only=True loads."""
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
    """Undo `take_states`; a CUDA state stays unused on another device."""
    torch.set_rng_state(states["torch"].cpu())
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
