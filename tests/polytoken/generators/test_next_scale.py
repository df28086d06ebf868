"""The next-scale generator: causality over scales, cached against teacher-forced, published sizes and start."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from polytoken.codec import BlankCodec, FrozenCodec
from polytoken.errors import UserError
from polytoken.generators import (
    AutoregressiveHead,
    Head,
    MaskedBitHead,
    MultiLinearHead,
    NextScaleGenerator,
    NextScaleTrunkConfig,
)
from polytoken.handover import carry_over
from polytoken.next_scale_transformer import scale_mask
from polytoken.quantizers import FactorizedQuantizer, MultiScaleQuantizer
from polytoken.sampling import CategoricalSampler, ForcedCodes, Guidance, RowNoise
from polytoken.specs import LatentSpec, Tokens, TokenSpec
from polytoken.tokenizers import ConvolutionalTokenizer
from tests.support.host_sync import host_syncs

SIDES = (1, 2, 3, 4)
VAR = tuple((side, side) for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
VAR_512 = tuple((side, side) for side in (1, 2, 3, 4, 6, 9, 13, 18, 24, 32))
IMAGEFOLDER = tuple((side, side) for side in (1, 1, 2, 3, 3, 4, 5, 6, 8, 11))
CPU = torch.device("cpu")


def codec(sides: Sequence[int] = SIDES, sub_codes: Sequence[int] = (0, 1)) -> FrozenCodec:
    torch.manual_seed(0)
    branch = MultiScaleQuantizer(sides, codebook_size=12, code_dim=4, num_convolutions=1, dropout_start=1)
    quantizer = FactorizedQuantizer(branch, 2)
    tokenizer = ConvolutionalTokenizer(
        image_size=16,
        base_channels=16,
        channel_multipliers=[1, 1, 1],
        num_res_blocks=1,
        latent_channels=8,
        attention=False,
        projection_channels=8,
        adapter_depth=1,
        quantizer=quantizer,
    )
    assert tokenizer.spec == spec(sides)
    return FrozenCodec(lambda: tokenizer, sub_codes)


def blank_codec(channels: int) -> BlankCodec:
    return BlankCodec((channels, 16, 16), scales=10)


def spec(sides: Sequence[int] = SIDES) -> TokenSpec:
    return TokenSpec((12, 12), tuple((side, side) for side in sides))


def generator(
    head: Head | None = None, sides: Sequence[int] = SIDES, sub_codes: Sequence[int] = (0, 1), **trunk: Any
) -> NextScaleGenerator:
    """A connected generator whose gates are open, so that all its parts matter."""
    config = NextScaleTrunkConfig(**{"depth": 2, "dim": 32, "num_heads": 2, "gate_scale": 1.0, **trunk})
    made = NextScaleGenerator(config, head or MultiLinearHead())
    made.connect(spec(sides).select(sub_codes), 10, codec(sides, sub_codes))
    torch.manual_seed(1)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return made.eval()


def codes(batch: int = 3) -> Tensor:
    return torch.randint(12, (batch, 2, 30), generator=torch.Generator().manual_seed(2))


def states(made: NextScaleGenerator, tokens: Tensor, labels: Tensor) -> Tensor:
    """The head's input (B, N, dim) by teacher forcing."""
    found = {}
    loss = made.head.loss

    def record(hidden: Tensor, *given: Any) -> Any:
        found["hidden"] = hidden
        return loss(hidden, *given)

    made.head.loss = record  # type: ignore[method-assign, assignment]
    made.loss(Tokens(codes=tokens), labels)
    made.head.loss = loss  # type: ignore[method-assign]
    return found["hidden"]


@pytest.mark.parametrize("scale", range(4))
def test_a_code_moves_only_the_scales_after_its_own(scale: int) -> None:
    made, tokens, labels = generator(), codes(1), torch.tensor([3])
    ends = [1, 5, 14, 30]
    before = states(made, tokens, labels)
    tokens[0, 1, ends[scale] - 1] = (tokens[0, 1, ends[scale] - 1] + 1) % 12
    moved = (states(made, tokens, labels) - before).abs().amax((0, 2))
    assert moved[: ends[scale]].max() == 0
    assert scale == 3 or moved[ends[scale] :].min() > 0


@pytest.mark.parametrize(
    ("grids", "positions", "pairs"),
    [(((1, 1), (2, 2), (3, 3)), 14, 147), (VAR, 680, 286_434), (IMAGEFOLDER, 286, 51_445)],
)
def test_the_mask_lets_a_scale_read_itself_and_those_before(grids: Any, positions: int, pairs: int) -> None:
    mask = scale_mask(grids, CPU)
    assert mask.shape == (positions, positions) and int(mask.sum()) == pairs
    assert bool(mask[:, 0].all()) and not bool(mask[0, 1])


