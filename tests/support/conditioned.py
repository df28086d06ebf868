"""Adam that does not magnify rounding: a gradient near zero gives an update near zero."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from lightning_modules import OptimizerConfig


@contextmanager
def conditioned() -> Iterator[None]:
    """All optimizers of OptimizerConfig have an epsilon of 1."""
    build = OptimizerConfig.build

    def built(*arguments: object, **options: object) -> torch.optim.Optimizer:
        optimizer = build(*arguments, **options)
        for group in optimizer.param_groups:
            group["eps"] = 1.0
        return optimizer

    with mock.patch.object(OptimizerConfig, "build", built):
        yield
