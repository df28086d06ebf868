"""One decoding step: fixed shapes, no host synchronisation, one graph for all positions."""

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
    labels = torch.tensor([0, 1, 2])
    return generator.write(labels, draw_of(generator, sampler, 3), guided, compiled)


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
    sizes = (11,) if isinstance(head, LinearHead) else (11, 12)
    generator = build_generator(TokenSpec(sizes, ((8, 8),)), 5, trunk, head)
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return generator.eval()


@pytest.mark.parametrize(
    ("sampler", "graphs", "backend"),
    [pytest.param(RULES, 1, "inductor", marks=pytest.mark.slow), (RULES, 1, "aot_eager"), (TO_HALF, 2, "aot_eager")],
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