@pytest.mark.parametrize("head", [MultiLinearHead(), AutoregressiveHead(depth=1)], ids=["parallel", "autoregressive"])
@pytest.mark.parametrize("shared", [False, True])
def test_cached_sampling_writes_the_likeliest_codes_of_teacher_forcing(head: Head, shared: bool) -> None:
    made, labels = generator(head, shared_modulation=shared), torch.tensor([1, 5, 9])
    written = made.sample(labels, CategoricalSampler(top_k=1), RowNoise(0, 0, 3, CPU)).codes
    assert written is not None and written.shape == (3, 2, 30)
    hidden = states(made, written, labels).flatten(0, 1)
    read = written.transpose(1, 2).flatten(0, 1)
    logits = [
        output(state)
        for output, state in zip(head.outputs, head.states(hidden, read, made.embeddings), strict=True)  # type: ignore[attr-defined]
    ]
    expected = torch.stack([one.argmax(-1) for one in logits], dim=1)
    assert torch.equal(read, expected)


@pytest.mark.parametrize("sides", [(1, 4), (4, 4), (2, 3, 4), (1, 1, 2, 3, 3, 4)])
def test_any_list_of_scales_is_sampled_as_it_is_trained(sides: tuple[int, ...]) -> None:
    made, labels = generator(sides=sides), torch.tensor([1, 5])
    written = made.sample(labels, CategoricalSampler(top_k=1), RowNoise(0, 0, 2, CPU)).codes
    assert written is not None and written.shape == (2, 2, sum(side**2 for side in sides))
    assert isinstance(made.head, MultiLinearHead)
    hidden = states(made, written, labels)
    logits = [output(made.head.norm(hidden)) for output in made.head.outputs]
    assert torch.equal(written, torch.stack([one.argmax(-1) for one in logits], dim=1))


@pytest.mark.parametrize("schedule", ["constant", "linear", "interval"])
@pytest.mark.parametrize(
    "head", [MultiLinearHead(), AutoregressiveHead(depth=1), MaskedBitHead(digits="codes", depth=1)]
)
def test_a_row_depends_neither_on_its_batch_nor_on_dropped_rows(schedule: Any, head: Head) -> None:
    interval = (0.0, 0.5) if schedule == "interval" else (0.0, 1.0)
    sampler = CategoricalSampler(guidance=2.5, guidance_schedule=schedule, interval=interval, top_k=8)
    made, labels = generator(head), torch.tensor([1, 5, 9])
    together = made.sample(labels, sampler, RowNoise(7, 0, 3, CPU)).codes
    alone = made.sample(labels[1:2], sampler, RowNoise(7, 1, 1, CPU)).codes
    assert together is not None and torch.equal(together[1:2], alone)
    assert not torch.equal(together[0], together[1])


def test_guidance_ramps_over_the_scales_as_published() -> None:
    scales = [row[0] for row in Guidance(guidance=2.5, guidance_schedule="linear").scales(10)]
    expected = [0, 0.1667, 0.3333, 0.5, 0.6667, 0.8333, 1, 1.1667, 1.3333, 1.5]  # VAR's count: s − 1
    assert [scale - 1 for scale in scales] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("depth", "grids", "sizes", "published"),
    [
        (16, VAR, (4096,), 310_283_520),
        (20, VAR, (4096,), 600_917_136),
        (24, VAR, (4096,), 1_033_399_360),
        (30, VAR, (4096,), 2_010_020_356),
        (16, IMAGEFOLDER, (4096, 4096), 314_111_232),
        (17, IMAGEFOLDER, (4096, 4096), 375_258_593),
        (36, VAR_512, (4096,), 2_353_893_904),
    ],
)
def test_published_sizes(depth: int, grids: Any, sizes: tuple[int, ...], published: int) -> None:
    with torch.device("meta"):
        config = NextScaleTrunkConfig(depth, shared_modulation=depth == 36)
        made = NextScaleGenerator(config, MultiLinearHead(norm=False, bias=True))
        made.connect(TokenSpec(sizes, grids), 1000, blank_codec(32 * len(sizes)))
    assert sum(parameter.numel() for parameter in made.parameters()) == published


def test_initial_deviations_are_those_of_the_release() -> None:
    made = NextScaleGenerator(NextScaleTrunkConfig(depth=16), MultiLinearHead())
    made.connect(TokenSpec((64,), VAR), 1000, blank_codec(32))
    block, width = made.trunk.blocks[3], made.width
    expected = [
        (made.class_embedding.weight, 0.0180422),
        (block.attention.wqkv.weight, 0.0180422),
        (block.attention.wo.weight, 0.00318944),
        (block.ffn_out.weight, 0.00318944),
        (block.modulation.weight[2 * width :], 0.0090211),
        (block.modulation.weight[: 2 * width], 1.8042e-5),
        (made.trunk.modulation.weight, 0.0090211),
    ]
    for weight, deviation in expected:
        assert weight.std().item() == pytest.approx(deviation, rel=0.02)
    assert block.attention.log_scale.unique().tolist() == pytest.approx([math.log(4)])
    drops = [one.drop for one in made.trunk.blocks]
    assert drops[0] == 0 and drops[-1] == pytest.approx(0.066667, abs=1e-6)


