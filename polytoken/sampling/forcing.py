"""Teacher-forcing guidance: some sub-codes are those of a reference image (ImageFolder section 4, appendix D)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.ranges import within
from polytoken.sampling.categorical import Draw
from polytoken.sampling.guidance import LARGEST

PASSES = 3  # class and forced, null class and forced, null class and free


@dataclass(frozen=True)
class Forcing:
    """Which sub-codes a reference image gives, and how strongly they guide the others.

    Args:
        sub_codes: of the tokenizer; 0 is the detail branch of a folded one.
        guidance: γ_pix of ImageFolder eq. 6; 1 only conditions on them. γ_cls is ``guidance`` of the sampler, whose
            schedule applies to both.

    Raises:
        UserError: for no or repeated sub-codes, or a scale out of range.
    """

    sub_codes: tuple[int, ...] = (0,)
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if not self.sub_codes or len(set(self.sub_codes)) < len(self.sub_codes):
            raise UserError(f"forcing.sub_codes is {[*self.sub_codes]}: name at least one sub-code, and each once")
        within(0, LARGEST, "forcing", guidance=self.guidance)

    def within(self, written: Sequence[int]) -> tuple[int, ...]:
        """Return the places of the forced sub-codes among those that a generator writes.

        Raises:
            UserError: if it does not write them, or writes no others.
        """
        if len(written) < 2:
            raise UserError(
                "forcing takes some sub-codes from a reference image and samples others, and the generator writes one "
                "a position: take a run on the tokens of several branches (imagefolder)"
            )
        for sub_code in self.sub_codes:
            if sub_code not in written:
                raise UserError(
                    f"forcing.sub_codes names {sub_code}, and the generator writes the sub-codes {[*written]}: name "
                    "some of these"
                )
        if len(self.sub_codes) == len(written):
            raise UserError(
                f"forcing.sub_codes names all sub-codes {[*written]} that the generator writes, and nothing would be "
                "left to sample: leave one out"
            )
        return tuple(written.index(sub_code) for sub_code in self.sub_codes)


class ForcedCodes(NamedTuple):
    """Codes of reference images, for a generator.

    Attributes:
        codes: (B, k, N) int64, of which only the forced sub-codes are read.
        sub_codes: the forced ones, counted as the generator writes them.
        guidance: see :class:`Forcing`.
    """

    codes: Tensor
    sub_codes: tuple[int, ...]
    guidance: float


class ForcedDraw(Draw):
    """Draws from three passes over the same M rows, whose logits are (3M, …).

    Pass A has the class and the forced sub-codes of the reference, B the null class and the same, D the null class and
    forced sub-codes of its own, drawn from its own logits. The other sub-codes are drawn from x* and are those of all
    passes. The generators here have no type of condition c_t, so that A is x(C|c), B is x(C|∅) and D is x(∅|∅), the
    bracket of γ_typ is B − B, and ImageFolder eq. 6 reads x* = D + γ_cls (A − B) + γ_pix (B − D).

    Args:
        draw: of M rows at a scale; its scales are γ_cls.
        forced: codes of the B references.
        first: position of the first code of the scale.
    """

    def __init__(self, draw: Draw, forced: ForcedCodes, first: int) -> None:
        assert isinstance(draw.position, int)
        super().__init__(draw.sampler, draw.noise, draw.scales, draw.position, draw.wrong)
        count = len(draw.noise) // len(forced.codes)
        self.codes = {i: forced.codes[:, i, first : first + count].flatten() for i in forced.sub_codes}
        ramp = replace(draw.sampler, guidance=forced.guidance).scales(len(draw.scales))
        self.gamma_pix = ramp[draw.position][0]

    def guided(self, logits: Tensor, sub_code: int) -> Tensor:
        """Return float32 logits x* (M, …) for logits (3M, …); those of one pass (M, …) stay as they are."""
        if len(logits) == len(self.noise):
            return logits.float()
        a, b, d = logits.float().chunk(PASSES)
        gamma_cls = self.scales[self.position, sub_code]
        return gamma_cls * a + (self.gamma_pix - gamma_cls) * b + (1 - self.gamma_pix) * d  # A itself where both are 1

    def categorical(self, logits: Tensor, sub_code: int, *keys: int, temperature: float = 1.0) -> Tensor:
        """Return the codes (3M, …) of all passes for logits (3M, …, K)."""
        if sub_code not in self.codes:
            return torch.cat([super().categorical(logits, sub_code, *keys, temperature=temperature)] * PASSES)
        own = super().categorical(logits.chunk(PASSES)[-1], sub_code, *keys, temperature=temperature)
        return torch.cat([self.codes[sub_code], self.codes[sub_code], own])
