"""What every tokenizer promises."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from polytoken.specs import Encoding, TokenSpec


class Tokenizer(nn.Module, ABC):
    """Images in [-1, 1] to discrete codes and back."""

    @property
    @abstractmethod
    def spec(self) -> TokenSpec | None:
        """Shape of the codes of an image of the size it was built for; None for a continuous bottleneck."""

    @property
    @abstractmethod
    def subspace_channels(self) -> tuple[int, ...]:
        """Widths d_1 … d_k of ``Encoding.subspaces``."""

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """(h, w) of ``Encoding.quantized`` for an image of the size it was built for."""

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The last weight before the pixels, where the adaptive adversarial weight compares gradients."""

    @abstractmethod
    def encode(self, images: Tensor) -> Encoding:
        """Images (B, 3, H, W) in [-1, 1] to their encoding."""

    @abstractmethod
    def decode(self, quantized: Tensor) -> Tensor:
        """Quantized features (B, C, h, w) to images (B, 3, H, W), not clamped."""

    @abstractmethod
    def embed_codes(self, codes: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Codes (B, k, N) to quantized features (B, C, h, w); ``grid`` (h, w) where it is not the one of ``spec``."""

    def decode_codes(self, codes: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Codes (B, k, N) to images (B, 3, H, W); ``grid`` (h, w) where it is not the one of ``spec``."""
        return self.decode(self.embed_codes(codes, grid))

    def forward(self, images: Tensor) -> tuple[Tensor, Encoding]:
        """Images (B, 3, H, W) to their reconstruction and its encoding."""
        encoding = self.encode(images)
        return self.decode(encoding.quantized), encoding
