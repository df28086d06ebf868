"""ImageFolder's tokenizer: transformers that fold an image into k small grids (arXiv 2410.01756, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytoken.errors import UserError
from polytoken.quantizers.base import Quantizer
from polytoken.ranges import above, at_least, below_one, one_of, within
from polytoken.specs import Decoded, Encoding
from polytoken.tokenizers.base import Tokenizer
from polytoken.tokenizers.inputs import check_images
from polytoken.tokenizers.low_rank import update_feed_forward
from polytoken.tokenizers.pretrained import load_pretrained

Tuning = Literal["full", "linear", "lora"]
SHARPNESS = 2.5  # factor of the first queries; 1.5 and 4 reconstruct digits worse after 150 steps


@dataclass(frozen=True)
class VisionTransformerConfig:
    """Sizes of a vision transformer; the default is DINOv2-B at a patch of 16 pixels.

    Args:
        patch_size: pixels a side of a patch.
        dim: width.
        depth: blocks.
        num_heads: attention heads.
        stochastic_depth: rate at which the last block drops a branch of a sample; the first drops none.
        layer_scale: initial value of the learned scale of each branch; None has no such scale.
    """

    patch_size: int = 16
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    stochastic_depth: float = 0.1
    layer_scale: float | None = 1e-5

    def __post_init__(self) -> None:
        at_least(1, "transformer", patch_size=self.patch_size, dim=self.dim)
        at_least(1, "transformer", depth=self.depth, num_heads=self.num_heads)
        below_one("transformer", stochastic_depth=self.stochastic_depth)
        above(0, "transformer", layer_scale=self.layer_scale)
        if self.dim % self.num_heads:
            raise UserError(
                f"transformer has {self.dim} channels and {self.num_heads} heads: change dim or num_heads, so that the "
                "heads divide the channels"
            )


class FoldedTokenizer(Tokenizer):
    """Two vision transformers around any quantizer of k branches on a small grid of K × K (ImageFolder section 3.1).

    The transformers have timm's blocks and need the extra ``suite``. Each reads a class token, whose output is dropped.

    The encoder reads the patches together with k sets of K × K learned queries, whose outputs are the features of the
    branches. The decoder reads the quantized features together with a mask token for each patch, whose outputs become
    pixels. All tokens of a grid share the position embedding of the patches, resampled; a level embedding tells patches
    and branches apart. Order of the branches: detail first, semantic last.

    Args:
        quantizer: the bottleneck; each of its ``in_subspaces`` is a branch of equal width.
        grid_size: K; 11 in ImageFolder.
        image_size: pixels a side.
        transformer: sizes of encoder and decoder.
        pretrained: network that encoder and decoder start from: a published model, whose file ``make weights`` writes,
            or the file of a stand-in. It is read when training starts, and in no other case. It sees images in [-1, 1],
            whatever normalisation it was trained with, as released.
        tuning: how the encoder departs from ``pretrained`` (Table 2): ``full`` trains all of it; ``linear`` freezes it
            but for queries, level embeddings and projection (the decoder is always trained); ``lora`` freezes it too,
            but for its last norm, and adds low-rank updates of its feed-forward layers, as released. The paper does not
            say which weights its three rows train.
        rank: of the updates.
        decoder_class_tokens: 1, or 2 as released: the class token stands before the mask tokens and once more, with the
            level of the quantized features, before these.

    Raises:
        UserError: if the patches do not divide the image, K exceeds their grid, the branches differ in width, the
            quantizer's finest scale is not K × K, an encoder is to be frozen without ``pretrained``, or the decoder is
            to have another number of class tokens.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        grid_size: int = 11,
        image_size: int = 256,
        transformer: VisionTransformerConfig | None = None,
        pretrained: str | None = None,
        tuning: Tuning = "full",
        rank: int = 8,
        decoder_class_tokens: int = 1,
    ) -> None:
        super().__init__()
        at_least(1, self, image_size=image_size, rank=rank)
        one_of(self, get_args(Tuning), tuning=tuning)
        within(1, 2, self, decoder_class_tokens=decoder_class_tokens)
        config = transformer or VisionTransformerConfig()
        side = image_size // config.patch_size
        if side < 1 or image_size % config.patch_size:
            raise UserError(f"image_size {image_size} is not a multiple of the patches' {config.patch_size} pixels")
        if not 1 <= grid_size <= side:
            raise UserError(f"grid_size is {grid_size}, and the image has {side} × {side} patches: choose 1 to {side}")
        if len(set(quantizer.in_subspaces)) != 1:
            raise UserError(f"the quantizer reads branches of {quantizer.in_subspaces} channels: make them equal")
        quantizer.scales((grid_size, grid_size))
        self.image_size = image_size
        self.patch_size = config.patch_size
        self.grid_size = grid_size
        self.num_branches = len(quantizer.in_subspaces)
        self.encoder = GridTransformer(config, side, levels=1 + self.num_branches)
        self.patch_embedding = nn.Conv2d(3, config.dim, config.patch_size, config.patch_size)
        self.queries = nn.Parameter(torch.zeros(self.num_branches, grid_size**2, config.dim))
        nn.init.normal_(self.queries, std=1e-6)
        self.quant_conv = nn.Conv2d(config.dim, quantizer.in_subspaces[0], 1)  # shared by the branches
        self.quantizer = quantizer
        self.post_quant_conv = nn.Conv2d(quantizer.out_channels, config.dim, 1)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.decoder = GridTransformer(config, side, levels=2, class_tokens=decoder_class_tokens)
        self.pixels = nn.Linear(config.dim, 3 * config.patch_size**2)
        self.pretrained = pretrained
        self._tune(tuning, rank)

    @property
    def grid(self) -> tuple[int, int]:
        return self.grid_size, self.grid_size

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the layer that writes the pixels."""
        return self.pixels.weight  # type: ignore[return-value]

    def blocks(self) -> Iterator[nn.Module]:
        """Both transformers."""
        yield self.encoder
        yield self.decoder

    def start(self) -> None:
        if self.pretrained is not None:
            load_pretrained(self.pretrained, [self.encoder, self.decoder], self.patch_embedding)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the features of all branches (B, k · C, K, K), detail first."""
        check_images(images, self.last_layer, self.training)
        if images.shape[1:] != (3, self.image_size, self.image_size):
            raise UserError(
                f"images have shape {' × '.join(map(str, images.shape))}, and the tokenizer reads batches of 3 × "
                f"{self.image_size} × {self.image_size} pixels: crop or resize them (data.image_size)"
            )
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        branches = [query.expand(images.shape[0], -1, -1) for query in self.queries]
        _, *outputs = self.encoder([patches, *branches])
        maps = [output.transpose(1, 2).unflatten(2, self.grid) for output in outputs]
        return torch.cat([self.quant_conv(one) for one in maps], dim=1)

    def _tune(self, tuning: Tuning, rank: int) -> None:
        """Freeze what the encoder has of its pretrained network, and add updates."""
        if tuning == "full":
            return
        if self.pretrained is None:
            raise UserError(f"tuning is {tuning}, which freezes the encoder: set pretrained, or tuning to full")
        self.patch_embedding.requires_grad_(False)
        self.encoder.requires_grad_(False)
        self.encoder.levels.requires_grad_(True)
        if tuning == "lora":
            self.encoder.norm.requires_grad_(True)
            update_feed_forward(self.encoder, rank)

    def encode(self, images: Tensor) -> Encoding:
        return self.quantizer(self.features(images))

    def decode(self, quantized: Tensor) -> Decoded:
        tokens = self.post_quant_conv(quantized.to(self.last_layer.dtype)).flatten(2).transpose(1, 2)
        masks = self.mask_token.expand(tokens.shape[0], self.encoder.side**2, -1)
        patches, _ = self.decoder([masks, tokens])
        blocks = self.pixels(patches).unflatten(2, (3, self.patch_size, self.patch_size))
        blocks = blocks.unflatten(1, (self.decoder.side, self.decoder.side))  # (B, rows, columns, 3, p, p)
        return Decoded(blocks.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3))


