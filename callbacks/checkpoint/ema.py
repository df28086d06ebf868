"""Exponential moving average of the weights of named sub-modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from polytoken.errors import RunError, UserError
from polytoken.parallelize import placed_like, whole
from polytoken.ranges import below_one


class EMA(pl.Callback):
    """Keeps a float32 average of the parameters of some sub-modules; buffers are copied, not averaged.

    Validation, test and prediction run with the average. The decay after n updates is min(decay, (1 + n) / (10 + n)).
    The average is in the callback's checkpoint state, and the module's state dict keeps the raw weights. The average of
    sharded weights is sharded alike, and gathered for a checkpoint.

    Lightning's EMAWeightAveraging copies the whole module (frozen teachers and metrics too), fails on weights that
    FSDP2 shards, averages integer buffers, and puts the average in the place of the raw weights in the checkpoint.

    Args:
        modules: dotted names below the LightningModule, e.g. ``tokenizer``.
        decay: of the running average per optimizer step, once warm.
        warmup: whether the decay warms up.
    """

    def __init__(self, modules: Sequence[str] = ("tokenizer",), decay: float = 0.9999, warmup: bool = True) -> None:
        below_one(self, decay=decay)
        self.modules = tuple(modules)
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self._average: dict[str, Tensor] = {}
        self._last_step = -1
        self._raw: dict[str, Tensor] | None = None

    @property
    def has_average(self) -> bool:
        """True if there is an average; a checkpoint may hold none."""
        return bool(self._average)

    def state_dict(self) -> dict[str, Any]:
        """Gather the averages; with sharded weights, every rank must call this."""
        average = {name: whole(tensor).cpu() for name, tensor in self._average.items()}
        return {"updates": self.updates, "average": average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the averages; raises UserError if they are none."""
        updates, average = state_dict.get("updates"), state_dict.get("average")
        tensors = average.values() if isinstance(average, dict) else [None]
        if not isinstance(updates, int) or not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise UserError("the averages (callbacks.EMA) in the checkpoint are broken: name an earlier checkpoint")
        self.updates, self._average = updates, average

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Place the averages, or start from the current weights; Lightning has restored sharded runs only now."""
        self._last_step = trainer.global_step
        if not self._average:
            weights = self._tensors(pl_module)
            self._average = {name: _as_float32(tensor).clone() for name, tensor in weights.items()}
        tensors = self._averaged(pl_module)
        self._average = {name: placed_like(self._average[name], tensor) for name, tensor in tensors.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Update the average once per optimizer step, however many batches it accumulated."""
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        parameters = set(self._parameter_names(pl_module))
        averaged, live = [], []
        for name, tensor in self._tensors(pl_module).items():
            if name in parameters:
                averaged.append(self._average[name])
                live.append(_as_float32(tensor))
            else:
                self._average[name].copy_(tensor)
        torch._foreach_lerp_(averaged, live, 1 - decay)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the average into the model."""
        self._swap_in(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the raw weights."""
        self._swap_out(pl_module)

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the raw weights after an exception during validation."""
        self._swap_out(pl_module)

    @torch.no_grad()
    def _swap_in(self, pl_module: pl.LightningModule) -> None:
        if not self._average or self._raw is not None:
            return
        tensors = self._averaged(pl_module)
        self._raw = {name: tensor.clone() for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            tensor.copy_(placed_like(self._average[name], tensor))

    @torch.no_grad()
    def _swap_out(self, pl_module: pl.LightningModule) -> None:
        if self._raw is None:
            return
        for name, tensor in self._tensors(pl_module).items():
            tensor.copy_(self._raw[name])
        self._raw = None

    def _averaged(self, pl_module: pl.LightningModule) -> dict[str, Tensor]:
        """The tensors whose averages these are; raises RunError if a checkpoint has brought those of others."""
        tensors = self._tensors(pl_module)
        if missing := tensors.keys() ^ self._average.keys():
            raise RunError(
                f"EMA in the checkpoint covers other weights than its modules {list(self.modules)}: "
                f"{sorted(missing)[:3]}. Give callbacks.EMA the modules that the run was trained with"
            )
        return tensors

    def _submodules(self, pl_module: pl.LightningModule) -> Iterator[tuple[str, nn.Module]]:
        for name in self.modules:
            try:
                yield name, pl_module.get_submodule(name)
            except AttributeError as error:
                raise UserError(f"EMA: {type(pl_module).__name__} has no sub-module {name!r}") from error

    def _parameter_names(self, pl_module: pl.LightningModule) -> Iterator[str]:
        for prefix, module in self._submodules(pl_module):
            yield from (f"{prefix}.{name}" for name, _ in module.named_parameters())

    def _tensors(self, pl_module: pl.LightningModule) -> dict[str, Tensor]:
        return {
            f"{prefix}.{name}": tensor.detach()
            for prefix, module in self._submodules(pl_module)
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
        }


def _as_float32(tensor: Tensor) -> Tensor:
    """Floating tensors in float32; integer buffers as they are."""
    return tensor.float() if tensor.is_floating_point() else tensor
