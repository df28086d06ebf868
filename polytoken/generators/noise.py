"""Noisy sub-tokens: random input codes, clean targets (SSQ section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from polytoken.constants import constant
from polytoken.errors import UserError
from polytoken.neighbours import neighbours_of_codes
from polytoken.ranges import at_least, one_of, within

Per = Literal["sub_code", "patch"]
Where = Literal["trunk", "head", "both"]
MAX_DISTANCES = 2**22
"""Distances that are held at once while nearest codes are searched."""


class NoisyCodes(NamedTuple):
    """Input of a generator.

    Attributes:
        trunk: codes (B, k, N) for the trunk's input.
        head: codes (B, k, N) for the head's input.
        rate: share of the sub-codes that were replaced, a float32 scalar.
        replaced: (B, N) bool, positions of which the trunk reads a replaced sub-code; None if it reads clean codes.
    """

    trunk: Tensor
    head: Tensor
    rate: Tensor
    replaced: Tensor | None = None


class SubTokenNoise:
    """Replace input sub-codes by uniform draws from their own codebooks; targets stay clean.

    A draw may return the code itself. The noise of reAR (arXiv 2510.04450) is probability 1, decayed over the first
    75 % of the steps, and ``sample_probability: uniform``.

    Args:
        probability: expected share of replaced sub-codes after the ramp and before the decay.
        per: ``sub_code`` replaces each one independently; ``patch`` replaces the same number of each patch's k
            sub-codes, chosen at random (probability · k, its fraction by chance).
        where: what reads the noisy codes: the trunk's input, the head's, or both (the same ones).
        start_step: step before which nothing is noisy.
        ramp_steps: steps over which the probability then grows linearly from 0; 0 skips the ramp.
        decay_steps: steps after the ramp over which the probability falls linearly to 0; None keeps it.
        sample_probability: ``uniform`` draws the probability of each sample between 0 and the scheduled one, so that
            half as many sub-codes are replaced; None gives all samples the scheduled one.
        nearest: a replaced sub-code is drawn from the n nearest codes of its codebook, itself included (RobusTok,
            arXiv 2509.12474), by the distance of their vectors; None draws from the whole codebook, as does n = K.
    """

    def __init__(
        self,
        probability: float = 0.1,
        per: Per = "sub_code",
        where: Where = "trunk",
        start_step: int = 0,
        ramp_steps: int = 0,
        decay_steps: int | None = None,
        sample_probability: Literal["uniform"] | None = None,
        nearest: int | None = None,
    ) -> None:
        within(0, 1, self, probability=probability)
        one_of(self, get_args(Per), per=per)
        one_of(self, get_args(Where), where=where)
        at_least(0, self, start_step=start_step, ramp_steps=ramp_steps)
        at_least(1, self, decay_steps=decay_steps)
        one_of(self, ("uniform", None), sample_probability=sample_probability)
        at_least(2, self, nearest=nearest)  # a code is its own nearest one
        self.probability = probability
        self.per = per
        self.where = where
        self.start_step = start_step
        self.ramp_steps = ramp_steps
        self.decay_steps = decay_steps
        self.sample_probability = sample_probability
        self.nearest = nearest
        self._vectors: tuple[Tensor, ...] = ()
        self._neighbours: tuple[Tensor, ...] = ()

    def connect(self, vectors: Sequence[Tensor]) -> None:
        """Take the vectors (K_i, d_i) of the codes, which ``nearest`` needs."""
        self._vectors = tuple(vectors)
        self._neighbours = ()

    def probability_at(self, step: int) -> float:
        """Return the scheduled probability."""
        if step < self.start_step:
            return 0.0
        after = step - self.start_step - self.ramp_steps
        if after < 0:
            return self.probability * (step - self.start_step) / self.ramp_steps
        if self.decay_steps is None:
            return self.probability
        return self.probability * max(0.0, 1 - after / self.decay_steps)

    def __call__(self, codes: Tensor, codebook_sizes: Sequence[int], step: int) -> NoisyCodes:
        """Return what trunk and head read at a step, for clean codes (B, k, N)."""
        drawn = self._drawn(codes, self.probability_at(step))
        uniform = torch.rand(codes.shape, device=codes.device, dtype=torch.float64)  # float32 would round up to K
        noisy = torch.where(drawn, self._replacements(codes, codebook_sizes, uniform), codes)
        return NoisyCodes(
            trunk=codes if self.where == "head" else noisy,
            head=codes if self.where == "trunk" else noisy,
            rate=drawn.float().mean(),
            replaced=None if self.where == "head" else drawn.any(dim=1),
        )

    def _replacements(self, codes: Tensor, codebook_sizes: Sequence[int], uniform: Tensor) -> Tensor:
        choices = [size if self.nearest is None else min(self.nearest, size) for size in codebook_sizes]
        ranks = (uniform * constant(tuple(choices), codes.device, torch.int64).view(1, -1, 1)).long()
        if self.nearest is None:
            return ranks
        tables = self._tables(codes.device)
        return torch.stack([table[codes[:, i], ranks[:, i]] for i, table in enumerate(tables)], dim=1)

    def _tables(self, device: torch.device) -> tuple[Tensor, ...]:
        """Nearest codes (K_i, min(n, K_i)), computed once on the device of the codes."""
        assert self.nearest is not None
        if not self._vectors:
            raise UserError(
                "noise.nearest needs the vectors of the codes: call take_code_vectors of the generator before training"
            )
        if not self._neighbours or self._neighbours[0].device != device:
            self._neighbours = tuple(_nearest_to_each(one.to(device), self.nearest) for one in self._vectors)
        return self._neighbours

    def _drawn(self, codes: Tensor, scheduled: float) -> Tensor:
        probability: float | Tensor = scheduled
        if self.sample_probability == "uniform":
            probability = scheduled * torch.rand(len(codes), 1, 1, device=codes.device)
        chance = torch.rand(codes.shape, device=codes.device)
        if self.per == "sub_code":
            return chance < probability
        batch, num_codes, positions = codes.shape
        wanted = probability * num_codes
        counts = (wanted + torch.rand(batch, 1, positions, device=codes.device)).floor()  # mean: wanted
        ranks = chance.argsort(dim=1).argsort(dim=1)  # a random order of the k sub-codes
        return ranks < counts


def _nearest_to_each(vectors: Tensor, count: int) -> Tensor:
    size = len(vectors)
    codes = torch.arange(size, device=vectors.device)
    parts = codes.split(max(1, MAX_DISTANCES // size))
    return torch.cat([neighbours_of_codes(vectors, part, min(count, size)) for part in parts])
