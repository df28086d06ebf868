"""Checkpointing and compilation of a generator's blocks; tests/lightning_modules/test_generator_on_ranks.py shards."""

from dataclasses import replace

import pytest
import torch

from polytoken.parallelize import parallelize
from tests.support.diffusion import random_latents, small_diffusion
from tests.support.generators import TRUNK, random_tokens, small_generator


def test_blocks_of_trunk_and_head_are_wrapped_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    plain = small_generator()
    parallelize(plain)
    assert not compiled and not any(block.checkpointing for block in plain.blocks())
    generator = small_generator(trunk=replace(TRUNK, checkpointing=True, compile=True))
    assert not compiled, "the constructor changes nothing"
    parallelize(generator)
    assert compiled == ["Block"] * 4 and all(block.checkpointing for block in generator.blocks())


def test_compiled_and_checkpointed_blocks_take_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend="eager", dynamic=True))
    plain = small_generator()
    compiled = small_generator(trunk=replace(TRUNK, checkpointing=True, compile=True))
    parallelize(compiled)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for gradients in (True, False):
        for batch in (2, 3, 5):
            tokens, labels = random_tokens(plain, batch)
            with torch.set_grad_enabled(gradients):
                torch.testing.assert_close(compiled.loss(tokens, labels).total, plain.loss(tokens, labels).total)


def test_blocks_of_a_diffusion_transformer_are_checkpointed_and_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile_module(self, backend="eager", dynamic=True))
    plain, compiled = small_diffusion(), small_diffusion(checkpointing=True, compile=True)
    parallelize(compiled)
    assert len([*compiled.blocks()]) == 2 and all(block.checkpointing for block in compiled.blocks())
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for batch in (2, 3):
        tokens, labels = random_latents(batch)
        for generator in (plain, compiled):
            generator.zero_grad()
            generator.loss(tokens, labels, taps=(1,)).total.backward()
        for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(other.grad, one.grad)
