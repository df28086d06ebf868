"""LightningDiT and VA-VAE: what the released names mean, and loading by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import polytoken
from polytoken.errors import MissingFileError, UserError
from polytoken.sampling import FlowSampler
from tests.support.released import small_state
from tests.support.released_networks import dit_positions, dit_velocity, ldm_decode, ldm_encode

SIZES = {1152: 64, 72: 16, 3456: 192, 6144: 340, 3072: 170, 6912: 384, 2304: 128}


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = small_state("vavae", {128: 8, 256: 16, 512: 32}, {})
    teacher = {"foundation_model.model.norm.weight": torch.ones(8), "loss.logvar": torch.zeros(())}
    file = tmp_path_factory.mktemp("vavae") / "vavae.pt"
    torch.save({"state_dict": {**state, **teacher, "linear_proj.weight": torch.ones(8, 8)}}, file)
    return file


@pytest.fixture
def state() -> dict[str, Tensor]:
    state = small_state("lightningdit_xl1", SIZES, {"blocks.": 2})
    return {**state, **dit_positions(state)}


@pytest.fixture
def file(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    weights = {f"module.{name}": tensor for name, tensor in state.items() if ":" not in name}
    torch.save({"ema": weights, "model": {name: tensor + 1 for name, tensor in weights.items()}}, tmp_path / "dit.pt")
    statistics = {"mean": torch.arange(32.0).view(1, 32, 1, 1), "std": torch.arange(1, 33.0).view(1, 32, 1, 1)}
    torch.save(statistics, tmp_path / "latents_stats.pt")
    return tmp_path / "dit.pt"


def test_va_vae_computes_what_the_released_names_say(tokenizer_file: Path) -> None:
    state = {name: tensor.double() for name, tensor in torch.load(tokenizer_file)["state_dict"].items()}
    tokenizer = polytoken.from_pretrained("lightningdit/vavae_f16d32", file=tokenizer_file).double()
    images = 2 * torch.rand(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    latents = tokenizer.encode(images).quantized.double()
    mean, _ = ldm_encode(state, images).chunk(2, dim=1)
    torch.testing.assert_close(latents, mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokenizer.decode(latents).image, ldm_decode(state, latents), atol=1e-8, rtol=1e-8)


def test_a_transformer_computes_what_the_released_names_say(
    file: Path, tokenizer_file: Path, state: dict[str, Tensor]
) -> None:
    pipeline = polytoken.from_pretrained("lightningdit/xl_64ep", file=file, tokenizer_file=tokenizer_file)
    assert pipeline.network.spec.mean == tuple(range(32))
    assert pipeline.network.spec.deviation == tuple(range(1, 33))
    random = torch.Generator().manual_seed(0)
    states, times, labels = (
        torch.randn(2, 32, 16, 16, generator=random),
        torch.tensor([0.25, 0.9]),
        torch.tensor([3, 1000]),
    )
    expected = dit_velocity(
        {name: tensor.double() for name, tensor in state.items()}, states.double(), times.double(), labels
    )
    torch.testing.assert_close(
        pipeline.network.velocity(states, times, labels)[0].double(), expected, atol=1e-4, rtol=1e-4
    )

    images = pipeline.images(torch.tensor([3]), FlowSampler(guidance=2.0, steps=2, guided_channels=3), 0, 0)
    assert images.shape == (1, 256, 256, 3)
    assert images.float().std() > 1


def test_statistics_are_read_beside_the_file(file: Path, tokenizer_file: Path) -> None:
    (file.parent / "latents_stats.pt").unlink()
    with pytest.raises(
        MissingFileError, match=r"latents_stats\.pt: put https://huggingface\.co/hustvl/vavae.* beside dit\.pt"
    ):
        polytoken.from_pretrained("lightningdit/xl_64ep", file=file, tokenizer_file=tokenizer_file)


@pytest.mark.parametrize("table", ["pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin"])
def test_other_positions_are_rejected(table: str, file: Path, tokenizer_file: Path, state: dict[str, Tensor]) -> None:
    changed = state[table].clone()
    changed[..., 37, 0] += 0.001
    torch.save({"ema": {**state, table: changed}}, file)
    with pytest.raises(UserError, match=f"positions {table} in the file are not those of a 16 × 16 grid"):
        polytoken.from_pretrained("lightningdit/xl_64ep", file=file, tokenizer_file=tokenizer_file)
