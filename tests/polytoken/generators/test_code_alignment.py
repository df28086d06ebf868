"""Alignment with code vectors: the vectors, both values, their gradients, and what does not fit."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from polytoken.codec import FrozenCodec
from polytoken.generators import (
    AutoregressiveGenerator,
    CodeAlignment,
    DiffusionTransformer,
    DiffusionTrunkConfig,
    GeneratorLoss,
    MultiLinearHead,
    SubTokenNoise,
    TrunkConfig,
)
from polytoken.specs import LatentSpec, Tokens
from polytoken.tokenizers import Tokenizer
from tests.support.generators import build_generator, random_codes
from tests.support.host_sync import host_syncs
from tests.support.tokenizers import tiny_scales, tiny_tokenizer

TRUNK = TrunkConfig(dim=16, depth=4, num_heads=2, ffn_multiple=16)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A generator of two sub-codes with 15 codes each, on a grid of 2 × 2."""
    torch.manual_seed(0)
    return tiny_tokenizer(16, 2, 15).eval()


def generator_of(tokenizer: Tokenizer, noise: SubTokenNoise | None = None) -> AutoregressiveGenerator:
    torch.manual_seed(1)
    generator = build_generator(tokenizer.require_codes(), 5, TRUNK, MultiLinearHead(), noise=noise)
    return generator.eval() if noise is None else generator


def connected(generator: AutoregressiveGenerator, tokenizer: Tokenizer, **changes) -> CodeAlignment:
    alignment = CodeAlignment(**{"width": 24, **changes})
    alignment.connect(generator, FrozenCodec(lambda: tokenizer, [0, 1]))
    return alignment


def loss_of(generator: AutoregressiveGenerator, alignment: CodeAlignment) -> tuple[GeneratorLoss, torch.Tensor]:
    codes, labels = random_codes(generator, 3)
    return generator.loss(Tokens(codes=codes), labels, taps=alignment.taps), codes


@pytest.mark.parametrize("sub_codes", [[0, 1], [1, 0], [1]])
def test_code_vectors_are_those_that_the_decoder_reads(sub_codes: Sequence[int], tokenizer: Tokenizer) -> None:
    vectors = FrozenCodec(lambda: tokenizer, sub_codes).code_vectors()
    spec = tokenizer.require_codes()
    codes = torch.stack([torch.randint(size, (5, spec.num_positions)) for size in spec.codebook_sizes], dim=1)
    subspaces = tokenizer.embed_codes(codes).split(tokenizer.subspace_channels, dim=1)
    for one, i in zip(vectors, sub_codes, strict=True):
        assert len(one) == spec.codebook_sizes[i]
        assert torch.equal(one[codes[:, i]], subspaces[i].flatten(2).transpose(1, 2))


def test_codes_of_several_scales_are_refused_and_have_nearest_codes() -> None:
    tokenizer = tiny_scales()
    generator = generator_of(tokenizer, SubTokenNoise(1.0, nearest=3))
    with pytest.raises(ValueError, match="no vector of one position: leave out code_alignment"):
        connected(generator, tokenizer)
    generator.take_code_vectors(FrozenCodec(lambda: tokenizer, [0, 1]).code_vectors())
    codes, labels = random_codes(generator, 3)
    assert generator.loss(Tokens(codes=codes), labels).statistics["noise_rate"] == 1


@pytest.mark.parametrize("noisy", [False, True])
def test_the_values_are_those_of_float64(noisy: bool, tokenizer: Tokenizer) -> None:
    generator = generator_of(tokenizer)
    alignment = connected(generator, tokenizer)
    loss, codes = loss_of(generator, alignment)
    replaced = torch.rand(3, 4, generator=torch.Generator().manual_seed(2)) < 0.5 if noisy else None
    found = alignment(loss.hidden, codes, replaced)
    targets = tokenizer.embed_codes(codes).flatten(2).transpose(1, 2).double().numpy()

    def cosine(number: int, image: int, row: int, target: int) -> float:
        x = loss.hidden[alignment.taps[number]][image, row].detach().double().numpy()
        for layer_number, layer in enumerate(alignment.projectors[number][::2]):
            x = x / (1 + np.exp(-x)) if layer_number else x
            x = layer.weight.detach().double().numpy() @ x + layer.bias.detach().double().numpy()
        y = targets[image, target]
        return x @ y / np.linalg.norm(x) / np.linalg.norm(y)

    read = [
        0.0 if replaced is not None and replaced[b, i] else -cosine(0, b, i + 1, i) for b in range(3) for i in range(3)
    ]
    following = [-cosine(1, b, i, i) for b in range(3) for i in range(4)]
    assert found.read.item() == pytest.approx(np.mean(read), abs=1e-6)
    assert found.following.item() == pytest.approx(np.mean(following), abs=1e-6)
    assert noisy == (0.0 in read)


