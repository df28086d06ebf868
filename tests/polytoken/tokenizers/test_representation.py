"""The representation tokenizer: features of two depths, a frozen foundation model, and settings that do not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from polytoken.building import build
from polytoken.errors import MissingFileError, UserError
from polytoken.fingerprint import fingerprint
from polytoken.quantizers import FactorizedQuantizer, MultiScaleQuantizer, VectorQuantizer
from polytoken.teachers import SmallVisionTransformer, Teacher
from polytoken.tokenizers import FeatureDecoderConfig, RepresentationTokenizer, Tokenizer
from polytoken.tokenizers.fusion import AttentionFusion
from tests.support.tokenizers import tiny_representation

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_codes_decode_like_the_encoding(tmp_path: Path) -> None:
    made = tiny_representation(tmp_path).eval()
    decoded, encoding = made(IMAGES)
    assert made.spec is not None and made.spec.scales == ((2, 2),) and made.latent_shape == (4, 2, 2)
    assert encoding.codes is not None and encoding.codes.shape == (2, 1, 4)
    assert decoded.image.shape == IMAGES.shape
    torch.testing.assert_close(made.decode_codes(encoding.codes), decoded.image, rtol=0, atol=1e-5)
    for features in (encoding.features, decoded.features):
        assert {name: tuple(one.shape) for name, one in features.items()} == dict.fromkeys(
            ("deep", "shallow"), (2, 32, 2, 2)
        )


def test_features_are_those_of_the_foundation_model(tmp_path: Path) -> None:
    """Deep behind the last norm, shallow before any, row by row."""
    features = tiny_representation(tmp_path).encode(IMAGES).features
    trunk = SmallVisionTransformer.load(tmp_path / "foundation.safetensors").trunk
    last, (shallow,) = trunk.forward_intermediates(IMAGES, indices=[0], output_fmt="NCHW")
    torch.testing.assert_close(features["shallow"], shallow)
    torch.testing.assert_close(features["deep"].flatten(2).transpose(1, 2), last[:, 1:])


@pytest.mark.parametrize(
    "quantizer",
    [None, FactorizedQuantizer(VectorQuantizer(16, 4), 2), MultiScaleQuantizer((1, 2), 16, 4, num_convolutions=1)],
)
@pytest.mark.parametrize("fusion", ["attention", "linear"])
def test_all_weights_are_trained_but_the_foundation_model(tmp_path: Path, fusion: Any, quantizer: Any) -> None:
    made = tiny_representation(tmp_path, quantizer, fusion=fusion)
    images = IMAGES.clone().requires_grad_()
    decoded, encoding = made(images)
    loss = decoded.image.square().mean() + decoded.features["shallow"].square().mean()
    (loss + sum(encoding.losses.values())).backward()
    unused = {name for name, weight in made.named_parameters() if weight.grad is None}
    assert unused == set()
    assert images.grad is None  # nothing behind the foundation model has one
    assert not any("foundation" in name for name in made.state_dict())
    assert count(made) == sum(tensor.numel() for tensor in made.state_dict().values())


def test_a_single_layer_has_neither_fusion_nor_shallow_feature(tmp_path: Path) -> None:
    made = tiny_representation(tmp_path, shallow=None)
    decoded, encoding = made(IMAGES)
    assert made.fusion is None and [*decoded.features] == [*encoding.features] == ["deep"]
    without = tiny_representation(tmp_path, fusion="none")
    assert without.fusion is None and [*without(IMAGES)[0].features] == ["deep", "shallow"]


def test_the_fusion_against_a_float64_reference() -> None:
    """Each query and head by a loop: a softmax over the positions of the shallow feature."""
    torch.manual_seed(2)
    made = AttentionFusion(8, num_heads=2).double().eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    deep, shallow = torch.randn(2, 3, 8).double(), torch.randn(2, 3, 8).double()
    expected = torch.stack([_fused(made, *pair) for pair in zip(deep, shallow, strict=True)])
    torch.testing.assert_close(made(deep, shallow), expected, rtol=1e-10, atol=1e-10)


def _fused(made: AttentionFusion, deep: Tensor, shallow: Tensor) -> Tensor:
    def norm(rows: Tensor, layer: nn.LayerNorm) -> Tensor:
        centred = rows - rows.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    inputs = norm(deep, made.query_norm), *(2 * [norm(shallow, made.key_norm)])
    weights, biases = made.attention.in_proj_weight.chunk(3), made.attention.in_proj_bias.chunk(3)
    queries, keys, values = (x @ w.T + b for x, w, b in zip(inputs, weights, biases, strict=True))
    attended = torch.zeros_like(deep)
    for position in range(len(deep)):
        for head in (slice(0, 4), slice(4, 8)):
            scores = torch.stack([queries[position, head] @ key[head] / 2 for key in keys])  # √4
            shares = scores.exp() / scores.exp().sum()
            attended[position, head] = sum(share * value[head] for share, value in zip(shares, values, strict=True))
    rows = deep + attended @ made.attention.out_proj.weight.T + made.attention.out_proj.bias
    first, second = made.ffn[0], made.ffn[3]
    hidden = norm(rows, made.ffn_norm) @ first.weight.T + first.bias
    return rows + (hidden * (1 + torch.erf(hidden / 2**0.5)) / 2) @ second.weight.T + second.bias


def test_the_published_size() -> None:
    """Parameters of the released architecture, of which 316 million more are frozen."""
    with torch.device("meta"):
        made = RepresentationTokenizer(VectorQuantizer(16384, 64), Teacher("siglip2_large"))
    assert made.fusion is not None and count(made.fusion) == 8_401_920
    assert count(made.feature_decoder) + count(made.heads) == 53_096_448
    assert count(made.decoder) == 35_158_403
    assert count(made) == 97_837_507
    assert made.spec is not None and made.spec.num_positions == 576


def test_the_fingerprint_covers_the_foundation_model(tmp_path: Path) -> None:
    made = tiny_representation(tmp_path)
    found = fingerprint(made)
    assert fingerprint(tiny_representation(tmp_path)) == found
    network = SmallVisionTransformer.load(tmp_path / "foundation.safetensors")
    nn.init.zeros_(network.trunk.cls_token)
    network.save(tmp_path / "foundation.safetensors")
    other = tiny_representation(tmp_path / "elsewhere")
    other.load_state_dict(made.state_dict())
    other.foundation = Teacher("stand_in", str(tmp_path / "foundation.safetensors"))
    assert fingerprint(other) != found


def test_the_fingerprint_covers_the_blocks_that_are_read(tmp_path: Path) -> None:
    """Equal weights on other features write other codes."""
    made, other = (tiny_representation(tmp_path, shallow=block) for block in (1, 2))
    other.load_state_dict(made.state_dict())
    assert fingerprint(made) != fingerprint(other)
    other.shallow = 1
    assert fingerprint(made) == fingerprint(other)


def test_a_recorded_tokenizer_is_built_again(tmp_path: Path) -> None:
    """A recipe writes the foundation model as plain arguments, without a class path."""
    tiny_representation(tmp_path)
    foundation = {"name": "stand_in", "weights": str(tmp_path / "foundation.safetensors"), "image_size": None}
    arguments = {
        "quantizer": {"class_path": "polytoken.quantizers.VectorQuantizer", "init_args": {"codebook_size": 16}},
        "foundation": foundation,
        "shallow": 1,
        "image_size": 16,
        "channel_multipliers": [1, 1, 1, 1],
        "feature_decoder": {"depth": 1, "num_heads": 4, "num_registers": 2, "dropout": 0.0},
    }
    section = {"class_path": "polytoken.tokenizers.RepresentationTokenizer", "init_args": arguments}
    made = build(section, Tokenizer, "a file")  # type: ignore[type-abstract]
    assert isinstance(made, RepresentationTokenizer) and made.foundation.width == 32
    foundation["weights"] = "gone.safetensors"
    with pytest.raises(MissingFileError, match=r"gone\.safetensors"):
        build(section, Tokenizer, "a file")  # type: ignore[type-abstract]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_size": 32}, "image_size is 32, and the foundation model's 2 × 2 features"),
        ({"shallow": 4}, "block 4 of teacher stand_in: it has blocks 0 to 3"),
        ({"shallow": 0}, "shallow is 0, and the deep feature comes from block 3: name a block from 1 to 3, or null"),
        ({"fusion": "sum"}, "fusion is 'sum'; it must be attention, linear or none"),
        (
            {"feature_decoder": FeatureDecoderConfig(num_heads=5)},
            "feature_decoder.num_heads is 5, which does not divide",
        ),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tiny_representation(tmp_path, **changes)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images have shape 2 × 3 × 8 × 8"):
        tiny_representation(tmp_path).encode(functional.interpolate(IMAGES, 8))
