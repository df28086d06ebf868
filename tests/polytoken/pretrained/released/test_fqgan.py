"""FQGAN and FAR: what the released names mean, and loading by name."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import polytoken
from polytoken.errors import UserError
from polytoken.pretrained.released import RELEASES
from polytoken.sampling import CategoricalSampler
from polytoken.specs import Tokens
from tests.support.released import small_state
from tests.support.released_networks import as_ldm, gpt_losses, ldm_decode, ldm_features

SIZES = {128: 8, 256: 16, 512: 32, 1536: 96, 2048: 128, 16384: 64}  # 4 × 4 positions, 64 px
FAR_SIZES = {1024: 128, 2048: 256, 3072: 384, 2816: 512, 16384: 64}
SUBSPACES = {
    "dual_ds16": (("visual_head", "vis"), ("semantic_head", "sem")),
    "triple_ds16": (("visual_head", "vis"), ("semantic_head_mid", "sem_mid"), ("semantic_head_high", "sem_high")),
}


def write_tokenizer(name: str, folder: Path) -> tuple[dict[str, Tensor], Path]:
    state = small_state(f"fqgan_{name}", SIZES, {"transformer.": 2})
    file = folder / "tokenizer.pt"
    torch.save({"model": state, "steps": 1, "args": Namespace(data_path="images")}, file)
    return state, file


@pytest.mark.parametrize("name", SUBSPACES)
def test_a_tokenizer_computes_what_the_released_names_say(name: str, tmp_path: Path) -> None:
    """Encoder, adapters, tails, look-up, concatenation and decoder in float64, in the released order of subspaces."""
    state, file = write_tokenizer(name, tmp_path)
    state = {key: tensor.double() for key, tensor in state.items()}
    tokenizer = polytoken.from_pretrained(f"fqgan/{name}", file=file, accept_license=True).double()
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    encoding = tokenizer.encode(images)
    base = ldm_features(as_ldm(state), images)

    codes, vectors = zip(*(_quantized(state, base, *names) for names in SUBSPACES[name]), strict=True)
    assert torch.equal(encoding.codes, torch.stack(codes, dim=1))
    assert len(encoding.codes.unique()) > 8
    torch.testing.assert_close(encoding.quantized.double(), torch.cat(vectors, dim=1), atol=1e-6, rtol=0)
    decoded = tokenizer.decode(tokenizer.embed_codes(torch.stack(codes, dim=1)).double()).image
    expected = ldm_decode(as_ldm(state), torch.cat(vectors, dim=1))
    torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["dual", "triple"])
def test_a_generator_computes_what_the_released_names_say(name: str, tmp_path: Path) -> None:
    tokenizer_file = write_tokenizer(f"{name}_ds16", tmp_path)[1]
    state = small_state(f"far_{name}_base", FAR_SIZES, {"layers.": 2, "ar_head.": 1})
    file = tmp_path / "generator.pt"
    torch.save({"model": state, "args": Namespace()}, file)
    pipeline = polytoken.from_pretrained(
        f"fqgan/far_{name}_base", file=file, tokenizer_file=tokenizer_file, accept_license=True
    )
    images = pipeline.images(torch.tensor([3, 999]), CategoricalSampler(guidance=2.0), 0, 0)
    assert images.shape == (2, 64, 64, 3)
    assert images.float().std() > 1

    codes = torch.randint(64, (2, len(SUBSPACES[f"{name}_ds16"]), 16), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([3, 1000])
    losses = pipeline.network.loss(Tokens(codes=codes), labels).parts
    expected = gpt_losses({key: tensor.double() for key, tensor in state.items()}, codes, labels)
    torch.testing.assert_close([*losses.values()], [loss.float() for loss in expected], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "guidance"), [("dual", 2.0), ("triple", 1.75)])
def test_the_remark_names_the_sampler_of_the_figure(kind: str, guidance: float) -> None:
    """FQGAN Table 2 and appendix E."""
    for size in ("base", "large"):
        assert f"guidance {guidance}" in RELEASES[f"fqgan/far_{kind}_{size}"].remark


def test_the_licence_must_be_accepted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="CC-BY-NC-4.0"):
        polytoken.from_pretrained("fqgan/dual_ds16", file=tmp_path / "tokenizer.pt")


def _quantized(state: dict[str, Tensor], base: Tensor, head: str, suffix: str) -> tuple[Tensor, Tensor]:
    """Codes (B, N) and unit vectors (B, d, h, w) of one subspace."""

    def weights(name: str) -> tuple[Tensor, Tensor]:
        return state[f"{name}.weight"], state[f"{name}.bias"]

    def norm(tokens: Tensor, name: str) -> Tensor:
        return functional.layer_norm(tokens, tokens.shape[-1:], *weights(name))

    adapter = f"encoder.{head}.0"
    tokens = norm(base.flatten(2).mT + state[f"{adapter}.positional_embedding"], f"{adapter}.ln_pre")
    for block in (f"{adapter}.transformer.0", f"{adapter}.transformer.1"):
        qkv = functional.linear(
            norm(tokens, f"{block}.ln_1"), state[f"{block}.attn.in_proj_weight"], state[f"{block}.attn.in_proj_bias"]
        )
        query, key, value = (part.unflatten(2, (8, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
        attended = ((query @ key.mT) / query.shape[-1] ** 0.5).softmax(-1) @ value
        tokens = tokens + functional.linear(attended.transpose(1, 2).flatten(2), *weights(f"{block}.attn.out_proj"))
        hidden = functional.gelu(functional.linear(norm(tokens, f"{block}.ln_2"), *weights(f"{block}.mlp.c_fc")))
        tokens = tokens + functional.linear(hidden, *weights(f"{block}.mlp.c_proj"))
    features = norm(tokens, f"{adapter}.ln_post").mT.unflatten(2, base.shape[2:])
    groups = features.shape[1] // 4  # 32 at the released widths of 128 channels and more
    normed = functional.silu(functional.group_norm(features, groups, *weights(f"encoder.norm_out_{suffix}"), eps=1e-6))
    latents = functional.conv2d(normed, *weights(f"encoder.conv_out_{suffix}"), padding=1)
    latents = functional.normalize(functional.conv2d(latents, *weights(f"quant_conv_{suffix}")), dim=1)
    table = functional.normalize(state[f"quantize_{suffix}.embedding.weight"], dim=1)
    codes = (2 - 2 * torch.einsum("bdhw,kd->bhwk", latents, table)).argmin(-1).flatten(1)
    return codes, table[codes].mT.unflatten(2, base.shape[2:])
