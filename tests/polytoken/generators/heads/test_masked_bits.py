"""The masked head of BAR on bits and on sub-codes."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn import functional

from polytoken.errors import UserError
from polytoken.generators import AutoregressiveGenerator, TrunkConfig
from polytoken.generators.heads import MaskedBitHead
from polytoken.sampling import CategoricalSampler, Draw, RowNoise
from polytoken.specs import Tokens, TokenSpec
from tests.support.generators import TRUNK, build_generator
from tests.support.host_sync import host_syncs

SIZES = (8, 16)
RULES = CategoricalSampler(guidance=2.0, temperature=0.9)
parametrize_digits = pytest.mark.parametrize("digits", ["bits", "codes"])


def generator_of(sizes: tuple[int, ...] = SIZES, grid: tuple[int, int] = (3, 4), **head) -> AutoregressiveGenerator:
    torch.manual_seed(0)
    generator = build_generator(TokenSpec(sizes, (grid,)), 5, TRUNK, MaskedBitHead(width=24, depth=2, **head))
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 2 else 0.1))
    return generator.eval()


def codes_of(sizes: tuple[int, ...], batch: int, positions: int = 12) -> Tensor:
    stream = torch.Generator().manual_seed(1)
    return torch.stack([torch.randint(size, (batch, positions), generator=stream) for size in sizes], dim=1)


def head_of(sizes: tuple[int, ...], trunk: TrunkConfig = TRUNK, **arguments) -> MaskedBitHead:
    head = MaskedBitHead(**arguments)
    head.connect(trunk, sizes, (3, 4))
    torch.manual_seed(0)
    head.reset_parameters()
    return head


def test_codes_are_split_into_bits_and_joined_again() -> None:
    head = head_of((8, 16))
    codes = torch.tensor([[5, 11], [0, 15]])
    assert head.split(codes).tolist() == [[1, 0, 1, 1, 1, 0, 1], [0, 0, 0, 1, 1, 1, 1]]
    assert torch.equal(head.join(head.split(codes)), codes)
    whole = head_of((11, 16), digits="codes")
    assert torch.equal(whole.split(codes), codes)
    assert torch.equal(whole.join(codes), codes)


def test_sizes_match_bar() -> None:
    head = head_of((2**16,), TrunkConfig(1024, 1, 16))
    assert head.output.weight.shape == (2 * 16, 2048)
    assert len(head.blocks) == 3
    assert head.blocks[0].feed_forward.w1.weight.shape == (5461, 2048)
    assert [table.weight.shape for table in head.embeddings] == [(3, 128)] * 16
    assert head.amounts == [4, 4, 4, 4]
    assert head_of((2**16,), steps=[2, 2, 5, 7]).amounts == [2, 2, 5, 7]


def test_first_loss_matches_bar() -> None:
    """Blocks start as the identity; logits have a deviation of 0.02 · √width."""
    head = head_of((2**16,), width=1024).train()
    loss = head.loss(torch.randn(8, 64, 32), codes_of((2**16,), 8, 64), torch.nn.ModuleList())
    assert loss.total.item() == pytest.approx(0.787, abs=0.02)
    assert loss.per_code.item() == pytest.approx(16 * 0.787, abs=0.3)


def test_training_masks_match_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """E[r] = 0.5 and P(8 of 16 masked) = 0.1245; masked digits weigh 1, visible ones 0.1."""
    head = head_of((2**16,), width=32, depth=1).train()
    seen = {}
    logits = MaskedBitHead.logits

    def spy(self: MaskedBitHead, digits: Tensor, masked: Tensor, ratio: Tensor, condition: Tensor) -> list[Tensor]:
        seen.update(masked=masked, ratio=ratio, logits=logits(self, digits, masked, ratio, condition))
        return seen["logits"]

    monkeypatch.setattr(MaskedBitHead, "logits", spy)
    codes = codes_of((2**16,), 20, 1000)
    loss = head.loss(torch.randn(20, 1000, 32), codes, torch.nn.ModuleList())
    counts = seen["masked"].sum(dim=1)
    assert seen["ratio"].mean().item() == pytest.approx(0.4999, abs=0.01)
    assert (counts == 8).float().mean().item() == pytest.approx(0.1245, abs=0.01)
    assert counts.min() >= 1
    targets = head.split(codes.transpose(1, 2).flatten(0, 1))
    losses = torch.stack(
        [functional.cross_entropy(s, targets[:, j], reduction="none") for j, s in enumerate(seen["logits"])], 1
    )
    weights = torch.where(seen["masked"], 1.0, 0.1)
    torch.testing.assert_close(loss.total, (losses * weights).sum() / weights.sum())


@parametrize_digits
def test_masked_digits_are_not_read(digits: str) -> None:
    head = head_of(SIZES, digits=digits)
    codes = codes_of(SIZES, 1, 6)[0].T
    values, others = head.split(codes), head.split(codes.flip(0))
    masked = torch.rand(values.shape) < 0.5
    ratio, condition = torch.full((6, 1), 0.5), head.condition(torch.randn(6, 32))
    mixed = torch.where(masked, others, values)
    first, second = (head.logits(read, masked, ratio, condition) for read in (values, mixed))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_the_validation_loss_is_the_order_agnostic_bound() -> None:
    """The mean over many positions approaches the expectation over counts and subsets, and bounds the exact NLL."""
    generator = generator_of((4,))
    head = generator.head
    hidden = torch.randn(1, 1, 32).expand(1, 20000, 32)
    code = torch.tensor([[[2]]])
    loss = head.loss(hidden, code.expand(1, 1, 20000), generator.embeddings)
    digits, condition = head.split(code[0]), head.condition(hidden[0, :1])

    def nats(masked: list[bool], j: int) -> float:
        mask = torch.tensor([masked])
        scores = head.logits(digits, mask, mask.float().mean(1, keepdim=True), condition)[j]
        return functional.cross_entropy(scores, digits[:, j]).item()

    orders = [nats([True, True], j) + nats([j != 0, j != 1], 1 - j) for j in (0, 1)]
    assert loss.is_bound
    assert loss.per_code.item() == pytest.approx(sum(orders) / 2, rel=0.02)
    assert loss.total == loss.per_code.mean()


def test_only_the_validation_loss_is_logged_as_a_bound() -> None:
    generator = generator_of()
    tokens = Tokens(codes=codes_of(SIZES, 3))
    loss = generator.loss(tokens, torch.tensor([0, 1, 2]))
    assert loss.name == "nll_bound"
    assert loss.parts.keys() == {"0", "1"}
    trained = generator.train().loss(tokens, torch.tensor([0, 1, 2]))
    assert trained.name == "loss" and not trained.is_bound  # it weighs visible digits too
    generator.eval()
    again = generator.loss(tokens, torch.tensor([0, 1, 2]))
    assert torch.equal(loss.total, again.total)  # the masks of an evaluation are fixed


@parametrize_digits
def test_samples_do_not_depend_on_the_batch(digits: str) -> None:
    generator = generator_of(digits=digits)
    labels = torch.tensor([0, 1, 2, 0])
    whole = generator.generate(labels, RULES, seed=3)
    assert whole.shape == (4, 2, 12)
    assert (whole.amax((0, 2)) < torch.tensor(SIZES)).all() and whole.min() == 0
    parts = [generator.generate(labels[i : i + 2], RULES, seed=3, first_index=i) for i in (0, 2)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(generator.generate(labels, RULES, seed=4), whole)
    assert not torch.equal(whole[0], whole[3])  # the same class, another row


@parametrize_digits
def test_a_cold_sampler_leaves_no_randomness(digits: str) -> None:
    """Neither in the digits nor in the order in which they are fixed."""
    generator = generator_of((16, 16, 16), digits=digits)
    labels, cold = torch.arange(5), CategoricalSampler(temperature=1e-6)
    first, other = (generator.generate(labels, cold, seed=seed) for seed in (0, 1))
    assert torch.equal(first, other)


@pytest.mark.parametrize("rules", [{"top_k": [8, 2]}, {"top_p": 0.9}])
def test_bits_refuse_rules_of_codes(rules: dict) -> None:
    labels = torch.tensor([0, 1])
    with pytest.raises(UserError, match="choose among whole codes, and MaskedBitHead with digits: bits draws each bit"):
        generator_of().generate(labels, CategoricalSampler(**rules), seed=0)
    generator_of(digits="codes").generate(labels, CategoricalSampler(**rules), seed=0)
    generator_of().generate(labels, CategoricalSampler(top_k=[*SIZES], top_p=[1.0, 1.0]), seed=0)  # cut nothing


def test_one_digit_is_drawn_from_its_softmax() -> None:
    head = generator_of((11,), digits="codes").head
    hidden = torch.randn(1, 32).expand(4000, 32)
    draw = Draw(CategoricalSampler(), RowNoise(0, 0, 4000, hidden.device), torch.ones(1, 1))
    with torch.no_grad():
        counts = torch.bincount(head.sample(hidden, torch.nn.ModuleList(), draw)[:, 0], minlength=11)
        ones = torch.ones(1, 1)
        (logits,) = head.logits(ones.long(), ones.bool(), ones, head.condition(hidden[:1]))
    expected = 4000 * logits.softmax(-1)[0]
    assert ((counts - expected).square() / expected).sum() < 29.6  # 10 degrees of freedom, 0.1 %


def test_each_step_fixes_its_share() -> None:
    head = generator_of((2**7,), steps=[1, 2, 4]).head
    seen = []
    logits = head.logits

    def spy(digits: Tensor, masked: Tensor, ratio: Tensor, condition: Tensor) -> list[Tensor]:
        seen.append((masked.sum(1).unique().tolist(), ratio.unique().tolist()))
        return logits(digits, masked, ratio, condition)

    head.logits = spy
    draw = Draw(CategoricalSampler(), RowNoise(0, 0, 5, torch.device("cpu")), torch.ones(1, 1))
    head.sample(torch.randn(5, 32), torch.nn.ModuleList(), draw)
    assert [left for left, _ in seen] == [[7], [6], [4]]
    assert [share[0] for _, share in seen] == pytest.approx([1, 6 / 7, 4 / 7])


@parametrize_digits
def test_no_step_synchronises_with_the_host(digits: str) -> None:
    generator = generator_of(digits=digits)
    draw = Draw(RULES, RowNoise(0, 0, 3, torch.device("cpu")), torch.ones(12, 2))
    position, tokens, labels = torch.tensor(4), Tokens(codes=codes_of(SIZES, 3)), torch.tensor([0, 1, 2])
    with torch.no_grad(), host_syncs() as counts:
        generator.decode(torch.randn(6, 1, 32), position, draw, generator.trunk.new_cache(6))
    assert not counts
    with host_syncs() as counts:
        generator.train().loss(tokens, labels).total.backward()
    assert not counts


@pytest.mark.slow
def test_one_graph_serves_all_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = generator_of(steps=[3, 4])
    draw = Draw(RULES, RowNoise(3, 0, 3, torch.device("cpu")), torch.full((12, 2), 2.0))
    labels = torch.tensor([0, 1, 2])
    expected = generator.write(labels, draw, 12)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()
    counters.clear()
    generator.compile_decoding = True
    assert torch.equal(generator.write(labels, draw, 12), expected)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "sub-code 0 has 11 codes, which bits cannot count"),
        ({"digits": "codes", "steps": [1, 2]}, r"the steps \[1, 2\] fix 3 digits and a position has 2"),
        ({"steps": [0, 2]}, "MaskedBitHead: steps holds 0; it must be at least 1"),
        ({"digits": "trits"}, "digits is 'trits'; it must be bits or codes"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
    ],
)
def test_invalid_arguments_are_rejected(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head_of((11, 12), **arguments)


@pytest.mark.parametrize("dim", [64, 768])
def test_the_condition_is_as_large_at_the_start_as_with_bars_widths(dim: int) -> None:
    head = MaskedBitHead(digits="codes", width=64, depth=1)
    head.connect(TrunkConfig(depth=1, dim=dim, num_heads=4), (8, 8), (2, 2))
    torch.manual_seed(0)
    head.reset_parameters()
    with torch.no_grad():
        condition = head.condition(torch.randn(500, dim))
    assert condition.std().item() == pytest.approx(0.02 * 768**0.5, rel=0.05)
