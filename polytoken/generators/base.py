"""Interface of generators: networks that learn the distribution of a tokenizer's codes or latents, given a class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from polytoken.errors import UserError
from polytoken.generators.decoding import Compile
from polytoken.sampling import CategoricalSampler, Guidance, RowNoise
from polytoken.specs import LatentSpec, Tokens, TokenSpec

SubCode = int | Literal["all"] | None
"""The sub-code of this generator that an earlier stage was trained on: one, all in the same order, or none."""


class Codec(Protocol):
    """The frozen part of a tokenizer that maps codes to vectors."""

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Return the decoder's input (B, C, h, w) for codes (B, k, N)."""
        ...

    @property
    def channels(self) -> int:
        """C of the vectors."""
        ...

    def channels_of(self, sub_code: int) -> slice:
        """Channels of the vectors that a sub-code of the generator determines."""
        ...

    def partial_sums(self, codes: Tensor) -> Iterator[Tensor]:
        """Yield the vectors (B, C, h, w) after each scale, for the codes (B, k, n) of all or the first scales."""
        ...


class TrunkSettings(Protocol):
    """Settings that the trunks of all families have."""

    @property
    def checkpointing(self) -> bool: ...

    @property
    def compile(self) -> bool: ...

    @property
    def class_dropout(self) -> float: ...


@dataclass(frozen=True)
class GeneratorLoss:
    """Training loss of a batch.

    Args:
        total: float32 scalar that training minimises.
        parts: float32 scalars by name. In nats they are the k sub-codes "0", "1", …, each a mean over images and
            positions.
        unit: "nats" for a negative log-likelihood, another name otherwise.
        is_bound: the likelihood is only bounded: ``parts`` are upper bounds of the nats.
        statistics: further scalars to log, such as the noise rate; nothing depends on them.
        hidden: outputs (B, N, width) of the tapped blocks of the trunk by their number, counted from 1: the residual
            stream without a norm. Row i belongs to position i of the grid, row by row.
        replaced: (B, N) bool, positions of which the trunk read other codes than the target's; None if it read those.
    """

    total: Tensor
    parts: dict[str, Tensor]
    unit: str
    is_bound: bool = False
    statistics: dict[str, Tensor] = field(default_factory=dict)
    hidden: dict[int, Tensor] = field(default_factory=dict)
    replaced: Tensor | None = None

    @property
    def name(self) -> str:
        """Name of the logged curve: ``nll`` or ``nll_bound`` for nats, otherwise ``loss``."""
        if self.unit != "nats":
            return "loss"
        return "nll_bound" if self.is_bound else "nll"