def test_offsets_of_shared_modulation_begin_as_the_release() -> None:
    config = NextScaleTrunkConfig(2, 256, 4, gate_scale=1e-3, shared_modulation=True)
    made = NextScaleGenerator(config, MultiLinearHead())
    made.connect(TokenSpec((64,), VAR), 1000, blank_codec(32))
    gates, others = made.trunk.blocks[1].modulation_offset.split([512, 1024])
    assert gates.std().item() == pytest.approx(1e-3 / 16, rel=0.1)
    assert others.std().item() == pytest.approx(0.5 / 16, rel=0.1)
    assert made.trunk.shared_modulation.weight.std().item() == pytest.approx((1 / 768) ** 0.5, rel=0.02)


def test_shared_modulation_is_trained() -> None:
    made = generator(shared_modulation=True)
    made.loss(Tokens(codes=codes()), torch.tensor([0, 1, 2])).total.backward()
    assert [name for name, weight in made.named_parameters() if weight.grad is None] == []


def test_the_head_has_no_dropout_and_the_trunks_multiple() -> None:
    made = generator(AutoregressiveHead(depth=1), ffn_multiple=24)
    assert {module.p for module in made.modules() if isinstance(module, nn.Dropout)} == {0.0}
    assert made.head.stack.blocks[0].feed_forward.w1.out_features == 96  # 8/3 · 32 rounded up


def test_the_loss_begins_at_the_uniform_distribution_and_returns_the_finest_scale() -> None:
    made = NextScaleGenerator(NextScaleTrunkConfig(2, 32, 2), MultiLinearHead())
    made.connect(spec(), 10, codec())
    loss = made.loss(Tokens(codes=codes()), torch.tensor([0, 1, 2]), taps=(1, 2))
    assert loss.total.item() == pytest.approx(math.log(12), abs=1e-5) and loss.unit == "nats"
    assert {number: rows.shape for number, rows in loss.hidden.items()} == {1: (3, 16, 32), 2: (3, 16, 32)}
    loss.total.backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_neither_a_step_nor_a_scale_reads_from_the_device() -> None:
    made, tokens, labels = generator(), codes(), torch.tensor([0, 1, 2])
    made.train()
    made.loss(Tokens(codes=tokens), labels)  # makes the mask
    with host_syncs() as counts:
        made.loss(Tokens(codes=tokens), labels).total.backward()
    assert not counts
    noise, sampler = RowNoise(0, 0, 3, CPU), CategoricalSampler(guidance=2.0, top_k=5, top_p=0.9)
    with host_syncs() as counts:
        made.sample(labels, sampler, noise)
    # one check of the labels, one table of guidance and one check of the logits, whatever the number of scales
    assert counts == {"aten::_local_scalar_dense": 1, "tensor": 1, "tolist": 1}


def test_one_graph_a_scale_serves_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guided at the first of two scales, so that they have 2B and B rows; the last batch is smaller."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()
    counters.clear()
    made = generator(sides=(1, 4), depth=1)
    rules = CategoricalSampler(guidance=2.0, guidance_schedule="interval", interval=(0.0, 0.5))
    labels = torch.tensor([0, 1, 2])
    expected = made.sample(labels, rules, RowNoise(3, 0, 3, CPU)).codes
    made.compile_decoding = True
    assert torch.equal(made.sample(labels, rules, RowNoise(3, 0, 3, CPU)).codes, expected)
    assert torch.equal(made.sample(labels[1:], rules, RowNoise(3, 1, 2, CPU)).codes, expected[1:])
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