def test_replaced_inputs_are_skipped_in_training(tokenizer: Tokenizer) -> None:
    generator = generator_of(tokenizer, SubTokenNoise(1.0))
    alignment = connected(generator, tokenizer)
    loss, codes = loss_of(generator, alignment)
    found = alignment(loss.hidden, codes, loss.replaced)
    assert found.read == 0 and found.following != 0
    loss, _ = loss_of(generator.eval(), alignment)
    assert loss.replaced is None, "validation reads clean codes"


def test_gradients_reach_the_blocks_below_each_tap(tokenizer: Tokenizer) -> None:
    below = "class_embedding.", "embeddings.", "aggregation.", "trunk.blocks.0."
    for part, blocks in (("read", below), ("following", (*below, "trunk.blocks.1.", "trunk.blocks.2."))):
        generator = generator_of(tokenizer)
        alignment = connected(generator, tokenizer, depth=3)
        loss, codes = loss_of(generator, alignment)
        getattr(alignment(loss.hidden, codes), part).backward()
        reached = {name for name, one in generator.named_parameters() if one.grad is not None and one.grad.any()}
        assert reached == {name for name, _ in generator.named_parameters() if name.startswith(blocks)}
        assert not any(one.requires_grad for one in alignment.buffers())


@pytest.mark.parametrize(("blocks", "deep"), [(1, 1), (2, 2), (4, 4), (20, 16), (24, 19)])
def test_the_default_depth_follows_three_quarters(blocks: int, deep: int, tokenizer: Tokenizer) -> None:
    generator = generator_of(tokenizer)
    generator.config = TrunkConfig(dim=16, depth=blocks, num_heads=2, ffn_multiple=16)
    assert connected(generator, tokenizer).taps == (1, deep)


def test_the_vectors_are_not_saved(tokenizer: Tokenizer) -> None:
    alignment = connected(generator_of(tokenizer), tokenizer)
    assert {name.split(".")[0] for name in alignment.state_dict()} == {"projectors"}
    assert len(alignment.state_dict()) == 12 and len([*alignment.buffers()]) == 2


def test_no_host_synchronisation(tokenizer: Tokenizer) -> None:
    noise = SubTokenNoise(0.5, decay_steps=9, sample_probability="uniform", nearest=3)
    generator = generator_of(tokenizer, noise)
    generator.take_code_vectors(FrozenCodec(lambda: tokenizer, [0, 1]).code_vectors())
    alignment = connected(generator, tokenizer)
    loss_of(generator, alignment)  # the first call searches the nearest codes
    with host_syncs() as counts:
        loss, codes = loss_of(generator, alignment)
        sum(alignment(loss.hidden, codes, loss.replaced)).backward()
    assert not counts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": 0.0}, "code_alignment: weight is 0.0; .* and finite .set code_alignment to null for none"),
        ({"weight": float("nan")}, "code_alignment: weight is nan"),
        ({"width": 0}, "code_alignment: width is 0"),
        ({"depth": 5}, "code_alignment.depth is 5 and the generator has blocks 1 to 4"),
    ],
)
def test_settings_that_do_not_fit_are_rejected(changes: dict, message: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=message):
        connected(generator_of(tokenizer), tokenizer, **changes)


def test_generators_of_latents_are_refused(tokenizer: Tokenizer) -> None:
    generator = DiffusionTransformer(DiffusionTrunkConfig(dim=16, depth=4, num_heads=2))
    generator.connect(LatentSpec(3, (4, 4), (0.0,) * 3, (1.0,) * 3), 5)
    with pytest.raises(ValueError, match="and DiffusionTransformer is none: leave it out"):
        connected(generator, tokenizer)
