import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from polytoken.blocks import NormSwish, ResidualBlock, transformer_blocks
from polytoken.teachers.text import SmallTextTransformer
from polytoken.tokenizers.feature_decoder import FeatureDecoder, FeatureDecoderConfig


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


TRANSFORMERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "blocks": (lambda: transformer_blocks(16, 2, 2), lambda: torch.randn(2, 5, 16)),
    "features": (
        lambda: FeatureDecoder(16, 4, FeatureDecoderConfig(depth=2, num_heads=2)),
        lambda: torch.randn(2, 4, 16),
    ),
    "text": (lambda: SmallTextTransformer(16, num_heads=2), lambda: torch.tensor([[97, 98, 99], [97, 256, 256]])),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_gelu_is_exact_in_evaluation_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused path, which approximates it on CUDA, is not taken; a copy of a pickle takes none either."""
    build, draw = TRANSFORMERS[name]
    torch.manual_seed(0)
    network, inputs = build().eval(), draw()
    fused = copy.deepcopy(network)
    for layer in fused.modules():
        if isinstance(layer, nn.TransformerEncoderLayer):
            layer.activation, layer.activation_relu_or_gelu = nn.functional.gelu, 2  # those of activation="gelu"
    taken = []
    path = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *given: taken.append(1) or path(*given))
    with torch.no_grad():
        expected = fused(inputs)
        assert len(taken) == 2, "on a CPU it is exact"
        for one in (network, pickle.loads(pickle.dumps(network))):
            torch.testing.assert_close(one(inputs), expected)
    assert len(taken) == 2