def test_codes_of_a_scale_outlive_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a CUDA graph, the step here writes into memory that it has returned before."""
    returned: list[Tensor] = []

    def reusing(step: Callable[..., Tensor], **_: object) -> Callable[..., Tensor]:
        def call(*arguments: object) -> Tensor:
            for codes in returned:
                codes.fill_(0)
            returned.append(step(*arguments))
            return returned[-1]

        return call

    made, labels = generator(), torch.tensor([0, 1, 2])
    expected = made.sample(labels, CategoricalSampler(), RowNoise(3, 0, 3, CPU)).codes
    monkeypatch.setattr(torch, "compile", reusing)
    made.compile_decoding = True
    assert torch.equal(made.sample(labels, CategoricalSampler(), RowNoise(3, 0, 3, CPU)).codes, expected)


@pytest.mark.parametrize("forced", [False, True])
def test_logits_that_are_not_finite_are_refused(forced: bool) -> None:
    made, labels, noise = generator(), torch.tensor([0, 1, 2]), RowNoise(0, 0, 3, CPU)
    reference = ForcedCodes(codes(), (0,), 1.0) if forced else None
    made.sample(labels, CategoricalSampler(), noise, reference)
    made.head.outputs[1].weight.data[3, 0] = float("nan")
    with pytest.raises(UserError, match="the logits of sub-code 1 are not finite, .*: lower sampler.guidance"):
        made.sample(labels, CategoricalSampler(), noise, reference)


def test_stochastic_depth_drops_branches_in_training_only() -> None:
    made, tokens, labels = generator(stochastic_depth=0.9), codes(), torch.tensor([0, 1, 2])
    first, again = states(made, tokens, labels), states(made, tokens, labels)
    assert torch.equal(first, again)
    made.train()
    assert not torch.equal(states(made, tokens, labels), states(made, tokens, labels))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: generator(num_heads=5), "32 channels do not divide into 5 attention heads"),
        (lambda: generator(depth=0), "trunk: depth is 0; it must be at least 1"),
        (lambda: generator(stochastic_depth=1.0), "trunk: stochastic_depth is 1.0; it must be from 0 to below 1"),
        (lambda: generator().connect(spec(), 10), "reads the tokenizer's vectors"),
        (lambda: generator(sides=(4,)), "these codes have one scale, 4 × 4, .*: use a tokenizer of several scales"),
        (lambda: generator().connect(LatentSpec(1, (2, 2), (0.0,), (1.0,)), 10, codec()), "this spec is of latents"),
        (
            lambda: generator().loss(Tokens(codes=codes()[:, :, :29]), torch.tensor([0, 1, 2])),
            "30 positions on a grid of 1 × 1, 2 × 2, 3 × 3, 4 × 4",
        ),
        (lambda: generator().loss(Tokens(codes=codes()), torch.tensor([0, 1, 2]), taps=[3]), "block 3 is tapped"),
    ],
)
def test_bad_input_is_one_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()


def perturbed(made: NextScaleGenerator) -> NextScaleGenerator:
    """The same generator with other weights."""
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


@pytest.mark.parametrize("sub_code", [0, 1])
def test_one_sub_code_hands_over_its_own_output_layer(sub_code: int) -> None:
    source, target = perturbed(generator(sub_codes=[sub_code])), generator()
    handover = carry_over(source.state_dict(), target, sub_code)
    assert torch.equal(target.head.outputs[sub_code].weight, source.head.outputs[0].weight)
    assert torch.equal(target.position_embedding.weight, source.position_embedding.weight)
    assert torch.equal(target.head.norm.weight, source.head.norm.weight) and handover.left_behind == ()
    assert handover.fresh == (f"head.outputs.{1 - sub_code}.weight",)
    own, labels = codes(), torch.tensor([3, 4, 5])  # the other subspace is ignored
    assert torch.equal(states(target, own, labels), states(source, own[:, [sub_code]], labels))
    target.loss(Tokens(codes=own), labels).total.backward()
    assert target.word_embedding.weight.grad.abs().amin() > 0
    with pytest.raises(UserError, match="sub_code is 2, and this model has sub-codes 0 to 1"):
        carry_over(source.state_dict(), target, 2)


def test_codes_of_another_tokenizer_hand_over_nothing_that_reads_or_predicts_them() -> None:
    source, target = (generator(AutoregressiveHead(depth=1)) for _ in range(2))
    handover = carry_over(source.state_dict(), target)
    places = {f"{name}_embedding.weight" for name in ("class", "level", "position", "start")}
    assert {name for name in handover.carried if not name.startswith("trunk.")} == {*places, "head.norm.weight"}
    shorter = carry_over(generator(sides=(1, 2, 4)).state_dict(), target)
    assert {"level_embedding.weight", "position_embedding.weight"} <= set(shorter.fresh)


def test_weights_of_another_trunk_are_not_carried_over() -> None:
    target = generator()
    assert set(carry_over(generator().state_dict(), target, "all").fresh) == set()
    source = {name: value for name, value in target.state_dict().items() if not name.startswith("trunk.")}
    with pytest.raises(UserError, match="the trunks differ"):
        carry_over(source, target)


def test_a_sub_code_determines_its_own_channels_of_the_vectors() -> None:
    frozen, tokens = codec(sub_codes=[1, 0]), codes(1)
    before = frozen.embed_codes(tokens)
    tokens[:, 0] = (tokens[:, 0] + 1) % 12
    moved = (frozen.embed_codes(tokens) - before).abs().amax((0, 2, 3))
    own = frozen.channels_of(0)
    assert moved[own].min() > 0 and moved.count_nonzero() == own.stop - own.start == frozen.channels // 2
