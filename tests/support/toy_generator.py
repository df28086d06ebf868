"""A minimal second family of generators: independent codes, learned for each class."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytoken.generators import Codec, Generator, GeneratorLoss
from polytoken.sampling import RowNoise
from polytoken.specs import LatentSpec, Tokens, TokenSpec


class ToyGenerator(Generator):
    """Draws code i at position n from a table of the class; its loss counts as a bound, to test the name of the curve.

    Args:
        scale: of the logits.
    """

    depth = 0
    width = 0

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    @property
    def hidden_grid(self) -> tuple[int, int]:
        assert isinstance(self.spec, TokenSpec)
        return self.spec.scales[0]

    def connect(self, spec: TokenSpec | LatentSpec, num_classes: int, codec: Codec | None = None) -> None:
        assert isinstance(spec, TokenSpec)
        self.spec, self.num_classes = spec, num_classes
        sizes = spec.codebook_sizes
        self.tables = nn.ParameterList(torch.zeros(num_classes, spec.num_positions, size) for size in sizes)

    def loss(self, tokens: Tokens, labels: Tensor, step: int = 0, taps: Collection[int] = ()) -> GeneratorLoss:
        assert tokens.codes is not None
        parts = {
            str(i): functional.cross_entropy((self.scale * table[labels]).flatten(0, 1), tokens.codes[:, i].flatten())
            for i, table in enumerate(self.tables)
        }
        return GeneratorLoss(torch.stack([*parts.values()]).mean(), parts, "nats", is_bound=True)

    @torch.no_grad()
    def sample(self, labels: Tensor, sampler: Any, noise: RowNoise) -> Tokens:
        codes = [(self.scale * table[labels]).argmax(2) for table in self.tables]
        return Tokens(codes=torch.stack(codes, dim=1))


class ToyGeneratorOfVectors(ToyGenerator):
    """Reads the vectors of its targets too, and only measures them."""

    needs_codec = True

    def connect(self, spec: TokenSpec | LatentSpec, num_classes: int, codec: Codec | None = None) -> None:
        super().connect(spec, num_classes)
        assert codec is not None
        self.codec = codec

    def loss(self, tokens: Tokens, labels: Tensor, step: int = 0, taps: Collection[int] = ()) -> GeneratorLoss:
        assert tokens.codes is not None
        vectors = self.codec.embed_codes(tokens.codes)
        assert not vectors.requires_grad
        return replace(super().loss(tokens, labels, step), statistics={"vector_norm": vectors.norm()})
