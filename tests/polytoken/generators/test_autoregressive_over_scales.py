"""The autoregressive generator on codes of several scales: one sequence, coarse scale first, raster in a scale."""

from itertools import product

import pytest
import torch
from torch._dynamo.utils import counters

from polytoken.errors import UserError
from polytoken.generators import (
    AutoregressiveGenerator,
    AutoregressiveHead,
    Head,
    LinearHead,
    MaskedBitHead,
    MultiLinearHead,
    SubTokenNoise,
)
from polytoken.handover import carry_over
from polytoken.positions import rotary_table
from polytoken.sampling import CategoricalSampler
from polytoken.specs import Tokens, TokenSpec
from tests.support.generators import GRID, NUM_CLASSES, TRUNK, build_generator, random_codes, random_tokens

SCALES = ((1, 1), (1, 1), (2, 2), (3, 4))  # 18 positions


def over_scales(head: Head, sizes: tuple[int, ...] = (11, 12), **changes) -> AutoregressiveGenerator:
    """A generator in eval mode with large random weights, so that all its parts matter."""
    torch.manual_seed(0)
    generator = build_generator(TokenSpec(sizes, SCALES), NUM_CLASSES, TRUNK, head, **changes)
    for parameter in generator.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return generator.eval()


@pytest.mark.parametrize("position", [0, 1, 2, 5, 6, 16])
def test_a_code_moves_only_the_states_after_it(position: int) -> None:
    generator = over_scales(MultiLinearHead())
    codes, labels = random_codes(generator, 1)
    before = generator.hidden(codes, labels)
    codes[0, 1, position] = (codes[0, 1, position] + 1) % 12
    moved = (generator.hidden(codes, labels) - before).abs().amax((0, 2))
    assert moved.shape == (18,) and moved[: position + 1].max() == 0 and moved[position + 1 :].min() > 0


@pytest.mark.parametrize("head", [MultiLinearHead(), AutoregressiveHead(1)], ids=["parallel", "autoregressive"])
@pytest.mark.parametrize("compiled", [False, True])
def test_cached_sampling_writes_the_likeliest_codes_of_teacher_forcing(
    head: Head, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places are integers in eager mode, tensors in a compiled step, here run operator by operator."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    generator, labels = over_scales(head), torch.tensor([0, 2, 4])
    generator.compile_decoding = compiled
    written = generator.generate(labels, CategoricalSampler(top_k=1), seed=0)
    assert written.shape == (3, 2, 18)
    read = written.transpose(1, 2).flatten(0, 1)
    states = head.states(generator.hidden(written, labels).flatten(0, 1), read, generator.embeddings)
    logits = [output(state) for output, state in zip(head.outputs, states, strict=True)]
    assert torch.equal(read, torch.stack([one.argmax(-1) for one in logits], dim=1))


@pytest.mark.slow
def test_one_graph_serves_the_positions_of_all_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: compile_whole(function, backend="aot_eager", **how))
    generator, labels, rules = over_scales(LinearHead(), (11,)), torch.tensor([0, 2]), CategoricalSampler()
    expected = generator.generate(labels, rules, seed=3)
    torch.compiler.reset()
    counters.clear()
    generator.compile_decoding = True
    assert torch.equal(generator.generate(labels, rules, seed=3), expected)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("head", [MultiLinearHead(), AutoregressiveHead(1), MaskedBitHead(digits="codes", depth=1)])
def test_a_row_does_not_depend_on_its_batch(head: Head) -> None:
    generator, labels = over_scales(head), torch.tensor([0, 2, 4])
    rules = CategoricalSampler(guidance=2.5, guidance_schedule="interval", interval=(0.0, 0.5), top_k=8)
    together = generator.generate(labels, rules, seed=7)
    assert torch.equal(together[1:2], generator.generate(labels[1:2], rules, seed=7, first_index=1))


def test_places_count_in_units_of_the_finest_grid() -> None:
    table = rotary_table(SCALES, 8, "zero", torch.device("cpu"))
    turns = [(1.0, 1.5)] * 2 + [*product((0.25, 1.75), (0.5, 2.5))] + [*product(range(3), range(4))]
    expected = torch.tensor([[[place[0]], [place[1]]] for place in turns]) * torch.tensor([1.0, 0.01])
    angles = torch.atan2(table[1:, :, 1], table[1:, :, 0])
    torch.testing.assert_close(angles, expected.flatten(1), rtol=1e-5, atol=1e-6)
    assert torch.equal(table[7:], rotary_table(((3, 4),), 8, None, torch.device("cpu")))


def test_levels_tell_scales_of_one_grid_apart() -> None:
    generator = over_scales(MultiLinearHead())
    codes, labels = random_codes(generator, 1)
    before = generator.hidden(codes, labels)
    generator.level_embedding.weight.data[1] += 1.0
    moved = (generator.hidden(codes, labels) - before).abs().amax((0, 2))
    assert moved[:2].max() == 0 and moved[2:].min() > 0  # codes 0 and 1 have the same place
    one = build_generator(TokenSpec((11, 12), (GRID,)), NUM_CLASSES, TRUNK, MultiLinearHead())
    assert one.level_embedding is None and not any("level" in name for name in one.state_dict())


def test_taps_are_the_rows_of_the_finest_scale() -> None:
    generator = over_scales(MultiLinearHead(), noise=SubTokenNoise(0.5, "patch", "both"))
    tokens, labels = random_tokens(generator, 2)
    loss = generator.loss(tokens, labels, taps=(1, 2))
    assert generator.hidden_grid == (3, 4)
    assert torch.equal(loss.hidden[2], generator.hidden(tokens.codes, labels)[:, 6:]) and loss.hidden[1].shape[1] == 12
    generator.train().loss(tokens, labels).total.backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())


@pytest.mark.parametrize("sub_code", [0, 1])
def test_an_earlier_stage_of_one_sub_code_hands_its_states_over(sub_code: int) -> None:
    earlier, later = over_scales(LinearHead(), ((11, 12)[sub_code],)), over_scales(MultiLinearHead())
    handover = carry_over(earlier.state_dict(), later, sub_code)
    assert "level_embedding.weight" in handover.carried
    codes, labels = random_codes(later, 2)
    expected = earlier.hidden(codes[:, sub_code : sub_code + 1], labels)
    torch.testing.assert_close(later.hidden(codes, labels), expected)


def test_codes_of_other_scales_are_one_sentence() -> None:
    generator = over_scales(MultiLinearHead())
    with pytest.raises(UserError, match=r"18 positions on a grid of 1 × 1, 1 × 1, 2 × 2, 3 × 4\): use the token store"):
        generator.loss(Tokens(codes=torch.zeros(1, 2, 12, dtype=torch.int64)), torch.tensor([0]))
