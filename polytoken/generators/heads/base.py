"""Contract of the heads: from a trunk's output to the k sub-codes of a position (SSQ 4.1, FQGAN 3.3)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from polytoken.generators.linear_cross_entropy import linear_cross_entropy
from polytoken.sampling.categorical import CategoricalSampler, Draw
from polytoken.transformer import RMSNorm, RotaryCache, TrunkConfig, initialise


class HeadLoss(NamedTuple):
    """Loss of a batch.

    Attributes:
        total: what training minimises, a float32 scalar.
        per_code: (k,) float32, mean over images and positions.
        is_bound: ``per_code`` bounds the negative log-likelihood from above and does not equal it.
        unit: of ``per_code``: "nats" for a negative log-likelihood or its bound, another name otherwise.
    """

    total: Tensor
    per_code: Tensor
    is_bound: bool = False
    unit: str = "nats"


class Head(nn.Module, ABC):
    """Predictor of the sub-codes of a position.

    A config builds it with its own arguments, :meth:`connect` with the sizes of what it joins.
    """

    reads_codes: ClassVar[bool] = False
    """Reads the ``embeddings`` of the sub-codes before the one that it predicts; otherwise there may be none."""

    @abstractmethod
    def connect(self, trunk: TrunkConfig, codebook_sizes: Sequence[int], grid: tuple[int, int]) -> None:
        """Build the layers for a trunk's width, k sub-codes and a grid (h, w)."""

    def reset_parameters(self) -> None:
        """Initialise all weights."""
        self.apply(initialise)

    @abstractmethod
    def loss(self, hidden: Tensor, codes: Tensor, embeddings: nn.ModuleList, inputs: Tensor | None = None) -> HeadLoss:
        """Return the loss of target codes.

        Args:
            hidden: trunk outputs (B, N, dim).
            codes: targets (B, k, N).
            embeddings: tables (K_i, dim) of the sub-codes, the trunk's input; a trunk that reads none lacks the last.
            inputs: codes (B, k, N) that the head reads, where they are not the targets.
        """

    @abstractmethod
    def sample(self, hidden: Tensor, embeddings: nn.ModuleList, draw: Draw, cache: RotaryCache | None = None) -> Tensor:
        """Return the codes (B, k) int64 of one position, with fixed shapes and no host synchronisation.

        Args:
            hidden: trunk outputs (B', dim); under guidance B' is 2B, the conditional half first; else B.
            embeddings: as in :meth:`loss`.
            draw: draws codes (B,) from logits (B', K_i); both halves read on with them.
            cache: of :meth:`new_cache`, for as many rows.
        """

    def check_sampler(self, sampler: CategoricalSampler) -> None:  # noqa: B027
        """Raise UserError if :meth:`sample` cannot follow the rules."""

    def new_cache(self, batch: int) -> RotaryCache | None:
        """Return what :meth:`sample` reuses at every position, allocated once; None where it needs nothing."""
        return None

    def carried(self, sub_code: int | None) -> dict[str, str]:
        """Return the weights that a later stage takes over: name in this head → name in the earlier stage's head.

        Pairs whose shapes differ, or that the earlier head lacks, stay fresh.

        Args:
            sub_code: the one sub-code that the earlier stage was trained on; None if it was trained on other codes.
        """
        return {}


class ClassifierHead(Head):
    """Head with a softmax classifier for each sub-code.

    After ``connect`` it holds ``norm``, the final RMSNorm or none, and ``outputs``, one (K_i, width) layer a sub-code
    that starts at zero, so that the first loss is ln K_i. Neither shares weights with the embeddings.
    """

    norm: nn.Module
    outputs: nn.ModuleList

    @abstractmethod
    def states(self, hidden: Tensor, codes: Tensor, embeddings: nn.ModuleList) -> Sequence[Tensor]:
        """Return what each output layer reads when the codes are known: k tensors (M, width), normalised.

        Args:
            hidden: trunk outputs (M, dim).
            codes: the positions' own codes (M, k); state i may depend on those before i.
            embeddings: as in :meth:`loss`.
        """

    def reset_parameters(self) -> None:
        """Initialise all weights; the first predictions are uniform."""
        super().reset_parameters()
        for output in self._layers():
            nn.init.zeros_(output.weight)

    def loss(self, hidden: Tensor, codes: Tensor, embeddings: nn.ModuleList, inputs: Tensor | None = None) -> HeadLoss:
        """Return the cross-entropies (iFSQ eq. 10); the total is their mean over the sub-codes."""
        read = (codes if inputs is None else inputs).transpose(1, 2).flatten(0, 1)
        states = self.states(hidden.flatten(0, 1), read, embeddings)
        per_code = torch.stack(
            [
                linear_cross_entropy(state, output.weight, codes[:, i].flatten(), bias=output.bias)
                for i, (state, output) in enumerate(zip(states, self._layers(), strict=True))
            ]
        )
        return HeadLoss(per_code.mean(), per_code)

    def sample(self, hidden: Tensor, embeddings: nn.ModuleList, draw: Draw, cache: RotaryCache | None = None) -> Tensor:
        """Draw the sub-codes independently; a head whose states depend on the codes overrides this."""
        no_codes = torch.empty(hidden.shape[0], 0, dtype=torch.int64, device=hidden.device)
        states = self.states(hidden, no_codes, embeddings)
        outputs = zip(states, self.outputs, strict=True)
        return torch.stack([draw.categorical(output(state), i) for i, (state, output) in enumerate(outputs)], dim=1)

    def carried(self, sub_code: int | None) -> dict[str, str]:
        """Return the final norm, and the sub-code's output layer where :meth:`reads_hidden` holds."""
        names = {"norm.weight": "norm.weight"}
        if sub_code is None or not self.reads_hidden(sub_code):
            return names
        return names | {f"outputs.{sub_code}.{part}": f"outputs.0.{part}" for part in ("weight", "bias")}

    def reads_hidden(self, sub_code: int) -> bool:
        """Is the state of this sub-code nearly ``norm(hidden)`` before training, as in a linear head?

        An output layer trained on those states would begin worse than a zero one on others.
        """
        return True

    def _build_outputs(self, width: int, codebook_sizes: Sequence[int], norm: bool = True, bias: bool = False) -> None:
        self.norm = RMSNorm(width) if norm else nn.Identity()
        self.outputs = nn.ModuleList(nn.Linear(width, size, bias=bias) for size in codebook_sizes)

    def _layers(self) -> list[nn.Linear]:
        return list(self.outputs)  # type: ignore[arg-type]
