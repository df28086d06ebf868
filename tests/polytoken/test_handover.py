from dataclasses import replace

import pytest
import torch
from torch import nn

from polytoken.generators import AutoregressiveGenerator, AutoregressiveHead, LinearHead, MultiLinearHead, MultiMLPHead
from polytoken.handover import carry_over
from polytoken.specs import Tokens, TokenSpec
from tests.support.generators import (
    GRID,
    NUM_CLASSES,
    TRUNK,
    build_generator,
    per_code,
    random_codes,
    random_tokens,
    small_generator,
)

DUAL = TokenSpec((11, 11, 11), (GRID,))


def stage_two(head=None, aggregation: str = "concatenation", trunk=TRUNK, num_classes=NUM_CLASSES):
    torch.manual_seed(9)
    head = head or AutoregressiveHead(2)
    return build_generator(DUAL, num_classes, trunk, head, aggregation).eval()


@pytest.fixture
def stage_one() -> AutoregressiveGenerator:
    return small_generator(1, LinearHead())


@pytest.mark.parametrize("aggregation", ["concatenation", "sum"])
@pytest.mark.parametrize("sub_code", [0, 1, 2])
def test_hidden_states_equal_those_of_stage_one(stage_one, aggregation: str, sub_code: int) -> None:
    target = stage_two(aggregation=aggregation)
    handover = carry_over(stage_one.state_dict(), target, sub_code)
    codes, labels = random_codes(stage_one, 3)
    full = torch.randint(11, (3, 3, 12))
    full[:, sub_code] = codes[:, 0]
    assert torch.equal(target.hidden(full, labels), stage_one.hidden(codes, labels))
    assert f"embeddings.{sub_code}.weight" in handover.carried
    assert torch.equal(target.head.norm.weight, stage_one.head.norm.weight)


def test_a_linear_head_predicts_as_stage_one_did(stage_one) -> None:
    target = stage_two(MultiLinearHead())
    carry_over(stage_one.state_dict(), target, sub_code=1)
    codes, labels = random_codes(stage_one, 3)
    loss = target.loss(Tokens(codes=codes.expand(-1, 3, -1)), labels)
    assert torch.allclose(loss.parts["1"], stage_one.loss(Tokens(codes=codes), labels).total)
    assert torch.allclose(loss.parts["0"], torch.tensor(11.0).log())


@pytest.mark.parametrize(
    ("head", "reads"), [(MultiLinearHead, {0, 1, 2}), (lambda: AutoregressiveHead(2), {0}), (MultiMLPHead, set())]
)
@pytest.mark.parametrize("sub_code", [0, 1, 2])
def test_an_output_layer_is_carried_where_it_reads_the_hidden_state(stage_one, head, reads, sub_code: int) -> None:
    """On other states it would begin worse than a fresh one, whose first loss is ln K."""
    nn.init.normal_(stage_one.head.outputs[0].weight)
    target = stage_two(head())
    carry_over(stage_one.state_dict(), target, sub_code)
    output = target.head.outputs[sub_code].weight
    assert torch.equal(output, stage_one.head.outputs[0].weight if sub_code in reads else torch.zeros_like(output))


@pytest.mark.parametrize("aggregation", ["concatenation", "sum"])
def test_silenced_sub_codes_receive_gradients(stage_one, aggregation: str) -> None:
    """They start without influence, but with gradients."""
    target = stage_two(aggregation=aggregation)
    carry_over(stage_one.state_dict(), target, sub_code=0)
    target.loss(Tokens(codes=torch.randint(11, (3, 3, 12))), torch.tensor([0, 1, 2])).total.backward()
    silenced = target.aggregation.weight.grad[:, 32:] if target.aggregation else target.embeddings[2].weight.grad
    assert silenced.abs().max() > 0


