"""Compiled sampling: one graph for all steps of equal shapes, in fixed places, and eager mode as fallback."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polytoken.errors import first_line
from polytoken.sampling import Draw
from polytoken.transformer import RotaryCache

Compile = bool | Literal["auto"]
"""Setting of compiled sampling: on, off, or on a GPU alone (``auto``), where most time goes into kernel launches."""

MOST_GRAPHS = 64
"""Largest number of graphs of one step, each for a number of rows or a scale; torch's default is 8."""

FEWEST_PACKED_ROWS = 8
"""Rows from which float32 weights are packed: with 2 rows it made the graph slower, with 16 a third faster."""

log = logging.getLogger(__name__)


def compiles(setting: Compile, device: torch.device) -> bool:
    """True if sampling on the device is compiled."""
    return device.type == "cuda" if setting == "auto" else setting


def packs_weights(rows: int, dtype: torch.dtype) -> bool:
    """True if packed weights make the products of a position faster on a CPU: not with few rows in float32."""
    return rows >= FEWEST_PACKED_ROWS or dtype != torch.float32


class CompiledStep:
    """A step of sampling under ``torch.compile``, as one graph; in eager mode once the compiler has failed.

    A GPU replays it as a CUDA graph, which needs no copies of tensors that :func:`fix` has marked. On a CPU a graph can
    hold the weights as constants, packed for products with few rows; a change of a parameter discards such graphs.

    Args:
        step: reads the parameters of ``module``, and does not synchronise with the host.
        module: a generator.
    """

    def __init__(self, step: Callable[..., Any], module: nn.Module) -> None:
        self.step = step
        self.module = module
        self.device = next(module.parameters()).device
        mode = "reduce-overhead" if self.device.type == "cuda" else None
        self.compiled: Callable[..., Any] | None = torch.compile(step, fullgraph=True, dynamic=False, mode=mode)
        self.weights: list[tuple[int, int]] = []

    def __call__(self, *arguments: Any) -> Any:
        """Call the step, inside of :meth:`running`."""
        if self.compiled is not None:
            try:
                if self.device.type == "cuda":
                    torch.compiler.cudagraph_mark_step_begin()
                return self.compiled(*arguments)
            except Exception as error:  # noqa: BLE001 - compilers fail in many ways, and the eager step needs none
                log.warning("torch.compile failed, and sampling continues in eager mode: %s", first_line(error))
                self.compiled = None
        return self.step(*arguments)

    @contextmanager
    def running(self, packs: bool = False) -> Iterator[None]:
        """Set how the step is compiled.

        Args:
            packs: pack the weights on a CPU, a copy for each graph.
        """
        packs = packs and self.device.type == "cpu"
        if self.weights and self.weights != self._versions():
            torch.compiler.reset()  # of the whole process: graphs hold the earlier weights
            self.weights = []
        if packs and not self.weights:
            self.weights = self._versions()
        with ExitStack() as settings:
            settings.enter_context(
                torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS, accumulated_recompile_limit=4 * MOST_GRAPHS)
            )
            if packs:
                settings.enter_context(torch._inductor.config.patch(freezing=True))
            yield

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Leave the step out of copies of a generator: it is bound to this one."""
        return type(None), ()

    def _versions(self) -> list[tuple[int, int]]:
        """Return what a change of any parameter changes; writing through ``data`` does not show."""
        return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.module.parameters()]


def fix(*tensors: Tensor) -> None:
    """Tell CUDA graphs that tensors stay where they are."""
    for tensor in tensors:
        if tensor.is_cuda:
            torch._dynamo.mark_static_address(tensor)


class DecodingState:
    """All that a step of decoding reads and writes in place, allocated once for a number of images.

    Attributes:
        position: () int64, of the next step.
        features: (B', 1, dim), its input; under guidance B' is 2B, the rows of the null class last; else B.
        codes: (B, k, N), those written so far.
        draw: draws the codes.
        trunk_cache: of B' rows.
        head_cache: of B' rows, where the head has one.
    """

    def __init__(
        self,
        position: Tensor,
        features: Tensor,
        codes: Tensor,
        draw: Draw,
        trunk_cache: RotaryCache,
        head_cache: RotaryCache | None,
    ) -> None:
        self.position, self.features, self.codes, self.draw = position, features, codes, draw
        self.trunk_cache, self.head_cache = trunk_cache, head_cache
        noise = draw.noise
        fix(position, features, codes, noise.keys, noise.stride, draw.scales, draw.wrong, *trunk_cache.tensors())
        fix(*(() if head_cache is None else head_cache.tensors()))

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Leave the state out of copies of a generator."""
        return type(None), ()

    def __len__(self) -> int:
        return len(self.codes)

    @cached_property
    def first_half(self) -> DecodingState:
        """Return the state of the rows without the null class, in the same places."""
        batch = len(self)
        head_cache = self.head_cache and self.head_cache.rows(batch)
        return DecodingState(
            self.position, self.features[:batch], self.codes, self.draw, self.trunk_cache.rows(batch), head_cache
        )

    def serves(self, features: Tensor, draw: Draw, dtype: torch.dtype) -> bool:
        """True if it has the rows for features and draws, on their device, and caches of a type."""
        batch = len(draw.noise)
        fits = batch <= len(self) and features.shape[0] // batch == self.features.shape[0] // len(self)
        like = self.features
        same = (features.device, features.dtype, dtype) == (like.device, like.dtype, self.trunk_cache.keys[0].dtype)
        return fits and same

    def begin(self, features: Tensor, draw: Draw) -> None:
        """Start with the draws of as many images or fewer, whose features are (B', 1, dim).

        The remaining rows also write codes; ignore them.
        """
        given, halves = len(draw.noise), self.features.shape[0] // len(self)
        self.position.zero_()
        self.features.unflatten(0, (halves, -1))[:, :given].copy_(features.unflatten(0, (halves, -1)))
        self.draw.sampler = draw.sampler
        self.draw.noise.keys[:given].copy_(draw.noise.keys)
        self.draw.scales.copy_(draw.scales)
        self.draw.wrong.zero_()
