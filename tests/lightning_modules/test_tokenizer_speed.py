"""Switches of TokenizerModule that trade memory and start-up for time, and change numbers by rounding at most."""

from pathlib import Path

import pytest
import torch
from torch import nn

from polytoken.errors import UserError
from polytoken.quantizers import FactorizedQuantizer, VectorQuantizer
from polytoken.tokenizers import ConvolutionalTokenizer, Tokenizer
from tests.lightning_modules.test_tokenizer import batches, build, fit
from tests.support.tokenizers import tiny_folded, tiny_representation, tiny_tokenizer


def gradients(tokenizer: Tokenizer, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Image and gradients; asks for the gradient of ``last_layer`` first, as the adaptive weight does."""
    tokenizer.zero_grad()
    decoded, encoding = tokenizer(images)
    torch.autograd.grad(decoded.image.sum(), tokenizer.last_layer, retain_graph=True)
    loss = decoded.image.square().mean() + sum(encoding.losses.values())
    loss.backward()
    return decoded.image, [p.grad for p in tokenizer.parameters() if p.grad is not None]


def test_kept_norms_train_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    kept, recomputed = build(recompute_norms=False), build()
    for module in (kept, recomputed):
        fit(module, tmp_path, 1)
    torch.testing.assert_close(kept.state_dict(), recomputed.state_dict(), rtol=0, atol=0)


def test_the_last_layer_is_in_no_block(tmp_path: Path) -> None:
    for tokenizer in (tiny_tokenizer(), tiny_folded(), tiny_representation(tmp_path)):
        blocks = [*tokenizer.blocks()]
        assert blocks and not any(p is tokenizer.last_layer for block in blocks for p in block.parameters())


def test_compiled_blocks_compute_the_same() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    quantizer = FactorizedQuantizer(VectorQuantizer(16, code_dim=4), 2)
    tokenizer = ConvolutionalTokenizer(quantizer, 16, 8, (1,), 1, 8, attention=False, projection_channels=8)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    plain, names = gradients(tokenizer, images), [*tokenizer.state_dict()]
    for block in tokenizer.blocks():
        block.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(gradients(tokenizer, images), plain)
    assert [*tokenizer.state_dict()] == names


def test_training_compiles_blocks_and_validation_does_not_run_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(
        "lightning_modules.tokenizer.compile_modules", lambda blocks, _: compiled.extend(blocks) or True
    )
    stances: list[str] = []
    monkeypatch.setattr(torch.compiler, "set_stance", lambda stance: stances.append(stance) or torch.no_grad())
    module = build(compile=True)
    fit(module, tmp_path, 1)
    assert compiled == [*module.tokenizer.blocks()] and not stances
    module.validation_step(next(iter(batches(2))), 0)
    assert stances and set(stances) == {"force_eager"}


def test_a_tokenizer_without_blocks_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tiny_tokenizer()), "blocks", Tokenizer.blocks)
    with pytest.raises(UserError, match=r"model\.compile is on, but ConvolutionalTokenizer has no blocks"):
        build(compile=True)


def test_moments_of_a_contiguous_discriminator_resume_in_the_layout_of_its_weights() -> None:
    """Fused AdamW reads weights and moments in order of memory, and checks no strides."""
    module = build()
    module.discriminator_config.build = lambda parameters, network: torch.optim.AdamW(parameters, fused=True)
    optimizer = module.configure_optimizers()[1]
    for parameter in module.objective.adversarial.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    state = optimizer.state_dict()
    expected = [value.clone() for moments in state["state"].values() for value in moments.values()]
    for moments in state["state"].values():
        moments |= {name: value.contiguous() for name, value in moments.items()}
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        assert moments["exp_avg"].stride() == moments["exp_avg_sq"].stride() == parameter.stride()
    torch.testing.assert_close([v for m in optimizer.state.values() for v in m.values()], expected, rtol=0, atol=0)
