"""Masked head of BAR (arXiv 2602.09024), for the bits of a code or for k sub-codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytoken.errors import UserError
from polytoken.generators.heads.base import Head, HeadLoss
from polytoken.ranges import above, at_least, one_of
from polytoken.sampling import CategoricalSampler, Draw, RowNoise
from polytoken.sampling.guidance import value_of
from polytoken.transformer import INITIAL_DEVIATION, FeedForward, RMSNorm, RotaryCache, TrunkConfig

Digits = Literal["bits", "codes"]
NUM_FREQUENCIES = 256
RATIO_DEVIATION = 0.8
VISIBLE_WEIGHT = 0.1
DEFAULT_STEPS = 4
BAR_WIDTH = 768  # channels of BAR-B's trunk


class Digit(NamedTuple):
    """One unit that is masked: a bit of a sub-code, or a whole sub-code.

    Attributes:
        sub_code: where it belongs.
        base: number of its values; the value ``base`` is the mask.
        place: its value counts ``place`` times in the sub-code.
    """

    sub_code: int
    base: int
    place: int


class MaskedBitHead(Head):
    """Masked modelling of the m digits of a position, written in a few parallel steps (BAR).

    A digit is a bit or a sub-code. In training a random share r of a position's digits is masked, and predicted from
    the others: r = clamp(1 - sigmoid(N(0, 0.8²)), 1/m, 1). The loss weighs the cross-entropy of masked digits by 1 and
    of visible ones by 0.1. In eval mode ``per_code`` is the order-agnostic bound of the negative log-likelihood, E over
    a uniform count n of masked digits of m / n times their cross-entropies (arXiv 2110.02037), with fixed random masks.

    Args:
        digits: ``bits`` splits sub-codes of 2^b codes into b bits and allows no top-k or top-p; ``codes`` takes each
            sub-code whole.
        width: of the blocks; None is twice the trunk's.
        depth: blocks.
        steps: digits that each sampling step fixes; None is up to four steps of about equal size.
        temperature: T of the sampling steps, T · (1 - i / S) in step i of S; it multiplies that of the sampler.
    """

    def __init__(
        self,
        digits: Digits = "bits",
        width: int | None = None,
        depth: int = 3,
        steps: list[int] | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        one_of(self, get_args(Digits), digits=digits)
        at_least(1, self, width=width, depth=depth, steps=steps)
        above(0, self, temperature=temperature)
        self.kind = digits
        self.width = width
        self.depth = depth
        self.steps = steps
        self.temperature = temperature

    def connect(self, trunk: TrunkConfig, codebook_sizes: Sequence[int], grid: tuple[int, int]) -> None:
        """Raise UserError for bits of a size that is not a power of two, or steps that do not add up."""
        self.digits = _digits(codebook_sizes, self.kind)
        owners = [digit.sub_code for digit in self.digits]
        self.counts = [owners.count(i) for i in range(len(codebook_sizes))]  # digits of each sub-code, side by side
        count = len(self.digits)
        self.amounts = self.steps or _equal_steps(count)
        if sum(self.amounts) != count:
            raise UserError(
                f"MaskedBitHead: the steps {self.amounts} fix {sum(self.amounts)} digits and a position has {count}"
            )
        width = self.width or 2 * trunk.dim
        part = -(-width // count)
        self.norm = RMSNorm(trunk.dim)
        self.project = nn.Linear(trunk.dim, width)
        self.register_buffer("frequencies", torch.zeros(NUM_FREQUENCIES))
        self.ratio_mlp = nn.Sequential(nn.Linear(2 * NUM_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.embeddings = nn.ModuleList(nn.Embedding(digit.base + 1, part) for digit in self.digits)
        self.aggregation = nn.Linear(count * part, width)
        self.input_norm = RMSNorm(width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(self.depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.output_norm = RMSNorm(width)
        self.output = nn.Linear(width, sum(digit.base for digit in self.digits))

    def reset_parameters(self) -> None:
        """Initialise all weights; blocks start as the identity, and frequencies are drawn once.

        The weights of the condition are N(0, 0.02²) as in BAR, and larger on a trunk that is narrower than BAR-B's, so
        that the condition starts with the same deviation. A smaller one would pass little gradient to the trunk.
        """
        super().reset_parameters()
        narrow = max(1, BAR_WIDTH / self.project.in_features)
        nn.init.normal_(self.project.weight, std=INITIAL_DEVIATION * math.sqrt(narrow))
        nn.init.normal_(cast(Tensor, self.frequencies))
        for layer in (self.modulation, *(cast(_Block, block).modulation for block in self.blocks)):
            nn.init.zeros_(layer.weight)

    def loss(self, hidden: Tensor, codes: Tensor, embeddings: nn.ModuleList, inputs: Tensor | None = None) -> HeadLoss:
        hidden = hidden.flatten(0, 1)
        targets = self.split(codes.transpose(1, 2).flatten(0, 1))
        read = targets if inputs is None else self.split(inputs.transpose(1, 2).flatten(0, 1))
        rows, count = targets.shape
        if self.training:
            deviates = RATIO_DEVIATION * torch.randn(rows, 1, device=codes.device)
            ratio = (1 - deviates.sigmoid()).clamp(1 / count, 1)
            num_masked = (ratio * count).round()
            order = torch.rand(rows, count, device=codes.device)
        else:
            noise = RowNoise(0, 0, rows, codes.device)
            num_masked = (noise.uniform((0,), 1) * count).floor().float() + 1
            ratio = num_masked / count
            order = noise.uniform((1,), count)
        masked = order.argsort(dim=1).argsort(dim=1) < num_masked
        logits = self.logits(read, masked, ratio, self.condition(hidden))
        losses = torch.stack(
            [
                functional.cross_entropy(scores.float(), targets[:, j], reduction="none")
                for j, scores in enumerate(logits)
            ],
            dim=1,
        )
        if self.training:
            weights = torch.where(masked, 1.0, VISIBLE_WEIGHT)
            total = (losses * weights).sum() / weights.sum()
            per_code = self._per_code((losses * weights).sum(dim=0) / weights.sum(dim=0))
            return HeadLoss(total, per_code, unit="weighted nats")  # not a bound, since visible digits count too
        per_code = self._per_code((losses * masked * count / num_masked).mean(dim=0))
        return HeadLoss(per_code.mean(), per_code, is_bound=True)

    def sample(self, hidden: Tensor, embeddings: nn.ModuleList, draw: Draw, cache: RotaryCache | None = None) -> Tensor:
        batch, count = len(draw.noise), len(self.digits)
        halves = len(hidden) // batch
        condition = self.condition(hidden)
        digits = torch.zeros(batch, count, dtype=torch.int64, device=hidden.device)
        masked = torch.ones_like(digits, dtype=torch.bool)
        done = 0
        for step, amount in enumerate(self.amounts):
            temperature = self.temperature * (1 - step / len(self.amounts))
            ratio = torch.full((len(hidden), 1), 1 - done / count, device=hidden.device)
            logits = self.logits(digits.repeat(halves, 1), masked.repeat(halves, 1), ratio, condition)
            drawn, confidence = self._draw(logits, draw, step, temperature)
            digits = torch.where(masked, drawn, digits)
            done += amount
            kept = confidence.masked_fill(~masked, float("inf")).topk(done, dim=1).indices
            masked = torch.ones_like(masked).scatter(1, kept, value=False)
        return self.join(digits)

    def check_sampler(self, sampler: CategoricalSampler) -> None:
        """Raise UserError for a top-k or top-p of codes, which single bits cannot follow."""
        for i, count in enumerate(self.counts if self.kind == "bits" else ()):
            top_k = 2**count if sampler.top_k is None else value_of(sampler.top_k, i)
            if top_k < 2**count or value_of(sampler.top_p, i) < 1:
                raise UserError(
                    "sampler.top_k and sampler.top_p choose among whole codes, and MaskedBitHead with digits: bits "
                    "draws each bit alone: leave both out, or train with digits: codes"
                )

    def carried(self, sub_code: int | None) -> dict[str, str]:
        return {"norm.weight": "norm.weight"}

    def split(self, codes: Tensor) -> Tensor:
        """Return the digits (M, m) of codes (M, k)."""
        return torch.stack([codes[:, i] // place % base for i, base, place in self.digits], dim=1)

    def join(self, digits: Tensor) -> Tensor:
        """Return the codes (M, k) of digits (M, m)."""
        values = torch.stack([digits[:, j] * digit.place for j, digit in enumerate(self.digits)], dim=1)
        return torch.stack([part.sum(dim=1) for part in values.split(self.counts, dim=1)], dim=1)

    def condition(self, hidden: Tensor) -> Tensor:
        """Return what trunk outputs (M, dim) add to the modulation, (M, width)."""
        return self.project(self.norm(hidden))

    def logits(self, digits: Tensor, masked: Tensor, ratio: Tensor, condition: Tensor) -> list[Tensor]:
        """Return the logits (M, base) of each digit.

        Args:
            digits: (M, m); masked ones are not read.
            masked: (M, m) bool.
            ratio: (M, 1) share that is masked.
            condition: (M, width) of :meth:`condition`.
        """
        embedded = [
            table(torch.where(masked[:, j], digit.base, digits[:, j]))
            for j, (table, digit) in enumerate(zip(self.embeddings, self.digits, strict=True))
        ]
        features = self.input_norm(self.aggregation(torch.cat(embedded, dim=1)))
        angles = 2 * math.pi * ratio.float() * cast(Tensor, self.frequencies).float()
        waves = torch.cat([angles.sin(), angles.cos()], dim=1).type_as(condition)
        # BAR applies SiLU to the sum, and once more in front of each modulation
        modulation = functional.silu(functional.silu(self.ratio_mlp(waves) + condition))
        for block in self.blocks:
            features = block(features, modulation)
        scale, shift = self.modulation(modulation).chunk(2, dim=1)
        features = self.output_norm(features) * (1 + scale) + shift
        return list(self.output(features).split([digit.base for digit in self.digits], dim=1))

    def _draw(self, logits: list[Tensor], draw: Draw, step: int, temperature: float) -> tuple[Tensor, Tensor]:
        """Return a draw of each digit and its noisy logit, both (B, m)."""
        drawn, confidence = [], []
        remaining = iter(logits)
        for i, count in enumerate(self.counts):
            scores = torch.stack([next(remaining) for _ in range(count)], dim=1)
            drawn.append(draw.categorical(scores, i, 2 * step, temperature=temperature))
            chosen = draw.guided(scores, i).gather(2, drawn[-1].unsqueeze(2)).squeeze(2)
            scale = temperature * value_of(draw.sampler.temperature, i)
            confidence.append(chosen + scale * draw.gumbel(i, 2 * step + 1, shape=(count,)))
        return torch.cat(drawn, dim=1), torch.cat(confidence, dim=1)

    def _per_code(self, per_digit: Tensor) -> Tensor:
        return torch.stack([part.sum() for part in per_digit.split(self.counts)])


class _Block(nn.Module):
    """x + g · SwiGLU(RMSNorm(x) · (1 + s) + b), modulated by shift b, scale s and gate g."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.feed_forward = FeedForward(width, 1, 0.0)
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, features: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(modulation).chunk(3, dim=1)
        return features + gate * self.feed_forward(self.norm(features) * (1 + scale) + shift)


def _digits(codebook_sizes: Sequence[int], kind: str) -> list[Digit]:
    if kind == "codes":
        return [Digit(i, size, 1) for i, size in enumerate(codebook_sizes)]
    for i, size in enumerate(codebook_sizes):
        if size < 2 or size & (size - 1):
            raise UserError(
                f"MaskedBitHead: sub-code {i} has {size} codes, which bits cannot count: set digits: codes, or take a "
                "tokenizer whose codebook sizes are powers of two"
            )
    return [Digit(i, 2, 2**bit) for i, size in enumerate(codebook_sizes) for bit in range(size.bit_length() - 1)]


def _equal_steps(count: int) -> list[int]:
    steps = min(DEFAULT_STEPS, count)
    return [count * (i + 1) // steps - count * i // steps for i in range(steps)]
