"""Ideal's tokenizer: a discrete autoencoder of a frozen foundation model's features (arXiv 2606.11096)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from polytoken.errors import UserError
from polytoken.precision import autocasts
from polytoken.quantizers.base import Quantizer
from polytoken.ranges import at_least, one_of
from polytoken.specs import Decoded, Encoding
from polytoken.teachers import Teacher
from polytoken.tokenizers.base import Tokenizer
from polytoken.tokenizers.convolutional import Decoder
from polytoken.tokenizers.feature_decoder import FeatureDecoder, FeatureDecoderConfig
from polytoken.tokenizers.fusion import AttentionFusion, LinearFusion
from polytoken.tokenizers.inputs import check_images

Fusion = Literal["attention", "linear", "none"]


class RepresentationTokenizer(Tokenizer):
    """Frozen foundation model, fusion of two depths, any quantizer, feature decoder, convolutional pixel decoder.

    The deep feature is that of the model's last block behind its last norm, or of the ``block`` of ``foundation``; the
    shallow one is the raw output of an earlier block. Both come from one pass, are the targets of
    :class:`~polytoken.losses.FeatureReconstruction` (``Encoding.features``), and are reconstructed by linear heads
    (``Decoded.features``); pixels are decoded from the reconstructed deep feature alone.

    The foundation model is no part of the module: neither trained nor averaged nor saved. It computes in float32, and
    in bf16 in a region of autocast, as in training on GPUs.

    Args:
        quantizer: the bottleneck; linear layers lead from the features to its channels and back.
        foundation: the frozen model; its grid is that of the codes. Images are resized to its size.
        shallow: block of the shallow feature, from 1; None has no shallow feature (the single layers of Table 1).
        fusion: how the shallow feature enters the codes: cross-attention (eq. 6), a linear layer, or not at all.
        image_size: pixels a side of the images, a power of two times the grid.
        feature_decoder: sizes of the feature decoder.
        base_channels: width of the pixel decoder's last stage.
        channel_multipliers: width of each stage over ``base_channels``, as of an encoder, which it walks backwards.
        num_res_blocks: residual blocks a stage of the pixel decoder, less one, as of
            :class:`~polytoken.tokenizers.ConvolutionalTokenizer`.

    Raises:
        MissingFileError: the file of a stand-in is missing.
        UserError: sizes do not fit, or a block does not exist.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        foundation: Teacher,
        shallow: int | None = 8,
        fusion: Fusion = "attention",
        image_size: int = 384,
        feature_decoder: FeatureDecoderConfig | None = None,
        base_channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 1,
    ) -> None:
        super().__init__()
        at_least(1, self, image_size=image_size, base_channels=base_channels, channel_multipliers=channel_multipliers)
        at_least(1, self, num_res_blocks=num_res_blocks)
        one_of(self, get_args(Fusion), fusion=fusion)
        config = feature_decoder or FeatureDecoderConfig()
        width, (side, _) = foundation.width, foundation.grid
        factor = 2 ** (len(channel_multipliers) - 1)
        if image_size != side * factor:
            raise UserError(
                f"image_size is {image_size}, and the foundation model's {side} × {side} features, doubled for each of "
                f"the {len(channel_multipliers)} channel_multipliers but one, become {side * factor} pixels: change "
                "image_size, channel_multipliers or foundation.image_size"
            )
        if width % config.num_heads:
            raise UserError(
                f"feature_decoder.num_heads is {config.num_heads}, which does not divide the foundation model's "
                f"{width} channels"
            )
        foundation.check_block(shallow)
        deep = foundation.depth if foundation.block is None else foundation.block
        if shallow is not None and not 1 <= shallow <= deep:
            raise UserError(
                f"shallow is {shallow}, and the deep feature comes from block {deep}: name a block from 1 to "
                f"{deep}, or null for the deep feature alone"
            )
        if (foundation.width_at(shallow), foundation.grid_at(shallow)) != (width, (side, side)):
            raise UserError(
                f"block {shallow} of {foundation.name} has other channels or another grid than its deep feature: set "
                "shallow to null, or take a vision transformer"
            )
        quantizer.scales((side, side))
        self.image_size = image_size
        self.foundation = foundation
        self.shallow = shallow
        self.fusion: nn.Module | None = None
        if shallow is not None and fusion == "attention":
            self.fusion = AttentionFusion(width, config.num_heads, config.dropout)
        elif shallow is not None and fusion == "linear":
            self.fusion = LinearFusion(width)
        self.quant_linear = nn.Linear(width, quantizer.in_channels)
        self.quantizer = quantizer
        self.post_quant_linear = nn.Linear(quantizer.out_channels, width)
        self.feature_decoder = FeatureDecoder(width, side**2, config)
        self.heads = nn.ModuleDict({name: nn.Linear(width, width) for name in self.feature_names})
        self.decoder = Decoder(
            width, base_channels, channel_multipliers, num_res_blocks, attention=True, stage_attention=False
        )
        self.decoder.to(memory_format=torch.channels_last)  # the layout convolutions are fastest in, on CPU and GPU

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features that are read and reconstructed."""
        return ("deep",) if self.shallow is None else ("deep", "shallow")

    @property
    def grid(self) -> tuple[int, int]:
        return self.foundation.grid

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the pixel decoder's output convolution."""
        return self.decoder.conv_out.weight  # type: ignore[return-value]

    def blocks(self) -> Iterator[nn.Module]:
        """The pixel decoder but for its output convolution."""
        yield from self.decoder.body

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Features (B, D, h, w) that the foundation model computes of images (B, 3, H, W), by name."""
        check_images(images, self.last_layer, self.training)
        if images.shape[1:] != (3, self.image_size, self.image_size):
            raise UserError(
                f"images have shape {' × '.join(map(str, images.shape))}, and the tokenizer reads batches of 3 × "
                f"{self.image_size} × {self.image_size} pixels: crop or resize them (data.image_size)"
            )
        blocks = (None,) if self.shallow is None else (None, self.shallow)
        found = self.foundation.features(images, blocks, full_precision=not autocasts(images.device))
        return {name: one.patches.permute(0, 3, 1, 2) for name, one in zip(self.feature_names, found, strict=True)}

    def encode(self, images: Tensor) -> Encoding:
        """Images (B, 3, H, W) in [-1, 1] to their encoding, with the features of the foundation model (Ideal eq. 1)."""
        features = self.features(images)
        rows = [feature.to(self.last_layer.dtype).flatten(2).transpose(1, 2) for feature in features.values()]
        fused = rows[0] if self.fusion is None else self.fusion(*rows)
        encoding = self.quantizer(_to_map(self.quant_linear(fused), self.grid))
        encoding.features = features
        return encoding

    def decode(self, quantized: Tensor) -> Decoded:
        """Quantized features (B, C, h, w) to images (B, 3, H, W), and to features (B, D, h, w) (Ideal eqs. 3, 7, 8)."""
        tokens = self.post_quant_linear(quantized.to(self.last_layer.dtype).flatten(2).transpose(1, 2))
        decoded = self.feature_decoder(tokens)
        features = {name: _to_map(head(decoded), self.grid) for name, head in self.heads.items()}
        return Decoded(self.decoder(features["deep"]), features)

    @property
    def networks(self) -> frozenset[Path]:
        return frozenset({self.foundation.file})

    def frozen_identities(self) -> dict[str, str]:
        foundation = self.foundation
        read = f"block {foundation.block}, final norm {foundation.final_norm}, {foundation.image_size} px"
        return {"foundation": foundation.identity, "deep": read, "shallow": f"block {self.shallow}"}


def _to_map(rows: Tensor, grid: tuple[int, int]) -> Tensor:
    """Rows (B, h·w, D) to a map (B, D, h, w)."""
    return rows.transpose(1, 2).unflatten(2, grid)
