import math

import pytest
import torch

from polytoken.generators import (
    AutoregressiveHead,
    Head,
    LinearHead,
    MaskedBitHead,
    MultiLinearHead,
    MultiMLPHead,
    TrunkConfig,
)
from polytoken.sampling import CategoricalSampler, Draw, RowNoise
from polytoken.specs import Tokens, TokenSpec
from tests.polytoken.generators import test_next_scale as next_scale
from tests.support.generators import GRID, TRUNK, build_generator, per_code, random_codes, small_generator

HEADS = {
    "linear": (LinearHead, 1),
    "multi_linear": (MultiLinearHead, 3),
    "multi_linear_of_var": (lambda: MultiLinearHead(norm=False, bias=True), 3),
    "multi_mlp": (MultiMLPHead, 3),
    "multi_mlp_narrow": (lambda: MultiMLPHead(hidden=16, depth=1), 3),
    "autoregressive": (lambda: AutoregressiveHead(2), 3),
    "autoregressive_narrow": (lambda: AutoregressiveHead(2, width=16), 3),
    "autoregressive_single": (lambda: AutoregressiveHead(1), 1),
}
parametrize_heads = pytest.mark.parametrize(("head", "num_sub_codes"), HEADS.values(), ids=HEADS)


@parametrize_heads
@pytest.mark.parametrize("aggregation", ["concatenation", "sum"])
@pytest.mark.parametrize("guided", [False, True])
def test_sampling_equals_teacher_forcing(head, num_sub_codes: int, aggregation: str, guided: bool) -> None:
    """Log-probabilities of a forced sequence, decoded position by position through both caches."""
    generator = small_generator(num_sub_codes, head(), aggregation=aggregation)
    codes, labels = random_codes(generator, 3)
    rows = torch.cat([labels, torch.full_like(labels, 5)]) if guided else labels
    seen = torch.zeros(len(rows), *codes.shape[1:])

    class Forced(Draw):
        def at(self, position: int) -> Draw:
            return Forced(self.sampler, self.noise, self.scales, position)

        def categorical(self, logits: torch.Tensor, sub_code: int) -> torch.Tensor:
            target = codes[:, sub_code, self.position].repeat(len(rows) // 3).unsqueeze(1)
            seen[:, sub_code, self.position] = logits.log_softmax(1).gather(1, target).squeeze(1)
            return codes[:, sub_code, self.position]

    draw = Forced(CategoricalSampler(), RowNoise(0, 0, 3, codes.device), torch.ones(12, num_sub_codes))
    with torch.no_grad():
        assert torch.equal(generator.write(labels, draw, guided_positions=12 if guided else 0), codes)
    for row in range(3):
        loss = generator.loss(Tokens(codes=codes[row : row + 1]), labels[row : row + 1])
        assert torch.allclose(per_code(loss), -seen[row].mean(1), atol=1e-5)
    if guided:
        loss = generator.loss(Tokens(codes=codes[:1]), torch.tensor([5]))
        assert torch.allclose(per_code(loss), -seen[3].mean(1), atol=1e-5)
    assert seen.std() > 0.1


@parametrize_heads
def test_causality(head, num_sub_codes: int) -> None:
    """Changing sub-code i at t moves no earlier position and, at t, no sub-code up to i."""
    generator = small_generator(num_sub_codes, head())
    codes, labels = random_codes(generator, 1)
    before = state_matrix(generator, codes, labels)
    for i in range(num_sub_codes):
        for t in (0, 5, 11):
            changed = codes.clone()
            changed[:, i, t] = (changed[:, i, t] + 1) % generator.spec.codebook_sizes[i]
            moved = (state_matrix(generator, changed, labels) - before).abs().amax(-1) > 1e-7  # (k, N)
            assert not moved[:, :t].any()
            assert moved[:, t + 1 :].all()
            assert not moved[: i + 1, t].any()
            if isinstance(generator.head, AutoregressiveHead):
                assert moved[i + 1 :, t].all()


def state_matrix(generator, codes, labels) -> torch.Tensor:
    """Inputs of the output layers (k, N, width) for one image."""
    hidden = generator.hidden(codes, labels).flatten(0, 1)
    states = generator.head.states(hidden, codes.transpose(1, 2).flatten(0, 1), generator.embeddings)
    return torch.stack(list(states)).detach()


@parametrize_heads
def test_targets_are_the_codes_for_any_head_input(head, num_sub_codes: int) -> None:
    generator = small_generator(num_sub_codes, head())
    codes, noisy = (random_codes(generator, 2, seed)[0] for seed in (1, 2))
    hidden = torch.randn(2, 12, 32)
    states = generator.head.states(hidden.flatten(0, 1), noisy.transpose(1, 2).flatten(0, 1), generator.embeddings)
    expected = [
        torch.nn.functional.cross_entropy(output(state), codes[:, i].flatten())
        for i, (output, state) in enumerate(zip(generator.head.outputs, states, strict=True))
    ]
    loss = generator.head.loss(hidden, codes, generator.embeddings, noisy)
    torch.testing.assert_close(loss.per_code, torch.stack(expected))


@pytest.mark.parametrize("head", [MultiLinearHead, MultiMLPHead])
def test_heads_without_a_stack_read_the_normed_trunk(head) -> None:
    generator = small_generator(2, head())
    hidden, codes = torch.randn(4, 32), torch.zeros(4, 2, dtype=torch.int64)
    for scaled, plain in zip(
        generator.head.states(8 * hidden, codes, generator.embeddings),
        generator.head.states(hidden, codes, generator.embeddings),
        strict=True,
    ):
        torch.testing.assert_close(scaled, plain, atol=1e-3, rtol=1e-3)


@parametrize_heads
def test_first_predictions_are_uniform(head, num_sub_codes: int) -> None:
    head = head()
    generator = small_generator(num_sub_codes, head)
    head.reset_parameters()
    codes, labels = random_codes(generator, 2)
    expected = torch.tensor([math.log(size) for size in generator.spec.codebook_sizes])
    assert torch.allclose(per_code(generator.loss(Tokens(codes=codes), labels)), expected)


def test_sub_codes_use_the_first_rotations_of_the_trunk() -> None:
    """Slot 0 has zeros, slot 1 the identity, slot 2 column 1 of the trunk's table."""
    head = AutoregressiveHead(1)
    head.connect(TRUNK, (11, 12, 13), GRID)
    table = head.new_cache(2).rotary
    assert table[0].abs().max() == 0
    assert torch.equal(table[1, :, 0], torch.ones(8))
    assert torch.equal(table[2, :4, 0], torch.ones(4))
    assert (table[2, 4:, 1] > 0).all()
    assert head.stack.capacity == 3
    assert [keys.shape for keys in head.new_cache(2).keys] == [(2, 2, 3, 16)]


def test_slot_zero_holds_the_unchanged_trunk_output() -> None:
    """With blocks that add nothing, sub-code 0's logits are the linear head's."""
    generator = small_generator(2, AutoregressiveHead(1))
    for block in generator.head.stack.blocks:
        torch.nn.init.zeros_(block.attention.wo.weight)
        torch.nn.init.zeros_(block.feed_forward.w2.weight)
    hidden, codes = torch.randn(4, 32), torch.ones(4, 2, dtype=torch.int64)
    first, second = generator.head.states(hidden, codes, generator.embeddings)
    assert torch.allclose(first, generator.head.norm(hidden))
    assert torch.allclose(second, generator.head.norm(generator.embeddings[0](codes[:, 0])))


@pytest.mark.parametrize("family", ["autoregressive", "next_scale"])
@pytest.mark.parametrize(
    ("head", "num_sub_codes"),
    [*HEADS.values(), (lambda: MaskedBitHead("codes", depth=1), 2)],
    ids=[*HEADS, "masked"],
)
def test_all_weights_are_trained(head, num_sub_codes: int, family: str) -> None:
    """A weight without a gradient stops DDP in its second step."""
    if family == "autoregressive":
        generator = small_generator(num_sub_codes, head())
        codes, labels = random_codes(generator, 3)
    else:
        sub_codes = range(min(num_sub_codes, 2))  # its tokenizer has two
        generator = next_scale.generator(head(), sub_codes=sub_codes)
        codes, labels = next_scale.codes()[:, sub_codes], torch.tensor([0, 1, 2])
    generator.train().loss(Tokens(codes=codes), labels).total.backward()
    assert [name for name, weight in generator.named_parameters() if weight.grad is None] == []


def test_last_embedding_is_not_read_by_the_head() -> None:
    generator = small_generator(2)
    codes, labels = random_codes(generator, 2)
    generator.head.loss(torch.randn(2, 12, 32), codes, generator.embeddings).total.backward()
    assert generator.embeddings[0].weight.grad is not None
    assert generator.embeddings[1].weight.grad is None


@pytest.mark.parametrize(
    ("head", "sizes", "message"),
    [
        (LinearHead(), (11, 12), "LinearHead predicts one code per position and the data has 2"),
        (AutoregressiveHead(width=18), (11, 12), "AutoregressiveHead: 18 channels"),
        (AutoregressiveHead(), (11,) * 14, "14 sub-codes; a 3 × 4 grid"),
    ],
)
def test_incompatible_heads_are_rejected(head: Head, sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head.connect(TRUNK, sizes, GRID)


def test_invalid_arguments_are_rejected() -> None:
    with pytest.raises(ValueError, match="depth is 0"):
        AutoregressiveHead(depth=0)
    with pytest.raises(ValueError, match="MultiMLPHead: hidden is 0"):
        MultiMLPHead(hidden=0)


def test_perceptrons_keep_the_variance_of_their_input():
    torch.manual_seed(0)
    generator = build_generator(TokenSpec((8, 8), ((2, 2),)), 3, TrunkConfig(128, 1, 2), MultiMLPHead())
    states = generator.head.states(torch.randn(256, 128), torch.empty(256, 0), generator.embeddings)
    assert all(
        0.5 < float(state.square().mean()) < 2 for state in states
    )  # 1e-4 with the generator's deviation of 0.02
