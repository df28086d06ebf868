"""Frozen codec of a tokenizer: from images to tokens, and from the sub-codes that a generator writes to vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, final

import torch
from torch import Tensor

from polytoken.frozen import FrozenNetwork
from polytoken.precision import full_precision
from polytoken.specs import Tokens
from polytoken.tokenizers import Tokenizer
from polytoken.tokenizers.inputs import trusted


def embed_sub_codes(tokenizer: Tokenizer, codes: Tensor, sub_codes: Sequence[int]) -> Tensor:
    """Return the decoder's input (B, C, h, w) for some sub-codes (B, k', N); the other subspaces are zero."""
    full = _complete(tokenizer, codes, sub_codes)
    return tokenizer.keep_subspaces(tokenizer.embed_codes(full), sub_codes)


def partial_sums_of(tokenizer: Tokenizer, codes: Tensor, sub_codes: Sequence[int]) -> Iterator[Tensor]:
    """Yield the vectors (B, C, h, w) of some sub-codes (B, k', n) after each scale; other subspaces are zero."""
    for total in tokenizer.partial_sums(_complete(tokenizer, codes, sub_codes)):
        yield tokenizer.keep_subspaces(total, sub_codes)


def _complete(tokenizer: Tokenizer, codes: Tensor, sub_codes: Sequence[int]) -> Tensor:
    """Return all sub-codes (B, k, n), those that are not given being 0."""
    given = dict(zip(sub_codes, codes.unbind(1), strict=True))
    absent = torch.zeros_like(codes[:, 0])
    # indexing by a list would copy it to the device, for which the host waits
    return torch.stack([given.get(i, absent) for i in range(len(tokenizer.subspace_channels))], dim=1)


@final
class BlankCodec:
    """Codec whose vectors are zero, for a generator of which only the shapes are asked.

    Args:
        shape: (C, h, w) of the vectors.
        scales: number of scales of the codes.
    """

    def __init__(self, shape: tuple[int, int, int], scales: int) -> None:
        self.channels = shape[0]
        self._shape = shape
        self._scales = scales

    def channels_of(self, sub_code: int) -> slice:
        """All of them."""
        return slice(self.channels)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Return zeros (B, C, h, w) for codes (B, k, N)."""
        return torch.zeros(len(codes), *self._shape, device=codes.device)

    def partial_sums(self, codes: Tensor) -> Iterator[Tensor]:
        """Yield zeros (B, C, h, w) for each scale."""
        return (self.embed_codes(codes) for _ in range(self._scales))


@final
class FrozenCodec:
    """Codec of a tokenizer that its owner neither trains, saves nor averages.

    It is no module, so that the tokenizer stays out of a generator's parameters. Vectors are float32.

    Args:
        load: loads the tokenizer, on first use.
        sub_codes: the tokenizer's sub-codes that the generator writes, in its order; empty for one of latents.
    """

    def __init__(self, load: Callable[[], Tokenizer], sub_codes: Sequence[int]) -> None:
        self._tokenizer = FrozenNetwork(load)
        self._sub_codes = list(sub_codes)

    @torch.no_grad()
    def embed_codes(self, codes: Tensor) -> Tensor:
        """Return vectors (B, C, h, w) for codes (B, k, N) of the generator."""
        tokenizer = self._tokenizer.on(codes.device)
        with torch.autocast(codes.device.type, enabled=False), trusted():
            return embed_sub_codes(tokenizer, codes, self._sub_codes)

    @property
    def channels(self) -> int:
        """C of the vectors."""
        return sum(self._tokenizer.on(torch.device("cpu")).subspace_channels)

    def channels_of(self, sub_code: int) -> slice:
        """Channels of the vectors that a sub-code of the generator determines."""
        widths, index = self._tokenizer.on(torch.device("cpu")).subspace_channels, self._sub_codes[sub_code]
        return slice(sum(widths[:index]), sum(widths[: index + 1]))

    def partial_sums(self, codes: Tensor) -> Iterator[Tensor]:
        """Yield the vectors (B, C, h, w) after each scale of the generator's codes (B, k, n)."""
        with torch.no_grad(), torch.autocast(codes.device.type, enabled=False):
            sums = list(partial_sums_of(self._tokenizer.on(codes.device), codes, self._sub_codes))
        yield from sums

    @torch.no_grad()
    def encode(self, images: Tensor, models: Literal["codes", "latents"]) -> Tokens:
        """Return the tokens of images (B, 3, H, W), as a token store of these images holds them."""
        tokenizer = self._tokenizer.on(images.device)
        with full_precision(images.device), trusted():
            encoding = tokenizer.encode(images.float())
        if models == "latents":
            return Tokens(latents=encoding.quantized)
        assert encoding.codes is not None  # checked by GeneratorRecord.described
        return Tokens(codes=torch.stack([encoding.codes[:, i] for i in self._sub_codes], dim=1))

    def code_vectors(self) -> tuple[Tensor, ...]:
        """Return the vectors (K_i, d_i) of the codebook of each sub-code of the generator, float32 on the CPU."""
        codebooks = self._tokenizer.on(torch.device("cpu")).quantizer.codebooks()
        return tuple(codebooks[i].clone() for i in self._sub_codes)

    def prepare(self, device: torch.device) -> None:
        """Load the tokenizer and move it to the device."""
        self._tokenizer.on(device)
