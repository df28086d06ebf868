"""The benchmark of the switches of a tokenizer's training step at a tiny size."""

from functools import partial

import pytest
import torch
from torch import nn

from benchmarks import tokenizer_step
from benchmarks.tokenizer_step import Step, variants
from polytoken.discriminators import PatchDiscriminator
from polytoken.teachers import SmallVisionTransformer
from polytoken.tokenizers import ConvolutionalTokenizer


class TinyPerceptual(tokenizer_step.LPIPS):
    """One convolution in place of VGG."""

    def load_network(self) -> nn.Module:
        return nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)

    def distance(self, network: nn.Module, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (network(first) - network(second)).square().mean()


def test_switches_change_the_loss_by_rounding_and_nothing_is_left_for_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenizer_step, "RandomLPIPS", TinyPerceptual)
    teacher = SmallVisionTransformer(32, patch_size=16, width=16, depth=1, num_heads=2)
    monkeypatch.setattr(tokenizer_step, "SmallVisionTransformer", lambda *_, **__: teacher)
    small = partial(ConvolutionalTokenizer, num_res_blocks=1, adapter_depth=1)
    monkeypatch.setattr(tokenizer_step, "ConvolutionalTokenizer", small)
    monkeypatch.setattr(tokenizer_step, "PatchDiscriminator", partial(PatchDiscriminator, base_channels=8))
    assert [*variants(("bf16", "kept_norms"))] == ["plain", "bf16", "kept_norms", "bf16+kept_norms"]
    plain, switched = (Step(switches, (32, 8, 2)) for switches in ((), ("channels_last", "kept_norms")))
    assert plain.adversarial.discriminator[2].weight.is_contiguous()
    loss = plain()
    torch.testing.assert_close(switched(), loss)
    assert torch.equal(plain(), loss)
