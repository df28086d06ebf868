import copy

import pytest
import torch

from polytoken.blocks import NormSwish, ResidualBlock


def test_kept_norms_equal_recomputed_ones_and_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    compute = NormSwish._norm_swish
    monkeypatch.setattr(NormSwish, "_norm_swish", lambda self, x: calls.append(self.recompute) or compute(self, x))
    torch.manual_seed(0)
    recomputed = ResidualBlock(8, 16)
    kept = copy.deepcopy(recomputed)
    kept.norm1.recompute = kept.norm2.recompute = False
    images = torch.randn(2, 8, 6, 6)
    gradients = []
    for block in (recomputed, kept):
        block(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in block.parameters()])
    assert (calls.count(True), calls.count(False)) == (4, 2)
    assert all(map(torch.equal, *gradients))
