"""Codes as numbers in a mixed radix: one digit a channel, one code for a group of channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from polytoken.errors import UserError

Order = Literal["big_endian", "little_endian"]

LARGEST_CODEBOOK = 2**17  # a softmax over more codes, or a count of them, is not practical; 17⁴ is below


def sub_code_sizes(levels: Sequence[int], num_sub_codes: int) -> tuple[int, ...]:
    """K_1 … K_k of k sub-codes, each of d/k consecutive channels; K_i is the product of its channels' levels.

    Args:
        levels: L of each of the d channels.
        num_sub_codes: k.

    Raises:
        UserError: if a level is below 2, k does not divide d, or a sub-code has more than ``LARGEST_CODEBOOK`` values.
    """
    if not levels or min(levels) < 2:
        raise UserError(f"levels must name at least 2 levels for each of one or more channels, got {list(levels)}")
    if num_sub_codes < 1 or len(levels) % num_sub_codes:
        raise UserError(
            f"num_sub_codes={num_sub_codes} does not divide the {len(levels)} channels: "
            f"take one of {[divisor for divisor in range(1, len(levels) + 1) if len(levels) % divisor == 0]}"
        )
    width = len(levels) // num_sub_codes
    sizes = tuple(math.prod(levels[first : first + width]) for first in range(0, len(levels), width))
    if max(sizes) > LARGEST_CODEBOOK:
        raise UserError(
            f"{len(levels)} channels with num_sub_codes={num_sub_codes} give a sub-code of {max(sizes):,} values, more "
            f"than the {LARGEST_CODEBOOK:,} of a practical softmax: raise num_sub_codes, which splits the channels"
        )
    return sizes


def digits_to_codes(digits: Tensor, levels: Tensor, order: Order = "big_endian") -> Tensor:
    """Σ_j digit_j · place value_j (iFSQ eq. 3); (…, d) int64 to (…).

    Args:
        digits: (…, d) in 0 … L_j − 1.
        levels: L_j, (d,) or any shape that broadcasts against ``digits``.
        order: "big_endian" gives channel 1 the largest place value, "little_endian" the smallest.
    """
    return (digits * place_values(levels, order)).sum(-1)


def codes_to_digits(codes: Tensor, levels: Tensor, order: Order = "big_endian") -> Tensor:
    """Inverse of :func:`digits_to_codes`; (…) to (…, d)."""
    return codes.unsqueeze(-1) // place_values(levels, order) % levels


def place_values(levels: Tensor, order: Order) -> Tensor:
    """Value of one unit in each channel: 1, L_1, L_1·L_2, … from the least significant end; the shape of ``levels``.

    With equal levels and "big_endian" these are L^(d − j), as in iFSQ eq. 3.
    """
    if order == "big_endian":
        return place_values(levels.flip(-1), "little_endian").flip(-1)
    place, places = torch.ones_like(levels[..., 0]), []
    for level in levels.unbind(-1):  # ONNX has no cumulative product
        places.append(place)
        place = place * level
    return torch.stack(places, dim=-1)
