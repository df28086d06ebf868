"""The VQGAN / LlamaGen convolutional autoencoder around any quantizer (arXiv 2012.09841, 2406.06525)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from polytoken.blocks import Downsample, NormSwish, ResidualBlock, SpatialAttention, Upsample
from polytoken.errors import UserError
from polytoken.quantizers.base import Quantizer
from polytoken.ranges import at_least
from polytoken.specs import Decoded, Encoding
from polytoken.tokenizers.base import Tokenizer
from polytoken.tokenizers.inputs import check_images
from polytoken.tokenizers.projection import Adapter, SubspaceProjection


class Encoder(nn.Module):
    """h_base = Enc(x): the base features of an image (SSQ eq. 3, FQGAN eq. 3).

    Args:
        base_channels: width of the first stage.
        channel_multipliers: width of each stage over ``base_channels``; the map halves between stages.
        num_res_blocks: residual blocks a stage.
        attention: self-attention after each block of the last stage and in the middle.
    """

    def __init__(
        self, base_channels: int, channel_multipliers: Sequence[int], num_res_blocks: int, attention: bool
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, base_channels, 3, padding=1)
        layers: list[nn.Module] = []
        channels = base_channels
        for stage, multiplier in enumerate(channel_multipliers):
            last = stage == len(channel_multipliers) - 1
            for _ in range(num_res_blocks):
                layers.append(ResidualBlock(channels, base_channels * multiplier))
                channels = base_channels * multiplier
                if last and attention:
                    layers.append(SpatialAttention(channels))
            if not last:
                layers.append(Downsample(channels))
        self.stages = nn.Sequential(*layers)
        self.mid = _middle(channels, attention)
        self.out_channels = channels

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to base features (B, out_channels, H/f, W/f)."""
        return self.mid(self.stages(self.conv_in(images)))


