"""VAR: a converted network computes what VAR's own does, written down here from its description."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import polytoken
from polytoken.errors import UserError
from polytoken.pipeline import GenerationPipeline
from polytoken.sampling import CategoricalSampler
from polytoken.specs import Tokens
from polytoken.tokenizers import ConvolutionalTokenizer
from tests.support.released import double, small_state
from tests.support.released_networks import ldm_decode, ldm_encode, multi_scale, next_scale_logits

SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
TOKENIZER_SIZES = {160: 16, 320: 32, 640: 64, 1920: 192, 4096: 64}
GENERATOR_SIZES = {1024: 32, 2048: 64, 3072: 96, 4096: 64, 6144: 192, 16: 2}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def tokenizer_state() -> dict[str, Tensor]:
    return small_state("var_vqvae", TOKENIZER_SIZES, {})


@pytest.fixture(scope="module")
def generator_state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    state = small_state("var_d16", GENERATOR_SIZES, {"blocks.": 2})
    for block in range(2):
        state[f"blocks.{block}.ffn.fc1.weight"] = torch.randn(128, 32) / 6
        state[f"blocks.{block}.ffn.fc1.bias"] = torch.randn(128) / 4
        state[f"blocks.{block}.ffn.fc2.weight"] = torch.randn(32, 128) / 12
        state[f"blocks.{block}.attn.scale_mul_1H11"] = torch.tensor([2.0, 7.0]).view(1, 2, 1, 1)  # one is clamped
    return state


@pytest.fixture(scope="module")
def tokenizer_file(tokenizer_state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("var") / "vae.pth"
    torch.save(tokenizer_state, file)
    return file


@pytest.fixture(scope="module")
def pipeline(
    generator_state: dict[str, Tensor], tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> GenerationPipeline:
    file = tmp_path_factory.mktemp("var") / "var.pth"
    torch.save({"epoch": 3, "trainer": {"var_wo_ddp": generator_state, "var_opt": {}}}, file)
    loaded = polytoken.from_pretrained("var/d16", file=file, tokenizer_file=tokenizer_file)
    assert isinstance(loaded, GenerationPipeline)
    return loaded


def test_the_tokenizer_writes_the_codes_of_the_released_one(
    tokenizer_state: dict[str, Tensor], tokenizer_file: Path
) -> None:
    made = polytoken.from_pretrained("var/vae_ch160v4096z32", file=tokenizer_file)
    assert isinstance(made, ConvolutionalTokenizer)
    encoding = made.encode(torch.randn(1, 3, 256, 256).clamp(-1, 1))
    (features,) = encoding.latents
    codes, sums = multi_scale(features.double(), double(tokenizer_state), "quantize", SCALES, directions=False)
    assert encoding.codes is not None and torch.equal(encoding.codes[:, 0], codes)
    torch.testing.assert_close(encoding.quantized.double(), sums[-1], rtol=1e-5, atol=1e-5)
    assert made.decode(encoding.quantized).image.isfinite().all()


def test_encoder_and_decoder_compute_what_the_released_names_say(
    tokenizer_state: dict[str, Tensor], tokenizer_file: Path
) -> None:
    state = double(tokenizer_state)
    for name in [name for name in state if ".qkv." in name]:  # queries, keys, values
        state |= zip((name.replace("qkv", part) for part in "qkv"), state.pop(name).chunk(3), strict=True)
    made = polytoken.from_pretrained("var/vae_ch160v4096z32", file=tokenizer_file).double()
    assert isinstance(made, ConvolutionalTokenizer)
    images, quantized = torch.randn(1, 3, 64, 64).double(), torch.randn(1, 32, 4, 4).double()
    with torch.no_grad():
        features, decoded = made.projection(made.encoder(images)), made.decode(quantized).image
    torch.testing.assert_close(features, ldm_encode(state, images), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(decoded, ldm_decode(state, quantized), atol=1e-8, rtol=1e-8)


def test_the_generator_predicts_what_the_released_one_does(
    pipeline: GenerationPipeline, tokenizer_state: dict[str, Tensor], generator_state: dict[str, Tensor]
) -> None:
    quantizer, state = double(tokenizer_state), double(generator_state)
    features = torch.randn(2, 32, 16, 16, dtype=torch.float64)
    codes, sums = multi_scale(features, quantizer, "quantize", SCALES, directions=False)
    labels = torch.tensor([3, 1000])
    expected = functional.cross_entropy(next_scale_logits(state, labels, sums, SCALES).transpose(1, 2), codes)
    with torch.no_grad():
        found = pipeline.network.loss(Tokens(codes=codes.unsqueeze(1)), labels).total
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_shared_modulation_is_that_of_the_release(
    tokenizer_state: dict[str, Tensor], tokenizer_file: Path, generator_state: dict[str, Tensor], tmp_path: Path
) -> None:
    """``d36``, of 512 px: ten scales up to 32 × 32, 2,240 positions."""
    scales, file = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32), tmp_path / "var_d36.pth"
    state = {name: value for name, value in generator_state.items() if ".ada_lin." not in f".{name}"}
    state |= {name: value for name, value in generator_state.items() if name.startswith("head_nm.")}
    state |= {f"blocks.{block}.ada_gss": torch.randn(1, 1, 6, 32) for block in range(2)}
    state |= {"shared_ada_lin.1.weight": torch.randn(192, 32) / 6, "shared_ada_lin.1.bias": torch.randn(192) / 4}
    state["pos_1LC"] = torch.randn(1, 2240, 32)
    torch.save(state, file)
    pipeline = polytoken.from_pretrained("var/d36", file=file, tokenizer_file=tokenizer_file)
    assert isinstance(pipeline, GenerationPipeline)
    features, labels = torch.randn(1, 32, 32, 32, dtype=torch.float64), torch.tensor([3])
    codes, sums = multi_scale(features, double(tokenizer_state), "quantize", scales, directions=False)
    expected = functional.cross_entropy(next_scale_logits(double(state), labels, sums, scales).transpose(1, 2), codes)
    with torch.no_grad():
        found = pipeline.network.loss(Tokens(codes=codes.unsqueeze(1)), labels).total
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_images_are_drawn(pipeline: GenerationPipeline) -> None:
    sampler = CategoricalSampler(guidance=2.5, guidance_schedule="linear", top_k=900, top_p=0.96)
    (image,) = pipeline.sample(["n01440764"], sampler=sampler)
    assert image.size == (256, 256) and len(image.getcolors(2**16) or []) > 100


def test_an_image_size_without_scales_is_refused(tokenizer_state: dict[str, Tensor]) -> None:
    release = polytoken.pretrained.RELEASES["var/vae_ch160v4096z32"]
    with pytest.raises(UserError, match="no scales that end at 24 × 24"):
        release.describe(tokenizer_state, 384)
