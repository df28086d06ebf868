"""One decoding step: fixed shapes, no host synchronisation, one graph for all positions."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from polytoken.errors import UserError
from polytoken.generators import (
    AutoregressiveGenerator,
    AutoregressiveHead,
    Head,
    LinearHead,
    MultiMLPHead,
    SubTokenNoise,
    TrunkConfig,
)
from polytoken.generators.decoding import compiles
from polytoken.sampling import CategoricalSampler, Draw, RowNoise
from polytoken.specs import TokenSpec
from tests.support.generators import build_generator, random_tokens, small_generator
from tests.support.host_sync import host_syncs

RULES = CategoricalSampler(guidance=2.0, guidance_schedule="linear", temperature=0.9, top_k=9, top_p=0.95)
TO_HALF = CategoricalSampler(guidance=2.0, guidance_schedule="interval", interval=(0.0, 0.5))
HEADS = {"linear": (LinearHead, 1), "mlp": (MultiMLPHead, 2), "autoregressive": (lambda: AutoregressiveHead(1), 2)}
parametrize_heads = pytest.mark.parametrize(("head", "num_sub_codes"), HEADS.values(), ids=HEADS)


def draw_of(generator: AutoregressiveGenerator, sampler: CategoricalSampler, batch: int) -> Draw:
    scales = sampler.scales(generator.spec.num_positions, generator.spec.num_sub_codes)
    return Draw(sampler, RowNoise(3, 0, batch, torch.device("cpu")), torch.tensor(scales))


def write(generator: AutoregressiveGenerator, sampler: CategoricalSampler, compiled: bool) -> Tensor:
    guided = sampler.guided_steps(generator.spec.num_positions, generator.spec.num_sub_codes)
    generator.compile_decoding = compiled
    return generator.write(torch.tensor([0, 1, 2]), draw_of(generator, sampler, 3), guided)


@parametrize_heads
@pytest.mark.parametrize("position", [7, torch.tensor(7)], ids=["integer", "tensor"])
@pytest.mark.parametrize("guided", [False, True])
def test_a_decoding_step_does_not_synchronise_with_the_host(head, num_sub_codes: int, position, guided: bool) -> None:
    generator = small_generator(num_sub_codes, head())
    rows = 6 if guided else 3
    caches = generator.trunk.new_cache(rows), generator.head.new_cache(rows)
    draw = draw_of(generator, RULES, 3)
    with torch.no_grad(), host_syncs() as counts:
        generator.decode(torch.randn(rows, 1, 32), position, draw, *caches)
    assert not counts


@parametrize_heads
@pytest.mark.parametrize("noise", [None, SubTokenNoise(0.5), SubTokenNoise(0.5, "patch", "both", ramp_steps=4)])
def test_a_training_step_does_not_synchronise_with_the_host(
    head, num_sub_codes: int, noise: SubTokenNoise | None
) -> None:
    generator = small_generator(num_sub_codes, head(), noise=noise).train()
    tokens, labels = random_tokens(generator, 3)
    generator.loss(tokens, labels)  # the first step uploads constants
    with host_syncs() as counts:
        generator.loss(tokens, labels).total.backward()
    assert not counts


def grid_generator(head: Head) -> AutoregressiveGenerator:
    torch.manual_seed(0)
    trunk = TrunkConfig(dim=16, depth=1, num_heads=2, ffn_multiple=16)
    # 64 codes fill vectors of the CPU, for which Inductor writes other code
    sizes = (64,) if isinstance(head, LinearHead) else (11, 12)
    generator = build_generator(TokenSpec(sizes, ((8, 8),)), 5, trunk, head)
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return generator.eval()


@pytest.mark.parametrize(
    ("sampler", "graphs", "backend"),
    [
        pytest.param(RULES, 1, "inductor", marks=pytest.mark.slow),
        (RULES, 1, "aot_eager"),
        pytest.param(TO_HALF, 2, "aot_eager", marks=pytest.mark.slow),
    ],
    ids=["guided_inductor", "guided", "guided_to_half"],
)
def test_one_graph_serves_all_positions(
    sampler: CategoricalSampler, graphs: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No graph break, no recompilation over 64 positions, and the codes of eager mode.

    inductor compiles and needs a C++ compiler; aot_eager runs the same graphs operator by operator.
    """
    generator = grid_generator(LinearHead() if backend == "inductor" else AutoregressiveHead(1))
    expected = write(generator, sampler, compiled=False)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.compiler.reset()
    counters.clear()
    found = write(generator, sampler, compiled=True)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == graphs
    assert torch.equal(found, expected)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled steps run operator by operator, without a C++ compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()
    counters.clear()


