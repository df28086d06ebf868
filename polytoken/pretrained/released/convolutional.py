"""Names of convolutional encoders and decoders in released code, for any number of stages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from polytoken.pretrained.released.layout import Joined, Layout, Network, State, numbered, size

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ConvolutionalNames:
    """Patterns of released names, with ``{stage}`` and ``{block}``.

    Args:
        encoder_stages: what stands before the number of an encoder stage.
        encoder_block: residual block of the encoder.
        encoder_attention: attention after it.
        downsample: convolution that halves the map after a stage.
        decoder_block: residual block of the decoder.
        decoder_attention: attention after it.
        upsample: convolution that doubles the map after a stage.
        middle: the modules of the middle, in order, below ``encoder.`` and ``decoder.``.
        coarse_first: True if the decoder's stages are numbered in order of their work, False from the last one.
    """

    encoder_stages: str
    encoder_block: str
    encoder_attention: str
    downsample: str
    decoder_block: str
    decoder_attention: str
    upsample: str
    middle: tuple[str, ...]
    coarse_first: bool


TAMING = ConvolutionalNames(  # also LDM, VAR, VA-VAE
    encoder_stages="encoder.down.",
    encoder_block="encoder.down.{stage}.block.{block}",
    encoder_attention="encoder.down.{stage}.attn.{block}",
    downsample="encoder.down.{stage}.downsample.conv",
    decoder_block="decoder.up.{stage}.block.{block}",
    decoder_attention="decoder.up.{stage}.attn.{block}",
    upsample="decoder.up.{stage}.upsample.conv",
    middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
    coarse_first=False,
)


@dataclass(frozen=True)
class ConvolutionalShape:
    """Sizes of an encoder and its decoder, read off their weights.

    Args:
        base_channels: width of the first stage.
        channel_multipliers: of each stage.
        num_res_blocks: of an encoder stage; a decoder stage has one more.
        attention: True if there is attention in the middle and in the coarsest stage.
    """

    base_channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    attention: bool

    @classmethod
    def of(cls, state: State, names: ConvolutionalNames) -> ConvolutionalShape:
        """Read the sizes; UserError if the weights are of another architecture."""
        stages = numbered(state, names.encoder_stages)
        first = names.encoder_block.format(stage=0, block=0)
        blocks = numbered(state, first[: -len("0")])
        base = size(state, "encoder.conv_in.weight")
        last = [names.encoder_block.format(stage=stage, block=blocks - 1) for stage in range(stages)]
        widths = [size(state, f"{name}.conv2.weight") for name in last]
        attention = names.encoder_attention.format(stage=stages - 1, block=0)
        return cls(
            base_channels=base,
            channel_multipliers=tuple(width // base for width in widths),
            num_res_blocks=blocks,
            attention=any(name.startswith(f"{attention}.") for name in state),
        )

    @property
    def downsampling(self) -> int:
        """Pixels a side of a position."""
        return 2 ** (len(self.channel_multipliers) - 1)

    def arguments(self) -> dict[str, object]:
        """Return them as arguments of ConvolutionalTokenizer."""
        return {
            "base_channels": self.base_channels,
            "channel_multipliers": [*self.channel_multipliers],
            "num_res_blocks": self.num_res_blocks,
            "attention": self.attention,
        }

    def pairs(self, names: ConvolutionalNames) -> Pairs:
        """Return the released and our names of all modules of encoder and decoder but the encoder's end."""
        return (*self._encoder(names), *self._decoder(names), *self._ends(names))

    def fused_attention(self, state: State, names: ConvolutionalNames) -> tuple[Joined, ...]:
        """Return the projections of attention that released code stores as one: queries, then keys, then values."""
        return tuple(
            Joined((fused,), tuple(f"{ours}.{part}.{kind}" for part in ("q", "k", "v")))
            for released, ours in self.pairs(names)
            for kind in ("weight", "bias")
            if (fused := f"{released}.qkv.{kind}") in state
        )

    def _encoder(self, names: ConvolutionalNames) -> Iterator[tuple[str, str]]:
        place = count()
        last = len(self.channel_multipliers) - 1
        for stage in range(last + 1):
            for block in range(self.num_res_blocks):
                yield names.encoder_block.format(stage=stage, block=block), f"encoder.stages.{next(place)}"
                if stage == last and self.attention:
                    yield names.encoder_attention.format(stage=stage, block=block), f"encoder.stages.{next(place)}"
            if stage < last:
                yield names.downsample.format(stage=stage), f"encoder.stages.{next(place)}.conv"

    def _decoder(self, names: ConvolutionalNames) -> Iterator[tuple[str, str]]:
        place = count()
        last = len(self.channel_multipliers) - 1
        for work in range(last + 1):
            stage = work if names.coarse_first else last - work
            for block in range(self.num_res_blocks + 1):
                yield names.decoder_block.format(stage=stage, block=block), f"decoder.stages.{next(place)}"
                if work == 0 and self.attention:
                    yield names.decoder_attention.format(stage=stage, block=block), f"decoder.stages.{next(place)}"
            if work < last:  # released code ends a stage with it, and here it begins the next one
                yield names.upsample.format(stage=stage), f"decoder.stages.{next(place)}.conv"

    def _ends(self, names: ConvolutionalNames) -> Iterator[tuple[str, str]]:
        for half in ("encoder", "decoder"):
            yield f"{half}.conv_in", f"{half}.conv_in"
            for place, name in enumerate(names.middle):
                yield f"{half}.{name}", f"{half}.mid.{place}"
        yield "decoder.norm_out", "decoder.norm_out"
        yield "decoder.conv_out", "decoder.conv_out"
        yield "post_quant_conv", "post_quant_conv"


def describe(
    state: State,
    names: ConvolutionalNames,
    image_size: int,
    quantizer: dict[str, Any],
    pairs: Pairs = (),
    dropped: tuple[str, ...] = (),
) -> Network:
    """Describe a tokenizer with one projection between encoder and quantizer.

    Args:
        state: released weights.
        names: of its encoder and decoder.
        image_size: pixels a side.
        quantizer: class path and arguments.
        pairs: released and our names of the quantizer's weights.
        dropped: patterns of entries that are no weights here.
    """
    shape = ConvolutionalShape.of(state, names)
    return Network(
        section={
            "class_path": "polytoken.tokenizers.ConvolutionalTokenizer",
            "init_args": {
                "image_size": image_size,
                **shape.arguments(),
                "latent_channels": size(state, "post_quant_conv.weight"),
                "projection_channels": size(state, "quant_conv.weight", 1),
                "quant_conv_size": size(state, "quant_conv.weight", 2),
                "quantizer": quantizer,
            },
        },
        layout=Layout(
            pairs=(
                *shape.pairs(names),
                ("encoder.norm_out", "projection.tails.0.norm_out"),
                ("encoder.conv_out", "projection.tails.0.conv_out"),
                ("quant_conv", "projection.tails.0.quant_conv"),
                *pairs,
            ),
            joined=shape.fused_attention(state, names),
            dropped=dropped,
        ),
    )