class Decoder(nn.Module):
    """x̂ = Dec(q): latent maps to images (SSQ eq. 7, FQGAN eq. 6); one residual block a stage more than the encoder.

    Args:
        latent_channels: channels of the map it reads.
        base_channels: width of the last stage.
        channel_multipliers: as the encoder's, which it walks backwards.
        num_res_blocks: residual blocks of the *encoder*'s stages.
        attention: self-attention in the middle.
        stage_attention: self-attention after each block of the first stage, too; None is as ``attention``.
    """

    def __init__(
        self,
        latent_channels: int,
        base_channels: int,
        channel_multipliers: Sequence[int],
        num_res_blocks: int,
        attention: bool,
        stage_attention: bool | None = None,
    ) -> None:
        super().__init__()
        channels = base_channels * channel_multipliers[-1]
        self.conv_in = nn.Conv2d(latent_channels, channels, 3, padding=1)
        self.mid = _middle(channels, attention)
        layers: list[nn.Module] = []
        for stage, multiplier in enumerate(reversed(channel_multipliers)):
            if stage > 0:
                layers.append(Upsample(channels))
            for _ in range(num_res_blocks + 1):
                layers.append(ResidualBlock(channels, base_channels * multiplier))
                channels = base_channels * multiplier
                if stage == 0 and (attention if stage_attention is None else stage_attention):
                    layers.append(SpatialAttention(channels))
        self.stages = nn.Sequential(*layers)
        self.norm_out = NormSwish(channels)
        self.conv_out = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, latent_channels, h, w) to images (B, 3, h·f, w·f), not clamped."""
        return self.conv_out(self.norm_out(self.stages(self.mid(self.conv_in(latents)))))

    @property
    def body(self) -> tuple[nn.Module, ...]:
        """All but the two convolutions at its ends, in order."""
        return self.mid, self.stages, self.norm_out


class ConvolutionalTokenizer(Tokenizer):
    """Convolutional encoder, any quantizer, convolutional decoder: LlamaGen's VQ-16 / VQ-8 with the factor as argument.

    The projection between encoder and quantizer takes its widths from both. Where the quantizer allows it, other image
    sizes than ``image_size`` work if they are multiples of f; their codes are decoded with the ``grid`` argument.

    Args:
        quantizer: the bottleneck.
        image_size: pixels a side of the images that ``spec`` describes.
        base_channels: width of the first encoder stage.
        channel_multipliers: one a stage; f = 2^(stages − 1). (1, 1, 2, 2, 4) is f16, (1, 2, 2, 4) is f8.
        num_res_blocks: residual blocks an encoder stage; the decoder has one more.
        latent_channels: channels between ``post_quant_conv`` and the decoder.
        attention: self-attention at the lowest resolution.
        projection_channels: channels between the 3 × 3 convolution that ends the encoder and ``quant_conv``.
        adapter: adapter F_i of each subspace: FQGAN's transformer, light residual blocks, or none.
        adapter_depth: blocks of an adapter.
        quant_conv_size: side of the kernels of ``quant_conv`` and ``post_quant_conv``, an odd number; 3 in VAR.

    Raises:
        UserError: if ``image_size`` is not a multiple of f, the quantizer's scales do not end at its grid, or a kernel
            has no centre.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        image_size: int = 256,
        base_channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        latent_channels: int = 256,
        attention: bool = True,
        projection_channels: int = 256,
        adapter: Adapter = "none",
        adapter_depth: int = 6,
        quant_conv_size: int = 1,
    ) -> None:
        super().__init__()
        at_least(1, self, image_size=image_size, base_channels=base_channels, channel_multipliers=channel_multipliers)
        at_least(1, self, num_res_blocks=num_res_blocks, latent_channels=latent_channels)
        at_least(1, self, projection_channels=projection_channels, adapter_depth=adapter_depth)
        at_least(1, self, quant_conv_size=quant_conv_size)
        if quant_conv_size % 2 == 0:
            raise UserError(f"quant_conv_size is {quant_conv_size}: a kernel has a centre, so choose an odd number")
        self.downsampling = 2 ** (len(channel_multipliers) - 1)
        if image_size % self.downsampling:
            raise UserError(
                f"image_size {image_size} is not a multiple of the downsampling factor {self.downsampling}, "
                f"which follows from the {len(channel_multipliers)} channel_multipliers"
            )
        quantizer.scales((image_size // self.downsampling, image_size // self.downsampling))
        self.image_size = image_size
        self.encoder = Encoder(base_channels, channel_multipliers, num_res_blocks, attention)
        self.projection = SubspaceProjection(
            self.encoder.out_channels,
            quantizer.in_subspaces,
            projection_channels,
            adapter,
            adapter_depth,
            grid_size=image_size // self.downsampling,
            kernel_size=quant_conv_size,
        )
        self.quantizer = quantizer
        self.post_quant_conv = nn.Conv2d(
            quantizer.out_channels, latent_channels, quant_conv_size, padding=quant_conv_size // 2
        )
        self.decoder = Decoder(latent_channels, base_channels, channel_multipliers, num_res_blocks, attention)
        self.to(memory_format=torch.channels_last)  # the layout convolutions are fastest in, on CPU and GPU

    @property
    def grid(self) -> tuple[int, int]:
        side = self.image_size // self.downsampling
        return side, side

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's output convolution."""
        return self.decoder.conv_out.weight  # type: ignore[return-value]

    def blocks(self) -> Iterator[nn.Module]:
        """The encoder, and the decoder but for its output convolution."""
        yield self.encoder
        yield from self.decoder.body

    def encode(self, images: Tensor) -> Encoding:
        """Images (B, 3, H, W) in [-1, 1] to their encoding over a grid (H/f, W/f) (SSQ and FQGAN eqs. 3–5)."""
        check_images(images, self.last_layer, self.training)
        if images.shape[-1] % self.downsampling or images.shape[-2] % self.downsampling:
            raise UserError(
                f"images of {images.shape[-2]} × {images.shape[-1]} pixels do not divide by the downsampling factor "
                f"{self.downsampling}: crop or resize them"
            )
        return self.quantizer(self.projection(self.encoder(images)))

    def decode(self, quantized: Tensor) -> Decoded:
        """x̂ = Dec([q_1; …; q_k]): (B, C, h, w) to images (B, 3, h·f, w·f) (SSQ eq. 7, FQGAN eq. 6)."""
        return Decoded(self.decoder(self.post_quant_conv(quantized.to(self.last_layer.dtype))))

    def embed_codes(self, codes: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Codes (B, k, N) to quantized features (B, C, h, w).

        Args:
            codes: of images of ``image_size``, or of other images with their ``grid``.
            grid: (H/f, W/f) of images of another size.
        """
        self.check_codes(codes, grid or self.grid, "; pass the grid of images of another size")
        return self.quantizer.embed_codes(codes, grid or self.grid)

    def decode_codes(self, codes: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Codes (B, k, N) to images (B, 3, h·f, w·f), not clamped; arguments as for :meth:`embed_codes`."""
        return self.decode(self.embed_codes(codes, grid)).image


def _middle(channels: int, attention: bool) -> nn.Sequential:
    blocks = [ResidualBlock(channels, channels), ResidualBlock(channels, channels)]
    return nn.Sequential(blocks[0], SpatialAttention(channels), blocks[1]) if attention else nn.Sequential(*blocks)