@pytest.mark.parametrize("aggregation", ["concatenation", "sum"])
def test_the_same_codes_carry_over_all_tensors_that_fit(aggregation: str) -> None:
    source = small_generator(2, aggregation=aggregation)
    target = build_generator(source.spec, NUM_CLASSES, TRUNK, AutoregressiveHead(2), aggregation).eval()
    handover = carry_over(source.state_dict(), target, "all")
    assert handover.fresh == handover.left_behind == ()
    tokens, labels = random_tokens(source, 3)
    assert torch.equal(per_code(target.loss(tokens, labels)), per_code(source.loss(tokens, labels)))

    target = build_generator(source.spec, NUM_CLASSES, TRUNK, MultiLinearHead(), aggregation).eval()
    handover = carry_over(source.state_dict(), target, "all")
    assert handover.fresh == () and "head.outputs.1.weight" in handover.carried
    assert handover.left_behind and all(name.startswith("head.") for name in handover.left_behind)
    assert torch.equal(target.hidden(tokens.codes, labels), source.hidden(tokens.codes, labels))


def test_the_three_lists_are_complete(stage_one) -> None:
    source, target = stage_one.state_dict(), stage_two()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    handover = carry_over(source, target)
    after = target.state_dict()
    assert set(handover.carried) | set(handover.fresh) == set(after)
    assert not set(handover.carried) & set(handover.fresh)
    assert handover.left_behind == ("embeddings.0.weight", "head.outputs.0.weight")
    for name in handover.carried:
        assert torch.equal(after[name], source[name])
    for name in handover.fresh:
        assert torch.equal(after[name], before[name])
    assert "trunk.blocks.1.ffn_norm.weight" in handover.carried
    assert {"class_embedding.weight", "head.norm.weight"} <= set(handover.carried)
    assert "trunk.blocks.*.ffn_norm.weight (2)" in str(handover)
    assert f"left behind (2): {', '.join(handover.left_behind)}" in str(handover)


def test_mismatched_tensors_outside_the_trunk_stay_fresh(stage_one) -> None:
    target = stage_two(AutoregressiveHead(1, width=16), num_classes=9)
    handover = carry_over(stage_one.state_dict(), target, sub_code=0)
    assert {"class_embedding.weight", "head.norm.weight", "head.outputs.0.weight"} <= set(handover.fresh)
    assert {"class_embedding.weight", "head.norm.weight", "head.outputs.0.weight"} == set(handover.left_behind)
    assert "head.norm.weight" in carry_over(stage_one.state_dict(), stage_two(MultiMLPHead(hidden=16))).carried


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 64, "ffn_multiple": 32}, "trunk.blocks.0.attention_norm.weight is 32 .* and 64 in this model"),
        ({"depth": 3}, "trunk.blocks.2.attention_norm.weight is missing .* and 32"),
        ({"depth": 1}, "trunk.blocks.1.attention_norm.weight is 32 .* and missing"),
        ({"ffn_multiple": 256}, "trunk.blocks.0.feed_forward.w1.weight is 96 × 32 .* and 256 × 32"),
    ],
)
def test_another_trunk_is_rejected_and_nothing_changes(stage_one, changes: dict, message: str) -> None:
    target = stage_two(trunk=replace(TRUNK, **changes))
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        carry_over(stage_one.state_dict(), target)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_incompatible_sub_codes_are_rejected(stage_one) -> None:
    with pytest.raises(ValueError, match="sub-codes 0 to 2"):
        carry_over(stage_one.state_dict(), stage_two(), sub_code=3)
    with pytest.raises(ValueError, match="read 2 sub-codes: leave it out"):
        carry_over(small_generator(2).state_dict(), stage_two(), sub_code=0)
    other = build_generator(TokenSpec((12,), (GRID,)), NUM_CLASSES, TRUNK, LinearHead())
    with pytest.raises(ValueError, match="12 × 32 and that of sub-code 1 is 11 × 32"):
        carry_over(other.state_dict(), stage_two(), sub_code=1)