class Generator(nn.Module, ABC):
    """A generative model of tokens given a class.

    The constructor takes the settings of a configuration and creates no parameters; :meth:`connect` creates them for a
    data set. Afterwards ``spec`` and ``num_classes`` describe what is generated.

    Args:
        trunk: settings of the trunk, kept as ``config``; None for a family without one.
    """

    spec: TokenSpec | LatentSpec
    num_classes: int
    models: ClassVar[Literal["codes", "latents"]] = "codes"
    """Kind of tokens that :meth:`loss` reads and :meth:`sample` returns."""
    is_causal: ClassVar[bool] = False
    """Hidden state i has seen the tokens before i alone; otherwise it has seen all."""
    sampler_type: ClassVar[type[Guidance]] = CategoricalSampler
    """Type of the rules that :meth:`sample` takes."""
    forward_methods: ClassVar[tuple[str, ...]] = ("loss", "sample")
    """Methods that compute with the parameters, which FSDP2 must gather before each call."""
    checkpointing: bool = False
    """Recompute the blocks' activations in the backward pass (polytoken.parallelize)."""
    compile_blocks: bool = False
    """Compile each block (polytoken.parallelize)."""
    compile_decoding: Compile = False
    """Compile the steps of :meth:`sample`."""
    class_dropout: float = 0.0
    """Share of labels that training replaces by the null class, which guidance reads."""
    needs_codec: ClassVar[bool] = False
    """Call :meth:`connect` with the codec of the tokenizer, which is loaded for this purpose."""

    def __init__(self, trunk: TrunkSettings | None = None) -> None:
        super().__init__()
        if trunk is not None:
            self.config = trunk
            self.checkpointing = trunk.checkpointing
            self.compile_blocks = trunk.compile
            self.class_dropout = trunk.class_dropout

    @property
    @abstractmethod
    def depth(self) -> int:
        """Blocks of the trunk, which :meth:`loss` can tap."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Channels of the trunk's residual stream."""

    @property
    @abstractmethod
    def hidden_grid(self) -> tuple[int, int]:
        """Grid (h, w) of the trunk's N = h·w positions."""

    @abstractmethod
    def connect(self, spec: TokenSpec | LatentSpec, num_classes: int, codec: Codec | None = None) -> None:
        """Create the parameters.

        Args:
            spec: a TokenSpec for a family that ``models`` codes, a LatentSpec for one of latents.
            num_classes: classes; labels are 0 … num_classes − 1.
            codec: the tokenizer's map from codes to vectors, where ``needs_codec`` is set; otherwise None. It is
                frozen, and no part of this module.
        """

    def take_spec(self, spec: TokenSpec | LatentSpec, num_classes: int) -> None:
        """Keep what is generated, as :meth:`connect` does; UserError without classes."""
        if num_classes < 1:
            raise UserError(f"num_classes is {num_classes}: a generator needs at least one class")
        self.spec = spec
        self.num_classes = num_classes

    @property
    def needs_code_vectors(self) -> bool:
        """Training reads the tokenizer's code vectors: call :meth:`take_code_vectors` before it."""
        return False

    def check_training(self) -> None:  # noqa: B027
        """Raise UserError for settings that training would ignore; called after :meth:`connect`."""

    def take_code_vectors(self, vectors: Sequence[Tensor]) -> None:  # noqa: B027
        """Take the vectors (K_i, d_i) of the codes of each sub-code; they do not become weights."""

    @abstractmethod
    def loss(self, tokens: Tokens, labels: Tensor, step: int = 0, taps: Collection[int] = ()) -> GeneratorLoss:
        """Return the training loss of tokens given labels (B,) int64.

        Args:
            tokens: a batch.
            labels: classes.
            step: optimizer steps done, for schedules.
            taps: numbers of the blocks whose outputs ``hidden`` returns, from 1 to ``depth``.

        Raises:
            UserError: for tokens of another kind or shape, or a tap beyond the depth.
        """

    @abstractmethod
    def sample(self, labels: Tensor, sampler: Any, noise: RowNoise) -> Tokens:
        """Return one sample for each of labels (B,) int64.

        Args:
            labels: classes.
            sampler: the rules, of type ``sampler_type``.
            noise: random numbers of each row, independent of the batch.
        """

    def states(self, tokens: Tokens, labels: Tensor, time: float = 0.5, first_index: int = 0) -> dict[int, Tensor]:
        """Return the outputs (B, N, width) of all blocks by number, as ``hidden`` of the loss, for an analysis.

        Args:
            tokens: a batch.
            labels: classes; ``num_classes`` is the null class of guidance.
            time: t in [0, 1] of a flow, whose states depend on it; other families have none.
            first_index: index of the batch's first row, which a flow's noise is a function of.
        """
        return self.loss(tokens, labels, taps=range(1, self.depth + 1)).hidden

    def codes_of(self, tokens: Tokens) -> Tensor:
        """Return the codes (B, k, N) of tokens; UserError for latents, or codes of another shape than ``spec``."""
        assert isinstance(self.spec, TokenSpec)
        if tokens.codes is None:
            raise UserError(f"{type(self).__name__} models codes, and these tokens are latents")
        count, positions = self.spec.num_sub_codes, self.spec.num_positions
        if tokens.codes.shape[1:] != (count, positions):
            grids = ", ".join(f"{height} × {width}" for height, width in self.spec.scales)
            raise UserError(
                f"codes have shape {tuple(tokens.codes.shape)} and the generator reads (batch, {count} sub-codes, "
                f"{positions} positions on a grid of {grids}): use the token store it was built for"
            )
        return tokens.codes

    def check_taps(self, taps: Collection[int]) -> None:
        """Raise UserError unless every tap is the number of a block."""
        for tap in taps:
            if not 1 <= tap <= self.depth:
                raise UserError(
                    f"block {tap} is tapped and {type(self).__name__} has blocks 1 to {self.depth}: choose one of them"
                )

    def check_labels(self, labels: Tensor) -> None:
        """Raise UserError unless labels are (B,) int64.

        The data loader checks their values: here the host would wait for the device in every step.
        """
        if labels.ndim != 1 or labels.dtype != torch.int64:
            raise UserError(f"labels are {labels.dtype} {tuple(labels.shape)}: they must be int64 (batch,)")

    def check_classes(self, labels: Tensor) -> None:
        """Raise UserError unless labels are (B,) int64 and classes of this generator."""
        self.check_labels(labels)
        if bool(((labels < 0) | (labels >= self.num_classes)).any()):
            raise UserError(
                f"labels range from {int(labels.min())} to {int(labels.max())} and the generator knows classes 0 to "
                f"{self.num_classes - 1}"
            )

    def check_sampler(self, sampler: Any) -> None:
        """Raise UserError if rules do not fit the tokens, or guide by a null class that was never trained."""
        sampler.check(self.spec)
        scales = sampler.guidance if isinstance(sampler.guidance, Sequence) else [sampler.guidance]
        if not self.class_dropout and any(scale != 1 for scale in scales):
            raise UserError(
                f"guidance is {sampler.guidance}, and {type(self).__name__} never trained the null class that guidance "
                "reads (trunk.class_dropout is 0): sample with guidance 1, or train with trunk.class_dropout above 0"
            )

    def drop_labels(self, labels: Tensor) -> Tensor:
        """Return labels of which, in training mode, ``class_dropout`` are the null class ``num_classes``."""
        if not self.training or not self.class_dropout:
            return labels
        dropped = torch.rand(labels.shape, device=labels.device) < self.class_dropout
        return labels.masked_fill(dropped, self.num_classes)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch to eval mode inside the block."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    def carried(self, source: Mapping[str, Tensor], sub_code: SubCode = None) -> dict[str, str]:
        """Return which weights an earlier stage hands over, as own name → name in ``source``.

        By default these are the weights of equal name and shape.

        Args:
            source: state dict of the earlier generator.
            sub_code: the sub-code that the earlier generator was trained on.
        """
        state = self.state_dict()
        return {name: name for name in state if name in source and source[name].shape == state[name].shape}

    def after_handover(self, sub_code: SubCode) -> None:  # noqa: B027
        """Adjust the weights that were not carried, in place; by default they keep their initial values."""

    def autocast_layers(self) -> Iterator[nn.Linear]:
        """Return the linear layers that autocast rounds wherever they are called: by default all."""
        return (layer for layer in self.modules() if isinstance(layer, nn.Linear))

    def blocks(self) -> Iterable[nn.Module]:
        """Return the repeated blocks, which :func:`~polytoken.parallelize.parallelize` wraps one by one.

        A block checkpoints its forward pass if its attribute ``checkpointing`` is set.
        """
        return ()
