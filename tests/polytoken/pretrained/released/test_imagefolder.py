"""ImageFolder: a converted network computes what the released one does, written down here from its description."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import polytoken
from polytoken.errors import UserError
from polytoken.pipeline import GenerationPipeline
from polytoken.pretrained.released.convert import imagenet_classes
from polytoken.pretrained.released.layout import Permuted
from polytoken.sampling import CategoricalSampler
from polytoken.specs import Tokens
from polytoken.tokenizers import FoldedTokenizer
from tests.support.released import double, small_state
from tests.support.released_networks import multi_scale, next_scale_logits

NAME = "imagefolder/MSVR10P2-4096"
SCALES = (1, 1, 2, 3, 3, 4, 5, 6, 8, 11)
SIZES = {768: 128, 2304: 384, 3072: 512, 4096: 64}
GENERATOR_SIZES = {1088: 32, 2176: 64, 3264: 96, 4352: 128, 6528: 192, 8192: 128, 17: 2}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    drawn = small_state("imagefolder_tokenizer", SIZES, {"model.blocks.": 2})
    drawn["decoder.to_pixel.model.weight"] = torch.randn(768, 128) / 11
    drawn["decoder.to_pixel.model.bias"] = torch.randn(768)
    return drawn


@pytest.fixture(scope="module")
def file(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = tmp_path_factory.mktemp("imagefolder") / "best_ckpt.pt"
    torch.save({"ema": state, "model": {}, "steps": 7}, written)
    return written


@pytest.fixture(scope="module")
def tokenizer(file: Path) -> FoldedTokenizer:
    loaded = polytoken.from_pretrained(NAME, file=file, accept_license=True)
    assert isinstance(loaded, FoldedTokenizer)
    return loaded


@pytest.fixture(scope="module")
def generator_state() -> dict[str, Tensor]:
    return small_state("imagefolder_var_d17", GENERATOR_SIZES, {"blocks.": 2})


@pytest.fixture(scope="module")
def pipeline(
    generator_state: dict[str, Tensor], state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> GenerationPipeline:
    """Generator and tokenizer of one file, as training writes it."""
    written = tmp_path_factory.mktemp("imagefolder") / "ar-ckpt-last.pth"
    torch.save({"trainer": {"var_wo_ddp": generator_state, "vae_local": state}}, written)
    loaded = polytoken.from_pretrained("imagefolder/VAR-d17", file=written, tokenizer_file=written, accept_license=True)
    assert isinstance(loaded, GenerationPipeline)
    return loaded


def plain_placed(own: Mapping[str, Tensor], tokens: Tensor, level: int) -> Tensor:
    """Class token and tokens (B, 1 + n, dim) with positions, resampled to their grid, and a level embedding."""
    positions, side = own["model.pos_embed"], round(tokens.shape[1] ** 0.5)
    grid = positions[:, 1:].transpose(1, 2).unflatten(2, (16, 16))
    if side != 16:
        grid = functional.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    positions = torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
    prefixed = torch.cat([own["model.cls_token"].expand(len(tokens), -1, -1), tokens], dim=1)
    return prefixed + positions + own["lvl_embed.weight"][level]


def plain_transformer(own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The blocks and the norm of a vision transformer with heads of 64 channels."""

    def linear(name: str, value: Tensor) -> Tensor:
        return functional.linear(value, own[f"{name}.weight"], own[f"{name}.bias"])

    def norm(name: str, value: Tensor) -> Tensor:
        return functional.layer_norm(value, value.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"], eps=1e-6)

    for block in (f"model.blocks.{i}" for i in range(2)):
        fused = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).unflatten(-1, (3, -1, 64))
        queries, keys, values = fused.permute(2, 0, 3, 1, 4)
        mixed = (queries @ keys.transpose(2, 3) / 8).softmax(-1) @ values
        x = x + own[f"{block}.ls1.gamma"] * linear(f"{block}.attn.proj", mixed.transpose(1, 2).flatten(2))
        hidden = functional.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x)))
        x = x + own[f"{block}.ls2.gamma"] * linear(f"{block}.mlp.fc2", hidden)
    return norm("model.norm", x)


def plain_features(state: Mapping[str, Tensor], images: Tensor) -> list[Tensor]:
    """Features (B, 32, 11, 11) of the detail and the semantic branch."""
    own = below(state, "encoder")
    kernel, bias = (own[f"model.patch_embed.proj.{kind}"] for kind in ("weight", "bias"))
    patches = functional.conv2d(images, kernel, bias, stride=16).flatten(2).transpose(1, 2)
    branches = own["latent_tokens"].expand(len(images), -1, -1).split(121, dim=1)
    queries = [plain_placed(own, tokens, level)[:, 1:] for level, tokens in enumerate(branches, start=1)]
    outputs = plain_transformer(own, torch.cat([plain_placed(own, patches, 0), *queries], dim=1))[:, 257:]
    maps = [output.transpose(1, 2).unflatten(2, (11, 11)) for output in outputs.split(121, dim=1)]
    return [functional.conv2d(one, state["quant_conv.weight"], state["quant_conv.bias"]) for one in maps]