@pytest.mark.slow
def test_a_later_smaller_batch_runs_in_the_same_graph(traced: None) -> None:
    """The rows of the first batch stay; the images are those of eager mode, whatever batch they are in."""
    generator, sampler = small_generator(2, AutoregressiveHead(1)), CategoricalSampler(guidance=2.0)
    labels = torch.tensor([0, 1, 2])
    expected = generator.generate(labels, sampler, seed=3)
    generator.compile_decoding = True
    assert torch.equal(generator.generate(labels, sampler, seed=3), expected)
    assert torch.equal(generator.generate(labels[1:], sampler, seed=3, first_index=1), expected[1:])
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_flips_few_codes_between_modes_and_batches(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The static cache and other batch sizes sum in another order; one flip changes the rest of its image."""
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    generator, labels, rules = small_generator().to(dtype), torch.arange(64) % 5, CategoricalSampler(guidance=2.0)
    expected = generator.generate(labels, rules, seed=3)
    generator.compile_decoding = True
    parts = [generator.generate(labels[i : i + 16], rules, seed=3, first_index=i) for i in range(0, 64, 16)]
    for found in (generator.generate(labels, rules, seed=3), torch.cat(parts)):
        assert (found != expected).flatten(1).any(dim=1).sum() <= 1  # 0 of 256 images in a trial with each type


def test_sampling_goes_on_in_eager_mode_where_the_compiler_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no C++ compiler\n" + "details\n" * 40)

    generator = small_generator()
    expected = generator.generate(torch.tensor([0, 1, 2]), RULES, seed=3)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    generator.compile_decoding = True
    for _ in range(2):
        assert torch.equal(generator.generate(torch.tensor([0, 1, 2]), RULES, seed=3), expected)
    (line,) = caplog.messages
    assert line == "torch.compile failed, and sampling continues in eager mode: no C++ compiler"


def test_graphs_with_packed_weights_are_dropped_when_a_weight_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    resets: list[None] = []
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(None))
    generator = small_generator()
    generator.compile_decoding = True
    for _ in range(2):
        generator.generate(torch.arange(4), RULES, seed=3)
    assert not resets
    with torch.no_grad():
        generator.class_embedding.weight.mul_(2)
    generator.generate(torch.tensor([0]), RULES, seed=3)  # fewer rows than the graph has
    assert len(resets) == 1


def test_a_copy_of_a_generator_compiles_its_own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    generator, labels = small_generator(), torch.arange(4)
    generator.compile_decoding = True
    expected = generator.generate(labels, RULES, seed=3)
    changed = copy.deepcopy(generator)
    with torch.no_grad():
        generator.class_embedding.weight.zero_()
    assert torch.equal(changed.generate(labels, RULES, seed=3), expected)


def test_auto_compiles_on_a_gpu_alone() -> None:
    assert [compiles(setting, torch.device("cpu")) for setting in ("auto", True, False)] == [False, True, False]
    assert [compiles(setting, torch.device("cuda")) for setting in ("auto", True, False)] == [True, True, False]


@pytest.mark.parametrize(
    ("head", "num_sub_codes", "compiled"),
    [*((*case, False) for case in HEADS.values()), (*HEADS["mlp"], True)],
    ids=[*HEADS, "mlp_compiled"],
)
def test_logits_that_are_not_finite_are_refused(
    head, num_sub_codes: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At one position alone; the compiled step marks them too."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    generator = small_generator(num_sub_codes, head())
    generator.compile_decoding = compiled
    labels, noise = torch.tensor([0, 1, 2]), RowNoise(3, 0, 3, torch.device("cpu"))
    generator.sample(labels, RULES, noise)
    with torch.no_grad():
        generator.embeddings[0].weight[generator.sample(labels, RULES, noise).codes[1, 0, 0]] = float("inf")
    with pytest.raises(UserError, match="the logits of sub-code 0 are not finite"):
        generator.sample(labels, RULES, noise)
