import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from polytoken.generators import Generator
from polytoken.positions import Rotation, rotary_table
from polytoken.transformer import FeedForward, RMSNorm, RotaryCache, Trunk, TrunkConfig
from tests.support.diffusion import random_latents, small_diffusion
from tests.support.generators import GRID, TRUNK, random_tokens, small_generator

CPU = torch.device("cpu")


def build(**changes) -> Trunk:
    torch.manual_seed(0)
    return Trunk(replace(TRUNK, **changes), (GRID,))


def test_rotary_table_is_float32_for_any_weights() -> None:
    trunk = build().eval()
    features = torch.randn(1, 12, 32)
    expected, _ = trunk(features)
    assert not any("rotary" in name for name in trunk.state_dict())
    assert trunk.bfloat16().new_cache(1).rotary.dtype == torch.float32
    assert trunk.float().to_empty(device="meta")(features.to("meta"))[0].is_meta
    assert torch.equal(build().eval()(features)[0], expected)


def test_a_rotary_table_first_used_in_inference_serves_training() -> None:
    rotary_table.cache_clear()
    trunk = build()
    with torch.inference_mode():
        trunk(torch.randn(1, 12, 32))
    trunk(torch.randn(1, 12, 32))[0].sum().backward()


def test_norm_computes_in_float32() -> None:
    features = torch.full((1, 4), 300.0, dtype=torch.float16)  # 300² is beyond float16
    assert torch.allclose(RMSNorm(4)(features).float(), torch.ones(1, 4))
    assert RMSNorm(4)(torch.zeros(1, 4)).abs().max() == 0
    tiny = torch.full((1, 4), 1e-3)
    assert torch.allclose(RMSNorm(4)(tiny), tiny / math.sqrt(1e-6 + 1e-5))


def test_feed_forward() -> None:
    """w2(silu(w1 x) · w3 x), with Llama's names, which released weights use."""
    layer = FeedForward(6, 4, 0.0)
    features = torch.randn(3, 6)
    gate, value = features @ layer.w1.weight.T, features @ layer.w3.weight.T
    expected = (gate / (1 + (-gate).exp()) * value) @ layer.w2.weight.T
    assert layer.w1.weight.shape == (16, 6)
    torch.testing.assert_close(layer(features), expected)


@pytest.mark.parametrize("class_position", ["zero", "identity"])
def test_attention_of_the_first_code_to_the_class(class_position: str) -> None:
    """With the zero rotation the class's logit is 0 for any key; position 1, grid (0, 0), is not rotated."""
    trunk = build(class_position=class_position).eval()
    attention = trunk.blocks[0].attention
    features = torch.randn(1, 2, 32)
    queries, keys, values = attention.wqkv(features)[0].unflatten(-1, (3, 2, 16)).unbind(1)  # (position, head, 16)
    logits = torch.einsum("hc,phc->hp", queries[1], keys) / 4
    if class_position == "zero":
        logits[:, 0] = 0
    heard = torch.einsum("hp,phc->hc", logits.softmax(1), values).flatten()
    rotation = Rotation(trunk.new_cache(1).rotary[:2])
    attended = attention(features, rotation)[0]
    assert torch.allclose(attended[1], attention.wo(heard), atol=1e-6)
    assert torch.allclose(attended[0], attention.wo(values[0].flatten()), atol=1e-6)


def test_cached_steps_equal_the_whole_sequence() -> None:
    trunk = build().eval()
    features = torch.randn(2, 12, 32)
    whole, _ = trunk(features)
    for sizes in ([1] * 12, [5, 1, 4, 2]):
        cache, steps, position = trunk.new_cache(2), [], 0
        for size in sizes:
            steps.append(trunk.step(features[:, position : position + size], position, cache))
            position += size
        assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-6)


def test_later_positions_do_not_reach_earlier_ones() -> None:
    trunk = build().eval()
    features = torch.randn(1, 12, 32)
    changed = features.clone()
    changed[:, 7] += 1
    (before, _), (after, _) = trunk(features), trunk(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.isclose(before[:, 7:], after[:, 7:]).all(-1).any()


def test_steps_at_a_tensor_position_equal_those_at_an_integer() -> None:
    """The masked attention over the full capacity and the slice up to the position."""
    trunk = build().eval()
    features = torch.randn(2, 12, 32)
    caches = trunk.new_cache(2), trunk.new_cache(2)
    for start, end in ((0, 1), (1, 2), (2, 5), (5, 12)):
        places = torch.tensor(start), start
        masked, sliced = (
            trunk.step(features[:, start:end], place, cache) for place, cache in zip(places, caches, strict=True)
        )
        torch.testing.assert_close(masked, sliced)


def test_cache_is_allocated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = build().eval()
    cache = trunk.new_cache(2)
    held = [tensor.data_ptr() for tensor in (*cache.keys, *cache.values)]
    made = []
    monkeypatch.setattr(RotaryCache, "__init__", lambda *_: made.append(1))
    for position in range(12):
        trunk.step(torch.randn(2, 1, 32), position, cache)
    assert [tensor.data_ptr() for tensor in (*cache.keys, *cache.values)] == held
    assert cache.keys[1].shape == cache.values[1].shape == (2, 2, 12, 16)
    assert cache.nbytes == 2 * 2 * 2 * 2 * 12 * 16 * 4
    assert not made


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        trunk = build()
        for block in trunk.blocks:
            block.checkpointing = checkpointing
        features = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        torch.manual_seed(3)  # the same dropout
        trunk(features)[0].square().sum().backward()
        gradients.append([features.grad, *(parameter.grad for parameter in trunk.parameters())])
    assert all(torch.allclose(first, second) for first, second in zip(*gradients, strict=True))


def test_each_dropout_is_applied() -> None:
    features = torch.randn(2, 12, 32)
    none = {"resid_dropout": 0.0, "ffn_dropout": 0.0, "token_dropout": 0.0}
    assert torch.equal(build(**none)(features)[0], build(**none).eval()(features)[0])
    for name in none:
        trunk = build(**(none | {name: 0.5}))
        assert not torch.equal(trunk(features)[0], trunk.eval()(features)[0]), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "32 channels over 3 attention heads"),
        ({"num_heads": 16}, "multiple of 4"),
        ({"depth": 0}, "trunk: depth is 0"),
        ({"class_dropout": 1.0}, "trunk: class_dropout is 1.0"),
        ({"class_position": "nowhere"}, "it must be zero or identity"),
    ],
)
def test_invalid_sizes_are_rejected(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrunkConfig(**({"dim": 32, "depth": 2, "num_heads": 2} | changes))


class Kernels(TorchDispatchMode):
    """Records the operators of attention, their mask and whether they are causal."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Tensor | None, bool]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().startswith("aten::_scaled_dot_product") and "backward" not in func.name():
            given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)}
            given |= kwargs or {}
            assert all(given[name].stride(-1) == 1 for name in ("query", "key", "value"))
            self.calls.append((func.name(), given.get("attn_mask"), given.get("is_causal", False)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("causal", [True, False])
def test_training_attends_by_the_flash_kernel(causal: bool) -> None:
    """In bfloat16 and without a mask, which that kernel does not take on a GPU."""
    generator: Generator = small_generator() if causal else small_diffusion()
    batch = random_tokens(small_generator(), 2) if causal else random_latents(2)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), torch.autocast("cpu", torch.bfloat16), Kernels() as kernels:
        generator.train().loss(*batch).total.backward()
    expected = ("aten::_scaled_dot_product_flash_attention_for_cpu", None, causal)
    assert kernels.calls == [expected] * len([*generator.blocks()])
