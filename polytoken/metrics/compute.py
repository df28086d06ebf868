"""Floating-point operations of a generator, counted by torch's counter on tensors without data (iFSQ section 4.1.4).

A multiply-add counts as two operations. With attention of causal models counted as half, LlamaGen-L with a head of
16,384 codes has 169.65 GFLOP an image of 256 positions, the paper's number to all digits. The paper's 161.04 for
DiT-L/2 count full attention and the layers that the blocks apply to each position. Counted here as well are the first
and the last layer, and what is computed once an image (adaLN and time): together 0.2 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from polytoken.generators.base import Generator
from polytoken.specs import Tokens, TokenSpec


class Compute(NamedTuple):
    """FLOPs of one image, two for a multiply-add; elementwise operations and look-ups count nothing.

    Attributes:
        forward: of one evaluation of all positions: of the teacher-forced loss.
        training: of forward and backward of that loss; no frozen network and no optimizer.
        attention: part of ``forward`` in the products of attention.
    """

    forward: int
    training: int
    attention: int


def image_compute(generator: Generator, halve_causal: bool = True) -> Compute:
    """Count the FLOPs of an image.

    Args:
        generator: connected, with trainable weights; on the meta device nothing is computed.
        halve_causal: count attention of causal layers as half of full attention, as iFSQ section 4.1.4 does.
    """
    device = next(generator.parameters()).device
    tokens, label = _blank(generator, device), torch.zeros(1, dtype=torch.int64, device=device)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), _AttentionByShape(halve_causal) as attention, counter:
        generator.loss(tokens, label)  # alone: with gradients, the loss computes a part of them in forward
    forward = counter.get_total_flops()
    with _AttentionByShape(halve_causal), counter:
        loss = generator.loss(tokens, label).total
        torch.autograd.grad(loss, [*generator.parameters()], allow_unused=True)
    training = counter.get_total_flops()
    # backward has four products of attention, forward two
    return Compute(forward + attention.flops, training + 3 * attention.flops, attention.flops)


class _AttentionByShape(TorchFunctionMode):
    """Counts attention from its shapes, and replaces it by elementwise operations of the same shape.

    The counter knows only some of torch's kernels, counts masked products as full ones, and adds what flash attention
    recomputes in backward.
    """

    def __init__(self, halve_causal: bool) -> None:
        super().__init__()
        self.flops = 0
        self._halve_causal = halve_causal

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        return func(*args, **kwargs)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, is_causal: bool = False, **_: Any) -> Tensor:
        products = 2 * prod(queries.shape[:-1]) * keys.shape[-2] * (queries.shape[-1] + values.shape[-1])
        self.flops += products // 2 if is_causal and self._halve_causal else products
        return queries.mean(-1, keepdim=True) * keys.mean((-2, -1), keepdim=True) * values.mean(-2, keepdim=True)


def _blank(generator: Generator, device: torch.device) -> Tokens:
    spec = generator.spec
    if isinstance(spec, TokenSpec):
        shape = (1, spec.num_sub_codes, spec.num_positions)
        return Tokens(codes=torch.zeros(shape, dtype=torch.int64, device=device))
    return Tokens(latents=torch.zeros(1, spec.channels, *spec.grid, device=device))