class GridTransformer(nn.Module):
    """Vision transformer (timm's blocks) over several grids of tokens at once, with full attention.

    Args:
        config: sizes.
        side: of the first grid, which the position embedding is of; those of other grids are resampled.
        levels: number of grids, each with a level embedding.
        class_tokens: the class token stands before each of so many first grids, with their levels.
    """

    def __init__(self, config: VisionTransformerConfig, side: int, levels: int, class_tokens: int = 1) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block  # a package of the extra `suite`

        self.side = side
        self.class_tokens = class_tokens
        self.num_heads = config.num_heads
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.positions = nn.Parameter(torch.zeros(1, 1 + side**2, config.dim))
        self.levels = nn.Embedding(levels, config.dim)
        last = max(1, config.depth - 1)
        self.blocks = nn.ModuleList(
            Block(
                config.dim,
                config.num_heads,
                qkv_bias=True,
                init_values=config.layer_scale,
                drop_path=config.stochastic_depth * index / last,
            )
            for index in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.levels.weight, std=(1 / (3 * config.dim)) ** 0.5)
        self._look_in_place()

    @torch.no_grad()
    def _look_in_place(self) -> None:
        """Draw positions far apart and equal queries and keys: a token first looks at those of its own place.

        Otherwise attention first averages all places, and in a short training from scratch nothing else is learned.
        """
        nn.init.normal_(self.positions)
        for block in self.blocks:
            queries, keys, _ = block.attn.qkv.weight.chunk(3)  # type: ignore[operator, union-attr]
            keys.copy_(queries.mul_(SHARPNESS))

    def forward(self, grids: list[Tensor]) -> list[Tensor]:
        """Map grids of tokens (B, n_i, dim), the first of side · side, to outputs of the same shapes."""
        prefix = (self.class_token + self.positions[:, :1]).expand(grids[0].shape[0], -1, -1)
        placed = [grid + self._positions(grid.shape[1]) for grid in grids]
        placed[: self.class_tokens] = [torch.cat([prefix, grid], dim=1) for grid in placed[: self.class_tokens]]
        features = torch.cat([grid + self.levels.weight[level] for level, grid in enumerate(placed)], dim=1)
        for block in self.blocks:
            features = block(features)
        outputs = self.norm(features).split([grid.shape[1] for grid in placed], dim=1)
        return [output[:, -grid.shape[1] :] for output, grid in zip(outputs, grids, strict=True)]

    def _positions(self, count: int) -> Tensor:
        """Position embedding (1, n, dim) of a square grid, resampled (bicubic) where it is not the first one."""
        grid = self.positions[:, 1:]
        if count == self.side**2:
            return grid
        side = round(count**0.5)
        maps = grid.transpose(1, 2).unflatten(2, (self.side, self.side))
        resampled = functional.interpolate(maps.float(), size=(side, side), mode="bicubic", antialias=True)
        return resampled.flatten(2).transpose(1, 2).type_as(grid)
