"""The folded tokenizer started from a vision transformer: equal features, resampled kernels and positions, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from polytoken.errors import MissingFileError, UserError
from polytoken.quantizers import FactorizedQuantizer, MultiScaleQuantizer
from polytoken.teachers import FOUNDATION_MODELS, SmallVisionTransformer, build_network
from polytoken.tokenizers import FoldedTokenizer, VisionTransformerConfig
from polytoken.tokenizers.pretrained import _check_sizes


@pytest.fixture
def source(tmp_path: Path) -> SmallVisionTransformer:
    return stand_in(tmp_path / "high.safetensors")


def stand_in(path: Path, **changes: Any) -> SmallVisionTransformer:
    torch.manual_seed(1)
    settings = {"image_size": 16, "patch_size": 4, "width": 32, "depth": 2, "num_heads": 4, "num_classes": 3} | changes
    network = SmallVisionTransformer(**settings)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.2)
    network.save(path)
    return network.eval()


def tokenizer(
    pretrained: str | Path | None, image_size: int = 16, tuning: Any = "full", **changes: Any
) -> FoldedTokenizer:
    torch.manual_seed(0)
    branch = MultiScaleQuantizer((1, 2, 3), codebook_size=16, code_dim=6, num_convolutions=2)
    sizes = {"patch_size": 4, "dim": 32, "depth": 2, "num_heads": 4, "stochastic_depth": 0.0, "layer_scale": None}
    transformer = VisionTransformerConfig(**(sizes | changes))
    path = None if pretrained is None else str(pretrained)
    return FoldedTokenizer(FactorizedQuantizer(branch, 2), 3, image_size, transformer, path, tuning, rank=2)


@torch.no_grad()
def test_at_equal_sizes_patches_have_the_features_of_the_source(source: SmallVisionTransformer, tmp_path: Path) -> None:
    made, images = tokenizer(tmp_path / "high.safetensors").eval(), torch.randn(2, 3, 16, 16)
    patches = made.patch_embedding(images).flatten(2).transpose(1, 2)
    made.start()
    assert not torch.equal(made.patch_embedding(images).flatten(2).transpose(1, 2), patches), "start loads"
    patches = made.patch_embedding(images).flatten(2).transpose(1, 2)
    for transformer in (made.encoder, made.decoder):
        nn.init.zeros_(transformer.levels.weight)
        torch.testing.assert_close(transformer([patches])[0], source.patches(images), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_other_patches_and_grids_are_resampled(source: SmallVisionTransformer, tmp_path: Path) -> None:
    """A patch enlarged by the resampling of the kernel has the embedding of the original patch."""
    made = tokenizer(tmp_path / "high.safetensors", image_size=36, patch_size=6)
    made.start()
    patch = torch.randn(5, 3, 4, 4)
    enlarged = functional.interpolate(patch, (6, 6), mode="bicubic", antialias=True)
    torch.testing.assert_close(
        made.patch_embedding(enlarged), source.trunk.patch_embed.proj(patch), rtol=1e-4, atol=1e-4
    )
    positions = source.trunk.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    expected = functional.interpolate(positions, (6, 6), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    for transformer in (made.encoder, made.decoder):
        torch.testing.assert_close(transformer.positions[:, 1:], expected)
        assert torch.equal(transformer.positions[:, :1], source.trunk.pos_embed[:, :1])


def test_without_a_source_nothing_changes() -> None:
    made = tokenizer(None)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made.start()
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


@pytest.mark.parametrize("name", ["dinov2_base", "dinov2_base_registers", "clip_base_16"])
def test_the_published_sizes_fit_dinov2_alone(name: str) -> None:
    with torch.device("meta"):
        made = FoldedTokenizer(FactorizedQuantizer(MultiScaleQuantizer(), 2))
        network = build_network(FOUNDATION_MODELS[name], 224, pretrained=False)
    names = {"cls_token": "class_token", "pos_embed": "positions"}
    state = {names.get(key, key): value for key, value in network.state_dict().items() if "patch_embed" not in key}
    if name == "dinov2_base":
        _check_sizes(name, network, state, made.encoder)
        return
    with pytest.raises(UserError, match=f"{name} and the tokenizer's transformer do not both have"):
        _check_sizes(name, network, state, made.encoder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"dim": 64},
            "has 32 channels and 4 heads, and the tokenizer's transformer has 64 and 4: make transformer.dim",
        ),
        ({"num_heads": 2}, "32 channels and 4 heads, and the tokenizer's transformer has 32 and 2"),
        ({"depth": 3}, "do not both have blocks.2.*transformer.depth blocks"),
        ({"layer_scale": 1e-5}, "do not both have blocks.0.ls1.gamma.*transformer.layer_scale to null"),
    ],
)
def test_another_source_is_refused(
    changes: dict[str, Any], sentence: str, source: SmallVisionTransformer, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        tokenizer(tmp_path / "high.safetensors", **changes).start()


def test_a_source_is_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        MissingFileError, match="weights/dinov2_base.safetensors is missing: run `make weights TEACHERS"
    ):
        tokenizer("dinov2_base").start()
    with pytest.raises(MissingFileError, match="pretrained is 'high.safetensors', which is no file and no published"):
        tokenizer("high.safetensors").start()
    stand_in(tmp_path / "mean.safetensors", pooling="mean")
    with pytest.raises(UserError, match="do not both have class_token"):
        tokenizer("mean.safetensors").start()


def trained(made: FoldedTokenizer) -> set[str]:
    """Names of the tensors that an update changes."""
    before = {name: weight.clone() for name, weight in made.named_parameters()}
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):  # the first one moves only one factor of an update
        decoded, encoding = made(torch.randn(2, 3, 16, 16))
        (decoded.image.square().mean() + sum(encoding.losses.values())).backward()
        optimizer.step()
    return {name for name, weight in made.named_parameters() if not torch.equal(weight, before[name])}


@pytest.mark.parametrize("tuning", ["linear", "lora"])
def test_a_frozen_encoder_trains_what_the_pretrained_network_lacks(
    tuning: str, source: SmallVisionTransformer, tmp_path: Path
) -> None:
    """With lora the last norm as well, and updates of the layers that the released code adapts."""
    made = tokenizer(tmp_path / "high.safetensors", tuning=tuning)
    made.start()
    images = torch.randn(2, 3, 16, 16)
    full = tokenizer(tmp_path / "high.safetensors")
    full.start()
    torch.testing.assert_close(made.eval().features(images), full.eval().features(images))
    names = trained(made.train())
    of_encoder = {name for name in names if name.startswith(("encoder.", "patch_embedding."))}
    updates = {
        f"encoder.blocks.{block}.mlp.{layer}.parametrizations.weight.0.{factor}"
        for block in (0, 1)
        for layer in ("fc1", "fc2")
        for factor in ("up", "down")
    }
    added = {"encoder.norm.weight", "encoder.norm.bias"} | updates
    assert of_encoder == {"encoder.levels.weight"} | (added if tuning == "lora" else set())
    assert {name for name, _ in made.named_parameters() if not name.startswith(("encoder.", "patch_emb"))} <= names
    if tuning == "lora":
        layer: Any = made.encoder.blocks[0].mlp.fc1
        update, original = layer.parametrizations.weight[0], layer.parametrizations.weight.original
        assert torch.equal(original, source.trunk.blocks[0].mlp.fc1.weight)
        torch.testing.assert_close(layer.weight - original, update.up @ update.down, rtol=1e-4, atol=1e-5)


def test_a_tuned_encoder_is_loaded_without_its_source(source: SmallVisionTransformer, tmp_path: Path) -> None:
    made, again = (tokenizer(tmp_path / "high.safetensors", tuning="lora") for _ in range(2))
    made.start()
    trained(made)
    (tmp_path / "high.safetensors").unlink()
    again.load_state_dict(made.state_dict())
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(again.eval().features(images), made.eval().features(images))


def test_a_tuning_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="tuning is linear, which freezes the encoder: set pretrained, or tuning to"):
        tokenizer(None, tuning="linear")
    with pytest.raises(UserError, match="tuning is 'half'; it must be full, linear or lora"):
        tokenizer("high.safetensors", tuning="half")
    with pytest.raises(UserError, match="rank is 2, and updates of 4 × 1 weights have 1 to 1"):
        tokenizer("high.safetensors", tuning="lora", dim=1, num_heads=1)
