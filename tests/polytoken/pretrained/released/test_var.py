"""VAR: a converted network computes what VAR's own does, written down here from its description."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from tests.support.released import small_state

SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
CONVOLUTIONS = (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
TOKENIZER_SIZES = {160: 16, 320: 32, 640: 64, 1920: 192, 4096: 64}
GENERATOR_SIZES = {1024: 32, 2048: 64, 3072: 96, 4096: 64, 6144: 192, 16: 2}


@pytest.fixture(scope="module")
def tokenizer_state() -> dict[str, Tensor]:
    return small_state("var_vqvae", TOKENIZER_SIZES, {})


@pytest.fixture(scope="module")
def generator_state() -> dict[str, Tensor]:
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


def plain_quantizer(
    features: Tensor, state: Mapping[str, Tensor], before: str, scales: Sequence[int], directions: bool
) -> tuple[Tensor, list[Tensor]]:
    """Codes (B, N) of features (B, d, K, K), and the sum of all scales after each one."""
    table = state[f"{before}.embedding.weight"]
    rest, total, codes, sums = features, torch.zeros_like(features), [], []
    for scale, side in enumerate(scales):
        rows = functional.interpolate(rest, size=(side, side), mode="area").permute(0, 2, 3, 1)
        if directions:
            found = (functional.normalize(rows, dim=-1) @ functional.normalize(table, dim=-1).T).argmax(-1)
        else:
            found = torch.cdist(rows.flatten(0, 2), table).argmin(-1).view(rows.shape[:3])
        vectors = table[found].permute(0, 3, 1, 2)
        if scale < len(scales) - 1:
            vectors = functional.interpolate(vectors, size=features.shape[2:], mode="bicubic")
        name = f"{before}.quant_resi.qresi_ls.{CONVOLUTIONS[scale]}"
        blurred = functional.conv2d(vectors, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)
        added = vectors / 2 + blurred / 2
        rest, total = rest - added, total + added
        codes.append(found.flatten(1))
        sums.append(total)
    return torch.cat(codes, dim=1), sums


def plain_logits(state: Mapping[str, Tensor], labels: Tensor, sums: Sequence[Tensor], scales: Sequence[int]) -> Tensor:
    """Logits (B, L, V) of all positions, given the sums (B, C, K, K) after each scale."""
    condition = state["class_emb.weight"][labels]
    active = functional.silu(condition)
    words = [
        functional.linear(
            functional.interpolate(total, size=(side, side), mode="area").flatten(2).transpose(1, 2),
            state["word_embed.weight"],
            state["word_embed.bias"],
        )
        for total, side in zip(sums, scales[1:], strict=False)
    ]
    level = torch.cat([torch.full((side**2,), index) for index, side in enumerate(scales)])
    x = torch.cat([condition.unsqueeze(1) + state["pos_start"], *words], dim=1)
    x = x + state["lvl_embed.weight"][level] + state["pos_1LC"]
    mask = torch.zeros(len(level), len(level), dtype=x.dtype)
    mask[level.unsqueeze(1) < level] = -math.inf
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for block in range(depth):
        own = {name.removeprefix(f"blocks.{block}."): value for name, value in state.items()}
        if "ada_gss" in own:
            shared = functional.linear(active, state["shared_ada_lin.1.weight"], state["shared_ada_lin.1.bias"])
            modulation = (shared.view(-1, 1, 6, x.shape[-1]) + own["ada_gss"]).flatten(1)
        else:
            modulation = functional.linear(active, own["ada_lin.1.weight"], own["ada_lin.1.bias"])
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unsqueeze(1).chunk(6, dim=-1)
        normed = functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale1) + shift1
        bias = torch.cat([own["attn.q_bias"], torch.zeros_like(own["attn.q_bias"]), own["attn.v_bias"]])
        heads = own["attn.scale_mul_1H11"].shape[1]
        fused = functional.linear(normed, own["attn.mat_qkv.weight"], bias).unflatten(-1, (3, heads, -1))
        queries, keys, values = fused.permute(2, 0, 3, 1, 4)
        queries = functional.normalize(queries, dim=-1) * own["attn.scale_mul_1H11"].clamp_max(math.log(100)).exp()
        attention = (queries @ functional.normalize(keys, dim=-1).transpose(2, 3) + mask).softmax(-1)
        mixed = (attention @ values).transpose(1, 2).flatten(2)
        x = x + gate1 * functional.linear(mixed, own["attn.proj.weight"], own["attn.proj.bias"])
        normed = functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale2) + shift2
        hidden = functional.linear(normed, own["ffn.fc1.weight"], own["ffn.fc1.bias"])
        hidden = functional.gelu(hidden, approximate="tanh")
        x = x + gate2 * functional.linear(hidden, own["ffn.fc2.weight"], own["ffn.fc2.bias"])
    modulation = functional.linear(active, state["head_nm.ada_lin.1.weight"], state["head_nm.ada_lin.1.bias"])
    scale, shift = modulation.unsqueeze(1).chunk(2, dim=-1)
    x = functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
    return functional.linear(x, state["head.weight"], state["head.bias"])


def double(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in state.items()}


def test_the_tokenizer_writes_the_codes_of_the_released_one(
    tokenizer_state: dict[str, Tensor], tokenizer_file: Path
) -> None:
    made = polytoken.from_pretrained("var/vae_ch160v4096z32", file=tokenizer_file)
    assert isinstance(made, ConvolutionalTokenizer)
    encoding = made.encode(torch.randn(1, 3, 256, 256).clamp(-1, 1))
    (features,) = encoding.latents
    codes, sums = plain_quantizer(features.double(), double(tokenizer_state), "quantize", SCALES, directions=False)
    assert encoding.codes is not None and torch.equal(encoding.codes[:, 0], codes)
    torch.testing.assert_close(encoding.quantized.double(), sums[-1], rtol=1e-5, atol=1e-5)
    assert made.decode(encoding.quantized).image.isfinite().all()


def test_attention_reads_the_fused_projection_as_queries_keys_values(
    tokenizer_state: dict[str, Tensor], tokenizer_file: Path
) -> None:
    made = polytoken.from_pretrained("var/vae_ch160v4096z32", file=tokenizer_file)
    assert isinstance(made, ConvolutionalTokenizer)
    features = torch.randn(1, 64, 4, 4, dtype=torch.float64)
    own = {name.removeprefix("decoder.mid.attn_1."): value for name, value in double(tokenizer_state).items()}
    normed = functional.group_norm(features, 16, own["norm.weight"], own["norm.bias"], eps=1e-6)
    queries, keys, values = functional.conv2d(normed, own["qkv.weight"], own["qkv.bias"]).flatten(2).chunk(3, dim=1)
    attention = (queries.transpose(1, 2) @ keys / 8).softmax(-1)
    mixed = (values @ attention.transpose(1, 2)).unflatten(2, (4, 4))
    expected = features + functional.conv2d(mixed, own["proj_out.weight"], own["proj_out.bias"])
    with torch.no_grad():
        found = made.decoder.mid[1].to(torch.float64)(features)
    torch.testing.assert_close(found, expected)


def test_both_convolutions_next_to_the_codes_have_kernels_of_three_pixels(tokenizer_file: Path) -> None:
    made = polytoken.from_pretrained("var/vae_ch160v4096z32", file=tokenizer_file)
    assert isinstance(made, ConvolutionalTokenizer)
    assert made.post_quant_conv.kernel_size == (3, 3)
    tail = made.projection.tails[0]
    assert tail.quant_conv.kernel_size == (3, 3)  # type: ignore[union-attr]


def test_the_generator_predicts_what_the_released_one_does(
    pipeline: GenerationPipeline, tokenizer_state: dict[str, Tensor], generator_state: dict[str, Tensor]
) -> None:
    quantizer, state = double(tokenizer_state), double(generator_state)
    features = torch.randn(2, 32, 16, 16, dtype=torch.float64)
    codes, sums = plain_quantizer(features, quantizer, "quantize", SCALES, directions=False)
    labels = torch.tensor([3, 1000])
    expected = functional.cross_entropy(plain_logits(state, labels, sums, SCALES).transpose(1, 2), codes)
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
    codes, sums = plain_quantizer(features, double(tokenizer_state), "quantize", scales, directions=False)
    expected = functional.cross_entropy(plain_logits(double(state), labels, sums, scales).transpose(1, 2), codes)
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
