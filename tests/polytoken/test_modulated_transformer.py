"""The diffusion transformer's trunk: one block against a float64 reference, initialisation, taps."""

import math

import pytest
import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.modulated_transformer import (
    DiffusionTrunkConfig,
    ModulatedBlock,
    ModulatedTrunk,
    TimeEmbedding,
)
from polytoken.positions import Rotation, position_table, rotary_table
from tests.support.diffusion import DIFFUSION_TRUNK, small_diffusion, untrained_diffusion

GRID = (2, 3)


def perturbed(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.3)
    return module


def normed(features: Tensor, weight: Tensor) -> Tensor:
    return features / (features.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def turned(vector: Tensor, row: int, column: int) -> Tensor:
    """Rotate adjacent pairs of a head: the first half by the row, the second by the column."""
    result, pairs = vector.clone(), len(vector) // 4
    for pair in range(2 * pairs):
        angle = (row if pair < pairs else column) * 10000.0 ** -((pair % pairs) / pairs)
        a, b = float(vector[2 * pair]), float(vector[2 * pair + 1])
        result[2 * pair] = a * math.cos(angle) - b * math.sin(angle)
        result[2 * pair + 1] = b * math.cos(angle) + a * math.sin(angle)
    return result


def reference(block: ModulatedBlock, features: Tensor, condition: Tensor, heads: int, qk_norm: bool) -> Tensor:
    """One image (N, dim) through one block, in float64, position by position and head by head."""
    weights = {name: value.detach().double() for name, value in block.named_parameters()}

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    features, condition = features.double(), condition.double()
    dim = features.shape[1]
    modulation = linear("modulation", condition * condition.sigmoid()).view(6, dim)
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation
    fused = linear("attention.wqkv", normed(features, weights["attention_norm.weight"]) * (1 + scale) + shift)
    queries, keys, values = fused.view(len(features), 3, heads, dim // heads).unbind(1)
    mixed = torch.zeros(len(features), heads, dim // heads, dtype=torch.float64)
    for head in range(heads):
        query, key = queries[:, head], keys[:, head]
        if qk_norm:
            query = normed(query, weights["attention.query_norm.weight"])
            key = normed(key, weights["attention.key_norm.weight"])
        places = [divmod(position, GRID[1]) for position in range(len(features))]
        query = torch.stack([turned(vector, *place) for vector, place in zip(query, places, strict=True)])
        key = torch.stack([turned(vector, *place) for vector, place in zip(key, places, strict=True)])
        weighting = (query @ key.T / math.sqrt(dim // heads)).softmax(1)
        mixed[:, head] = weighting @ values[:, head]
    features = features + gate * linear("attention.wo", mixed.flatten(1))
    inner = normed(features, weights["ffn_norm.weight"]) * (1 + ffn_scale) + ffn_shift
    first = linear("feed_forward.w1", inner)
    hidden = first * first.sigmoid() * linear("feed_forward.w3", inner)
    return features + ffn_gate * linear("feed_forward.w2", hidden)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_a_block_equals_its_float64_reference(qk_norm: bool) -> None:
    config = DiffusionTrunkConfig(dim=16, depth=1, num_heads=2, qk_norm=qk_norm)
    block = perturbed(ModulatedBlock(config))
    features, condition = torch.randn(2, 6, 16), torch.randn(2, 16)
    with torch.no_grad():
        found = block(features, condition, Rotation(rotary_table((GRID,), 8, None, features.device)))
    for row in range(2):
        expected = reference(block, features[row], condition[row], 2, qk_norm)
        torch.testing.assert_close(found[row].double(), expected, rtol=1e-4, atol=1e-4)


def test_a_block_of_zero_gates_is_the_identity() -> None:
    trunk = untrained_diffusion().trunk
    features, condition = torch.randn(2, 24, 32), torch.randn(2, 32)
    found, _ = trunk(features, condition)
    assert torch.equal(found, features + position_table((4, 6), 32, features.device))


def test_taps_are_the_outputs_of_blocks() -> None:
    trunk = perturbed(ModulatedTrunk(DIFFUSION_TRUNK, GRID))
    features, condition = torch.randn(2, 6, 32), torch.randn(2, 32)
    found, tapped = trunk(features, condition, taps={1, 2})
    assert [*tapped] == [1, 2] and torch.equal(tapped[2], found) and not torch.equal(tapped[1], found)
    assert trunk(features, condition)[1] == {}


def test_initialisation() -> None:
    """Xavier-uniform matrices; N(0, 0.02²) for classes and the layers of time; modulation and output at zero.

    The released code has one layer (2h, dim) for w1 and w3, and one (3 dim, dim) for queries, keys and values.
    """
    dim, hidden = 128, 384
    generator = untrained_diffusion(dim=dim, num_heads=2, ffn_multiple=64)
    for name, value in generator.named_parameters():
        if name.endswith("bias") or "modulation" in name or name.startswith("output.output"):
            assert value.abs().max() == 0, name
        elif "norm" in name:
            assert torch.equal(value, torch.ones_like(value)), name
        elif name.startswith(("time_embedding", "class_embedding")):
            assert value.std().item() == pytest.approx(0.02, rel=0.1), name
        else:
            fused = {"w1": 2 * hidden, "w3": 2 * hidden, "wqkv": 3 * dim}
            outputs = fused.get(name.split(".")[-2], value.shape[0])
            bound = math.sqrt(6 / (value.shape[1] + outputs))
            assert value.abs().max() <= bound and value.std().item() == pytest.approx(bound / 3**0.5, rel=0.05), name


def test_time_stays_float32_under_autocast() -> None:
    """In bfloat16 two times 2⁻¹⁰ apart would be one time."""
    embedding = perturbed(TimeEmbedding(8))
    times = torch.tensor([0.5, 0.5 + 2**-10])
    expected = embedding(times)
    with torch.autocast("cpu", torch.bfloat16):
        found = embedding(times)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert torch.equal(times.bfloat16()[0], times.bfloat16()[1]) and not torch.equal(found[0], found[1])


def test_the_residual_stream_is_float32_under_autocast() -> None:
    generator = small_diffusion()
    with torch.autocast("cpu", torch.bfloat16):
        labels = torch.tensor([0, 1])
        velocity, hidden = generator.velocity(torch.randn(2, 3, 4, 6), torch.tensor([0.2, 0.7]), labels, taps=[1])
    assert hidden[1].dtype == torch.float32 and velocity.dtype == torch.bfloat16


def test_weights_in_bfloat16_compute_in_it() -> None:
    states, times, labels = torch.randn(2, 3, 4, 6), torch.tensor([0.2, 0.7]), torch.tensor([0, 1])
    velocity, hidden = small_diffusion().to(torch.bfloat16).velocity(states, times, labels, taps=[1])
    assert {velocity.dtype, hidden[1].dtype} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dim": 30}, "must be a multiple of 4"),
        ({"depth": 0}, "trunk: depth is 0"),
        ({"patch_size": 0}, "trunk: patch_size is 0"),
        ({"class_dropout": 1.0}, "trunk: class_dropout is 1.0"),
    ],
)
def test_invalid_sizes(changes: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        DiffusionTrunkConfig(**(vars(DIFFUSION_TRUNK) | changes))
