"""Interface of generators: networks that learn the distribution of a tokenizer's codes or latents, given a class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from polytoken.sampling import RowNoise
from polytoken.specs import Tokens, TokenSpec

SubCode = int | Literal["all"] | None
"""The sub-code of this generator that an earlier stage was trained on: one, all in the same order, or none."""


class Codec(Protocol):
    """The frozen part of a tokenizer that maps codes to vectors."""

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Return the decoder's input (B, C, h, w) for codes (B, k, N)."""
        ...


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
    """

    total: Tensor
    parts: dict[str, Tensor]
    unit: str
    is_bound: bool = False
    statistics: dict[str, Tensor] = field(default_factory=dict)

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
    """

    spec: TokenSpec
    num_classes: int
    forward_methods: ClassVar[tuple[str, ...]] = ("loss", "sample")
    """Methods that compute with the parameters, which FSDP2 must gather before each call."""
    checkpointing: bool = False
    """Recompute the blocks' activations in the backward pass (polytoken.parallelize)."""
    compile_blocks: bool = False
    """Compile each block (polytoken.parallelize)."""
    compile_decoding: bool = False
    """Compile a step of :meth:`sample`, for families that have one."""
    needs_codec: ClassVar[bool] = False
    """Call :meth:`connect` with the codec of the tokenizer, which is loaded for this purpose."""

    @abstractmethod
    def connect(self, spec: TokenSpec, num_classes: int, codec: Codec | None = None) -> None:
        """Create the parameters.

        Args:
            spec: shape of the codes.
            num_classes: classes; labels are 0 … num_classes − 1.
            codec: the tokenizer's map from codes to vectors, where ``needs_codec`` is set; otherwise None. It is
                frozen, and no part of this module.
        """

    @abstractmethod
    def loss(self, tokens: Tokens, labels: Tensor, step: int = 0) -> GeneratorLoss:
        """Return the training loss of tokens given labels (B,) int64.

        Args:
            tokens: a batch.
            labels: classes.
            step: optimizer steps done, for schedules.
        """

    @abstractmethod
    def sample(self, labels: Tensor, sampler: Any, noise: RowNoise) -> Tokens:
        """Return one sample for each of labels (B,) int64.

        Args:
            labels: classes.
            sampler: the rules of the family, such as :class:`~polytoken.sampling.CategoricalSampler`.
            noise: random numbers of each row, independent of the batch.
        """

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

    def blocks(self) -> Iterable[nn.Module]:
        """Return the repeated blocks, which :func:`~polytoken.parallelize.parallelize` wraps one by one.

        A block checkpoints its forward pass if its attribute ``checkpointing`` is set.
        """
        return ()