def plain_pixels(state: Mapping[str, Tensor], quantized: Tensor) -> Tensor:
    """Images (B, 3, 256, 256) of quantized features (B, 64, 11, 11), detail first."""
    own = below(state, "decoder")
    mapped = functional.conv2d(quantized, state["post_quant_conv.weight"], state["post_quant_conv.bias"])
    masks = plain_placed(own, own["mask_token"].expand(len(mapped), 256, -1), 0)
    codes = plain_placed(own, mapped.flatten(2).transpose(1, 2), 1)
    outputs = plain_transformer(own, torch.cat([masks, codes], dim=1))[:, 1:257]
    patches = functional.linear(outputs, own["to_pixel.model.weight"], own["to_pixel.model.bias"])
    rows = patches.view(-1, 16, 16, 16, 16, 3)  # row and column of the patch, row, column and channel of the pixel
    return rows.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, 256, 256)


def below(state: Mapping[str, Tensor], module: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{module}."): value for name, value in state.items() if name.startswith(f"{module}.")}


def test_the_tokenizer_writes_the_codes_of_the_released_one(
    state: dict[str, Tensor], tokenizer: FoldedTokenizer
) -> None:
    images = torch.randn(1, 3, 256, 256).clamp(-1, 1)
    encoding, released = tokenizer.encode(images), double(state)
    features = plain_features(released, images.double())
    torch.testing.assert_close(
        torch.cat(encoding.latents, dim=1).double(), torch.cat(features, dim=1), rtol=0, atol=1e-4
    )
    assert encoding.codes is not None
    for i, latents in enumerate(encoding.latents):
        codes, sums = multi_scale(latents.double(), released, f"quantizes.{i}", SCALES, directions=True)
        assert torch.equal(encoding.codes[:, i], codes)
        torch.testing.assert_close(encoding.subspaces[i].double(), sums[-1], rtol=0, atol=1e-4)


def test_the_tokenizer_decodes_as_the_released_one(state: dict[str, Tensor], tokenizer: FoldedTokenizer) -> None:
    quantized = torch.randn(1, 64, 11, 11)
    expected = plain_pixels(double(state), quantized.double())
    torch.testing.assert_close(tokenizer.decode(quantized).image.double(), expected, rtol=0, atol=1e-4)


def test_the_generator_predicts_what_the_released_one_does(
    pipeline: GenerationPipeline, state: dict[str, Tensor], generator_state: dict[str, Tensor]
) -> None:
    labels, released = torch.tensor([3, 1000]), double(state)
    codes, sums = zip(
        *(
            multi_scale(torch.randn(2, 32, 11, 11, dtype=torch.float64), released, f"quantizes.{i}", SCALES, True)
            for i in range(2)
        ),
        strict=True,
    )
    joined: Sequence[Tensor] = [torch.cat(both, dim=1) for both in zip(*sums, strict=True)]
    logits = next_scale_logits(double(generator_state), labels, joined, SCALES).chunk(2, dim=-1)
    expected = torch.stack(
        [functional.cross_entropy(one.transpose(1, 2), own) for one, own in zip(logits, codes, strict=True)]
    )
    with torch.no_grad():
        found = pipeline.network.loss(Tokens(codes=torch.stack(codes, dim=1)), labels).parts
    torch.testing.assert_close(torch.stack([*found.values()]).double(), expected, rtol=1e-5, atol=0)


def test_images_are_drawn(pipeline: GenerationPipeline) -> None:
    sampler = CategoricalSampler(guidance=4.25, guidance_schedule="linear", top_k=750, top_p=0.95)
    (image,) = pipeline.sample([1], sampler=sampler)
    assert image.size == (256, 256) and len(image.getcolors(2**16) or []) > 100


def test_a_tokenizer_of_one_scale_has_unit_codes(state: dict[str, Tensor], tmp_path: Path) -> None:
    """VP2: 16 × 16 codes a branch, at which positions are those of the patches."""
    released = {name: value for name, value in state.items() if ".quant_resi." not in name}
    released["encoder.latent_tokens"] = torch.randn(1, 512, 128)
    torch.save(released, tmp_path / "best_ckpt.pt")
    made = polytoken.from_pretrained("imagefolder/VP2-4096", file=tmp_path / "best_ckpt.pt", accept_license=True)
    assert isinstance(made, FoldedTokenizer) and made.spec is not None
    assert made.spec.scales == ((16, 16),) and made.spec.codebook_sizes == (64, 64)
    for branch in made.encode(torch.zeros(1, 3, 256, 256)).subspaces:
        torch.testing.assert_close(branch.norm(dim=1), torch.ones(1, 16, 16))


def test_the_licence_is_asked_for(file: Path) -> None:
    with pytest.raises(UserError, match="Adobe Research License, which forbids commercial use"):
        polytoken.from_pretrained(NAME, file=file)


def test_a_missing_package_says_nothing_about_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.models.vision_transformer", None)
    with pytest.raises(UserError, match=r"^polytoken\.tokenizers\.FoldedTokenizer, .* pip install '\.\[suite\]'$"):
        polytoken.from_pretrained(NAME, file=file, accept_license=True)


def test_the_classes_of_a_generator_ask_for_the_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.data", None)
    with pytest.raises(UserError, match=r"the list of ImageNet's classes needs a package .* pip install '\.\[suite\]'"):
        imagenet_classes()


def test_split_axes_come_back() -> None:
    axes = Permuted("released", "ours", axes=(2, 0, 1, 3), sizes=(2, 3, 4, 5))
    tensor = torch.arange(120.0).view(24, 5)
    ours = axes.to_ours(tensor, (24, 5))
    assert torch.equal(axes.to_released(ours, (24, 5)), tensor)
    assert ours.view(4, 2, 3, 5)[3, 1, 2, 4] == tensor[1 * 12 + 2 * 4 + 3, 4]
    with pytest.raises(UserError, match="other shapes"):
        axes.to_ours(torch.zeros(25, 5), (24, 5))
