"""The folded tokenizer: shapes, the order of pixels and branches, and settings that do not fit."""

from typing import Any

import pytest
import torch
from torch import nn

from polytoken.errors import UserError
from polytoken.quantizers import FactorizedQuantizer, MultiScaleQuantizer, Quantizer, VectorQuantizer
from polytoken.tokenizers import FoldedTokenizer, VisionTransformerConfig

CONFIG = VisionTransformerConfig(patch_size=4, dim=32, depth=2, num_heads=4, stochastic_depth=0.0, layer_scale=None)


def tokenizer(quantizer: Quantizer | None = None, **changes: Any) -> FoldedTokenizer:
    torch.manual_seed(0)
    branch = MultiScaleQuantizer((1, 2, 3), codebook_size=16, code_dim=6, num_convolutions=2)
    settings = {"grid_size": 3, "image_size": 16, "transformer": CONFIG} | changes
    return FoldedTokenizer(quantizer or FactorizedQuantizer(branch, 2), **settings)  # type: ignore[arg-type]


def test_codes_of_all_branches_and_scales_decode_like_the_encoding() -> None:
    made, images = tokenizer().eval(), torch.randn(2, 3, 16, 16).clamp(-1, 1)
    decoded, encoding = made(images)
    assert made.spec is not None and made.spec.scales == ((1, 1), (2, 2), (3, 3))
    assert made.spec.codebook_sizes == (16, 16) and made.latent_shape == (12, 3, 3)
    assert encoding.codes is not None and encoding.codes.shape == (2, 2, 14)
    assert decoded.image.shape == (2, 3, 16, 16)
    torch.testing.assert_close(made.embed_codes(encoding.codes), encoding.quantized, rtol=0, atol=1e-5)
    torch.testing.assert_close(made.decode_codes(encoding.codes), decoded.image, rtol=0, atol=1e-4)
    *_, total = made.partial_sums(encoding.codes)
    torch.testing.assert_close(total, encoding.quantized, rtol=0, atol=1e-5)


@pytest.mark.parametrize("branches", [1, 2, 4])
def test_all_weights_are_trained(branches: int) -> None:
    made = tokenizer(FactorizedQuantizer(VectorQuantizer(16, 6), branches))
    nn.init.normal_(made.queries)
    decoded, encoding = made(torch.randn(2, 3, 16, 16))
    (decoded.image.square().mean() + sum(encoding.losses.values())).backward()
    assert [name for name, weight in made.named_parameters() if weight.grad is None] == []
    assert encoding.codes is not None and encoding.codes.shape == (2, branches, 9)


def test_pixels_lie_in_their_patch_and_patches_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tokenizer()
    numbers = torch.arange(16.0).view(1, 16, 1).expand(1, 16, 32)
    monkeypatch.setattr(made.decoder, "forward", lambda grids: [100 * numbers / 32, grids[1]])
    nn.init.ones_(made.pixels.weight)
    values = torch.arange(48.0)  # channel, row and column inside a patch
    with torch.no_grad():
        made.pixels.bias.copy_(values)
    image = made.decode(torch.zeros(1, 12, 3, 3)).image[0]
    patches = 100 * torch.arange(16.0).view(4, 4).repeat_interleave(4, 0).repeat_interleave(4, 1)
    torch.testing.assert_close(image, patches + values.view(3, 4, 4).repeat(1, 4, 4))


def test_branches_are_told_apart_by_their_queries_and_levels() -> None:
    made = tokenizer().eval()
    detail, semantic = made.features(torch.randn(1, 3, 16, 16)).chunk(2, dim=1)
    assert not torch.allclose(detail, semantic, atol=1e-4)
    with torch.no_grad():
        made.queries[1].copy_(made.queries[0])
        made.encoder.levels.weight[2].copy_(made.encoder.levels.weight[1])
    detail, semantic = made.features(torch.randn(1, 3, 16, 16)).chunk(2, dim=1)
    torch.testing.assert_close(detail, semantic)


def test_the_published_size() -> None:
    """Parameters: those of the released MSVR10P2-4096 without its frozen network and counts of hits."""
    with torch.device("meta"):
        made = FoldedTokenizer(FactorizedQuantizer(MultiScaleQuantizer(), 2))
    assert sum(parameter.numel() for parameter in made.parameters()) == 172_327_456
    assert made.spec is not None and made.spec.num_positions == 286 and made.latent_shape == (64, 11, 11)
    assert made.spec.bits_per_image == 286 * 2 * 12


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_size": 18}, "image_size 18 is not a multiple of the patches' 4 pixels"),
        ({"image_size": 0}, "image_size is 0; it must be at least 1"),
        ({"grid_size": 5}, "grid_size is 5, and the image has 4 × 4 patches: choose 1 to 4"),
        ({"grid_size": 2}, "scales end at 3 × 3 and the features have a grid of 2 × 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tokenizer(**changes)


def test_other_images_and_transformers_are_refused() -> None:
    with pytest.raises(UserError, match="have shape 1 × 3 × 16 × 20, and the tokenizer reads batches of 3 × 16 × 16"):
        tokenizer().encode(torch.zeros(1, 3, 16, 20))
    with pytest.raises(UserError, match="32 channels and 5 heads: change dim or num_heads"):
        VisionTransformerConfig(4, 32, 2, 5)
    with pytest.raises(UserError, match="transformer: layer_scale is 0; it must be above 0"):
        VisionTransformerConfig(layer_scale=0)
