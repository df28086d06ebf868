"""Checkpointing and compilation of a generator's blocks; tests/lightning_modules/test_generator_on_ranks.py shards."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from polytoken.generators import Generator
from polytoken.parallelize import parallelize
from polytoken.specs import Tokens
from tests.polytoken.generators import test_next_scale as next_scale
from tests.support.diffusion import random_latents, small_diffusion
from tests.support.generators import TRUNK, random_tokens, small_generator


@pytest.fixture
def _without_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the compiled graphs operator by operator, which needs no C++ compiler."""
    torch.compiler.reset()
    counters.clear()
    compile_module = torch.nn.Module.compile
    eager = lambda self, **options: compile_module(self, backend="eager", **options)  # noqa: E731
    monkeypatch.setattr(torch.nn.Module, "compile", eager)


def test_blocks_of_trunk_and_head_are_wrapped_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(type(self).__name__))
    plain = small_generator()
    parallelize(plain)
    assert not compiled and not any(block.checkpointing for block in plain.blocks())
    generator = small_generator(trunk=replace(TRUNK, checkpointing=True, compile=True))
    assert not compiled, "the constructor changes nothing"
    parallelize(generator)
    assert compiled == ["Block"] * 4 and all(block.checkpointing for block in generator.blocks())


def autoregressive(**options: bool) -> Generator:
    return small_generator(trunk=replace(TRUNK, depth=4, **options))


def next_scale_tokens(batch: int) -> tuple[Tokens, Tensor]:
    return Tokens(codes=next_scale.codes()[:1].repeat(batch, 1, 1)), torch.zeros(batch, dtype=torch.int64)


@pytest.mark.usefixtures("_without_inductor")
@pytest.mark.parametrize(
    ("build", "batch_of", "graphs", "checkpointing"),
    [
        (autoregressive, lambda size: random_tokens(autoregressive(), size), 2, False),  # trunk and head
        (autoregressive, lambda size: random_tokens(autoregressive(), size), 2, True),
        (small_diffusion, random_latents, 1, True),
        (next_scale.generator, next_scale_tokens, 2, True),  # the first block drops no branch
    ],
)
def test_equal_blocks_are_compiled_once(
    build: Callable[..., Generator], batch_of: Callable[[int], tuple[Tokens, Tensor]], graphs: int, checkpointing: bool
) -> None:
    """In several steps with dropout; evaluation between them compiles nothing, whatever its batches."""
    generator = build(checkpointing=checkpointing, compile=True)
    parallelize(generator)
    for _ in range(2):
        for _ in range(2):
            generator.train().loss(*batch_of(4)).total.backward()
            generator.zero_grad()
        for size in (4, 3, 1):
            with torch.no_grad():
                generator.eval().loss(*batch_of(size))
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"] and not counters["unimplemented"]


@pytest.mark.usefixtures("_without_inductor")
@pytest.mark.parametrize(
    ("build", "batch_of"),
    [(autoregressive, lambda size: random_tokens(autoregressive(), size)), (small_diffusion, random_latents)],
)
def test_compiled_and_checkpointed_blocks_compute_the_same(
    build: Callable[..., Generator], batch_of: Callable[[int], tuple[Tokens, Tensor]]
) -> None:
    plain, compiled = build(), build(checkpointing=True, compile=True)
    parallelize(compiled)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    batch = batch_of(2)
    with torch.no_grad():
        torch.testing.assert_close(compiled.loss(*batch).total, plain.loss(*batch).total)
    for generator in (plain, compiled):
        generator.loss(*batch, taps=(1,)).total.backward()
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad)
