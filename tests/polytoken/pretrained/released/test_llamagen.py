"""LlamaGen: what the released names mean."""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import polytoken
from lightning_modules import SamplingModule
from polytoken.pipeline import GenerationPipeline
from polytoken.pretrained.released import RELEASES
from polytoken.specs import Tokens
from polytoken.tokenizers import Tokenizer
from tests.support.released import small_state
from tests.support.released_networks import as_ldm, gpt_losses, ldm_decode, ldm_encode

VQ = small_state("llamagen_vq_ds16", {128: 8, 256: 16, 512: 32, 16384: 64}, {})
GPT = small_state("llamagen_gpt_b", {768: 128, 2304: 384, 2048: 512, 16384: 64}, {"layers.": 2})


def test_the_tokenizer_computes_what_the_released_names_say(tmp_path: Path) -> None:
    """Encoder, unit codes by cosine, and decoder in float64."""
    torch.save({"model": VQ}, tmp_path / "vq.pt")
    tokenizer = polytoken.from_pretrained("llamagen/vq_ds16_c2i", file=tmp_path / "vq.pt")
    assert isinstance(tokenizer, Tokenizer)
    state = as_ldm({name: tensor.double() for name, tensor in VQ.items()})
    images = 2 * torch.rand(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    table = functional.normalize(state["quantize.embedding.weight"])
    codes = torch.einsum("bchw,kc->bkhw", ldm_encode(state, images), table).argmax(1)
    encoding = tokenizer.double().encode(images)
    assert torch.equal(encoding.codes, codes.flatten(1)[:, None]) and len(codes.unique()) > 4
    vectors = table[codes].permute(0, 3, 1, 2)
    torch.testing.assert_close(encoding.quantized.double(), vectors, rtol=0, atol=1e-6)
    torch.testing.assert_close(tokenizer.decode(vectors).image, ldm_decode(state, vectors), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "guidance"),
    [("c2i_B_256", 2.0), ("c2i_L_384", 2.0), ("c2i_XL_384", 1.75), ("c2i_XXL_384", 1.75), ("c2i_3B_384", 1.65)],
)
def test_the_remark_names_the_sampler_of_the_figure(name: str, guidance: float) -> None:
    remark = RELEASES[f"llamagen/{name}"].remark
    assert f"guidance {guidance}" in remark
    assert ("--model.image_size 256" in remark) == name.endswith("384")
    assert "image_size" in signature(SamplingModule).parameters


def test_the_generator_computes_what_the_released_names_say(tmp_path: Path) -> None:
    torch.save({"model": VQ}, tmp_path / "vq.pt")
    torch.save({"model": GPT}, tmp_path / "gpt.pt")
    pipeline = polytoken.from_pretrained(
        "llamagen/c2i_B_256", file=tmp_path / "gpt.pt", tokenizer_file=tmp_path / "vq.pt"
    )
    assert isinstance(pipeline, GenerationPipeline)
    codes, labels = torch.randint(64, (2, 1, 256), generator=torch.Generator().manual_seed(0)), torch.tensor([3, 999])
    losses = pipeline.network.loss(Tokens(codes=codes), labels).parts
    expected = gpt_losses({name: tensor.double() for name, tensor in GPT.items()}, codes, labels)
    torch.testing.assert_close([*losses.values()], [loss.float() for loss in expected], atol=1e-5, rtol=1e-5)
