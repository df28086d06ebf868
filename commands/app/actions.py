"""Actions of the page, without a page: reconstruct, exchange codes, compare codes, generate."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from polytoken.generators.next_scale import NextScaleGenerator
from polytoken.images import to_uint8
from polytoken.metrics.images import psnr
from polytoken.pipeline import GenerationPipeline
from polytoken.precision import full_precision
from polytoken.sampling import FlowSampler, Guidance
from polytoken.specs import Encoding, TokenSpec
from polytoken.tokenizers import Tokenizer


class Reconstruction(NamedTuple):
    """A reconstruction.

    Args:
        image: (1, 3, H, W), not clamped.
        psnr: to the image, in dB; both rounded to 8 bits.
    """

    image: Tensor
    psnr: float


class Drawn(NamedTuple):
    """Generated images.

    Args:
        images: uint8 (B, H, W, 3).
        seconds: that all of them took.
        steps: evaluations of the network one after the other: positions, scales, or steps of a flow.
    """

    images: Tensor
    seconds: float
    steps: int


@torch.inference_mode()
def encode(tokenizer: Tokenizer, images: Tensor) -> Encoding:
    """Encode images (B, 3, H, W) in [-1, 1]."""
    device = tokenizer.last_layer.device
    with full_precision(device):
        return tokenizer.encode(images.to(device))


@torch.inference_mode()
def decode(tokenizer: Tokenizer, quantized: Tensor) -> Tensor:
    """Decode quantized features (B, C, h, w) to images (B, 3, H, W) on the CPU, not clamped."""
    with full_precision(quantized.device):
        return tokenizer.decode(quantized).image.cpu()


def reconstruct(tokenizer: Tokenizer, image: Tensor, kept: Collection[int]) -> Reconstruction:
    """Encode and decode an image (1, 3, H, W); subspaces that are not kept are zero."""
    decoded = decode(tokenizer, tokenizer.keep_subspaces(encode(tokenizer, image).quantized, kept))
    return Reconstruction(decoded, float(psnr(to_uint8(decoded), to_uint8(image))))


def exchange(codes: Tensor, other: Tensor, spec: TokenSpec, sub_codes: Collection[int], patches: Tensor) -> Tensor:
    """Replace some sub-codes of codes (1, k, N) by those of other codes, in a region.

    At a coarse scale, a code belongs to the region if at least half of the patches that it covers do.

    Args:
        codes: of the image.
        other: of the image that gives.
        spec: of both.
        sub_codes: those that are replaced.
        patches: (h, w) bool, the region.
    """
    shares = [functional.adaptive_avg_pool2d(patches[None].float(), scale).flatten() for scale in spec.scales]
    inside = torch.cat(shares).to(codes.device) >= 0.5
    chosen = torch.tensor([i in sub_codes for i in range(spec.num_sub_codes)], device=codes.device)
    return torch.where(chosen[:, None] & inside, other, codes)


@torch.inference_mode()
def edit(
    tokenizer: Tokenizer, image: Tensor, other: Tensor, choices: Sequence[Collection[int]], patches: Tensor
) -> Tensor:
    """Decode an image (1, 3, H, W) with sub-codes of another one, for each choice of sub-codes; see :func:`exchange`.

    Returns images (len(choices), 3, H, W), not clamped.
    """
    first, second = (encode(tokenizer, one).codes for one in (image, other))
    assert first is not None and second is not None  # only a tokenizer with codes has this tab
    spec = tokenizer.require_codes()
    mixed = torch.cat([exchange(first, second, spec, chosen, patches) for chosen in choices])
    with full_precision(mixed.device):
        return tokenizer.decode_codes(mixed).cpu()


class Place(NamedTuple):
    """A code's place: number of its scale, row and column in this scale's grid."""

    scale: int
    row: int
    column: int

    def position(self, spec: TokenSpec) -> int:
        """Its position among the N of the codes."""
        before = sum(height * width for height, width in spec.scales[: self.scale])
        return before + self.row * spec.scales[self.scale][1] + self.column

    def box(self, spec: TokenSpec, size: int) -> tuple[int, int, int, int]:
        """(top, bottom, left, right) in pixels of the square that it covers in an image of ``size`` pixels."""
        height, width = spec.scales[self.scale]
        edges = ((self.row, height), (self.row + 1, height), (self.column, width), (self.column + 1, width))
        top, bottom, left, right = (size * index // count for index, count in edges)
        return top, max(bottom, top + 1), left, max(right, left + 1)


def place_at(spec: TokenSpec, scale: int, x: float, y: float) -> Place:
    """The place of a scale at a point (x, y) in [0, 1)."""
    height, width = spec.scales[scale]
    return Place(scale, min(int(y * height), height - 1), min(int(x * width), width - 1))


class Neighbour(NamedTuple):
    """A patch with the same code.

    Args:
        image: row of its image among those of the index.
        place: its place in this image.
        distance: between the encoder's outputs in the subspace, before quantization.
    """

    image: int
    place: Place
    distance: float


class CodeIndex(NamedTuple):
    """Codes of several images.

    Args:
        codes: (M, k, N).
        latents: the k encoder outputs (M, d_i, h, w), before quantization.
    """

    codes: Tensor
    latents: tuple[Tensor, ...]

    @classmethod
    def of(cls, encodings: Iterator[Encoding]) -> CodeIndex:
        """Gather encodings on the CPU."""
        codes, latents = [], []
        for one in encodings:
            assert one.codes is not None
            codes.append(one.codes.cpu())
            latents.append([subspace.cpu() for subspace in one.latents])
        return cls(torch.cat(codes), tuple(torch.cat(parts) for parts in zip(*latents, strict=True)))

    def nearest(
        self, query: Encoding, spec: TokenSpec, sub_code: int, place: Place, count: int
    ) -> tuple[int, list[Neighbour]]:
        """Number of patches whose sub-code at this scale is that of the query, and the ``count`` nearest of them.

        Args:
            query: encoding of one image.
            spec: of the codes.
            sub_code: that is compared.
            place: of the query's patch.
            count: at most so many.
        """
        assert query.codes is not None
        height, width = spec.scales[place.scale]
        first = Place(place.scale, 0, 0).position(spec)
        here = self.codes[:, sub_code, first : first + height * width]
        image, position = (here == query.codes[0, sub_code, place.position(spec)].cpu()).nonzero(as_tuple=True)
        own = _pooled(query.latents[sub_code].cpu(), (height, width))[0, :, place.row, place.column]
        rows = _pooled(self.latents[sub_code], (height, width)).flatten(2)[image, :, position]
        distances = (rows - own).norm(dim=1)
        order = distances.argsort(stable=True)[:count].tolist()
        places = [Place(place.scale, *divmod(int(position[i]), width)) for i in order]
        return len(image), [
            Neighbour(int(image[i]), at, float(distances[i])) for i, at in zip(order, places, strict=True)
        ]


def generate(pipeline: GenerationPipeline, labels: Sequence[int], rules: Guidance, seed: int) -> Drawn:
    """Draw an image of each label."""
    device = next(pipeline.network.parameters()).device
    start = time.perf_counter()
    images = pipeline.images(torch.tensor(labels, device=device), rules, seed).cpu()
    return Drawn(images, time.perf_counter() - start, num_steps(pipeline, rules))


def num_steps(pipeline: GenerationPipeline, rules: Guidance) -> int:
    """Evaluations of the network that sampling makes one after the other."""
    if isinstance(rules, FlowSampler):
        return rules.steps * (2 if rules.method == "heun" else 1)
    spec = pipeline.network.spec
    assert isinstance(spec, TokenSpec)
    return len(spec.scales) if isinstance(pipeline.network, NextScaleGenerator) else spec.num_positions


def _pooled(latents: Tensor, grid: tuple[int, int]) -> Tensor:
    return latents if latents.shape[2:] == grid else functional.adaptive_avg_pool2d(latents, grid)
