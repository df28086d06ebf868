"""Interface of tokenizers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from polytoken.errors import UserError
from polytoken.quantizers.base import Quantizer
from polytoken.specs import Decoded, Encoding, TokenSpec, compression, latent_bits
from polytoken.tokenizers.inputs import check_codes


class Tokenizer(nn.Module, ABC):
    """Maps images in [-1, 1] to discrete codes, or to continuous latents, and back."""

    image_size: int
    """Pixels a side of the images it was built for."""

    quantizer: Quantizer
    """The bottleneck."""

    @property
    def spec(self) -> TokenSpec | None:
        """Shape of the codes of an image of ``image_size``; None for a continuous bottleneck."""
        sizes = self.quantizer.codebook_sizes
        return TokenSpec(sizes, self.quantizer.scales(self.grid)) if sizes else None

    @property
    def subspace_channels(self) -> tuple[int, ...]:
        """Widths d_1 … d_k of ``Encoding.subspaces``."""
        return self.quantizer.subspace_channels

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features of a foundation model that it reconstructs, as in ``Decoded.features``."""
        return ()

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """(h, w) of ``Encoding.quantized`` for an image of ``image_size``."""

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The last weight before the pixels, where the adaptive adversarial weight compares gradients."""

    def start(self) -> None:  # noqa: B027 - optional
        """Load the weights that training starts from; called once, before a training that does not resume."""

    def blocks(self) -> Iterator[nn.Module]:
        """Modules that compilation replaces, each called as a whole; none where a tokenizer does not compile.

        ``last_layer`` is in none of them: a compiled module computes all its gradients for one of them, and the
        adaptive adversarial weight asks for that of ``last_layer`` twice a step.
        """
        return iter(())

    @abstractmethod
    def encode(self, images: Tensor) -> Encoding:
        """Images (B, 3, H, W) in [-1, 1] to their encoding.

        Raises:
            UserError: for another shape or type. On a CPU, outside of training, also for values beyond ±10.
        """

    @abstractmethod
    def decode(self, quantized: Tensor) -> Decoded:
        """Quantized features (B, C, h, w) to images (B, 3, H, W), not clamped, and to features where it has some.

        They are cast to the type of the weights, since quantizers return float32 under weights of float64 too.
        """

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Codes (B, k, N) of the shape that ``spec`` states to quantized features (B, C, h, w).

        Raises:
            UserError: for another shape or type. On a CPU also for codes that are no entries of their codebooks.
        """
        self.check_codes(codes, self.grid)
        return self.quantizer.embed_codes(codes, self.grid)

    def check_codes(self, codes: Tensor, grid: tuple[int, int], remedy: str = "") -> None:
        """Raise UserError, ending in ``remedy``, unless codes (B, k, N) are those of images with this grid."""
        if sizes := self.quantizer.codebook_sizes:
            check_codes(codes, sizes, self.quantizer.scales(grid), remedy)

    def partial_sums(self, codes: Tensor) -> Iterator[Tensor]:
        """Yield the quantized features (B, C, h, w) after each scale of codes (B, k, n), all or the first scales'."""
        return self.quantizer.partial_sums(codes, self.grid)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Codes (B, k, N) of the shape that ``spec`` states to images (B, 3, H, W), not clamped."""
        return self.decode(self.embed_codes(codes)).image

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of ``Encoding.quantized`` for an image of ``image_size``."""
        return (sum(self.subspace_channels), *self.grid)

    @property
    def bits_per_image(self) -> float:
        """Bits of an image's codes without entropy coding, or of its latents at 16 bits a value."""
        return latent_bits(self.latent_shape) if self.spec is None else self.spec.bits_per_image

    @property
    def compression_ratio(self) -> float:
        """Bits of an 8-bit RGB image over bits of its codes, or of its latents of 16 bits (iFSQ eqs. 11 to 13)."""
        return compression(self.image_size, self.bits_per_image)

    def snap(self, quantized: Tensor) -> Tensor:
        """Nearest points of the codebooks to ``quantized`` (B, C, h, w), which a generator of latents has drawn.

        Raises:
            UserError: if the quantizer has no such points.
        """
        return self.quantizer.snap(quantized)

    def keep_subspaces(self, quantized: Tensor, kept: Collection[int]) -> Tensor:
        """Quantized features (B, C, h, w) with the channels of all other subspaces set to zero."""
        subspaces = quantized.split(self.subspace_channels, dim=1)
        return torch.cat([one if i in kept else torch.zeros_like(one) for i, one in enumerate(subspaces)], dim=1)

    def forward(self, images: Tensor) -> tuple[Decoded, Encoding]:
        """Images (B, 3, H, W) to their reconstruction and its encoding."""
        # integers are not cast: encode refuses them, since 0 … 255 would pass for pixels in [-1, 1]
        encoding = self.encode(images.to(self.last_layer.dtype) if images.is_floating_point() else images)
        return self.decode(encoding.quantized), encoding

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move as any module, and keep float32: ``.to(torch.bfloat16)`` would select other codes and coarser pixels."""

        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            narrower = result.is_floating_point() and result.itemsize < min(4, tensor.itemsize)
            return tensor.to(result.device) if narrower else result

        return super()._apply(moved, recurse)

    def require_codes(self) -> TokenSpec:
        """The spec of the codes.

        Raises:
            UserError: the bottleneck is continuous, so that there are no codes.
        """
        if self.spec is None:
            raise UserError(
                "this tokenizer has no codes, since its bottleneck is continuous: train one with a quantizer (fq_dual, "
                "vq, fsq, …), or store its latents by configs/tokens.yaml (make tokens)"
            )
        return self.spec

    @property
    def networks(self) -> frozenset[Path]:
        """Files of the frozen networks that it reads."""
        return frozenset()

    def frozen_identities(self) -> dict[str, str]:
        """Identity (name and weight digest) of each frozen network outside the state dict, by role.

        The fingerprint covers them, since codes depend on a frozen encoder that no checkpoint holds.
        """
        return {}
