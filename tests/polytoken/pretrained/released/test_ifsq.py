"""iFSQ's tokenizer, LlamaGen-REPA and DiT: what the released names mean, and loading by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import polytoken
from polytoken.errors import MissingFileError, UserError
from polytoken.pretrained.released import RELEASES
from polytoken.pretrained.released.convert import Source, generator_checkpoint
from polytoken.pretrained.released.layout import shapes_of
from polytoken.sampling import CategoricalSampler, FlowSampler
from polytoken.specs import Tokens
from tests.support.released import small_state
from tests.support.released_networks import dit_positions, dit_velocity, gpt_losses, ldm_decode, ldm_encode

WIDTHS = {128: 8, 256: 16, 512: 32}
LLAMAGEN = {1024: 64, 3072: 192, 2816: 256, 2048: 128}
DIT = {1024: 64, 64: 16, 3072: 192, 5460: 340, 2730: 170, 6144: 384, 2048: 128}


def write_tokenizer(folder: Path, keys: str = "ifsq_f16") -> tuple[dict[str, Tensor], Path]:
    state = small_state(keys, WIDTHS, {})
    file = folder / "tokenizer.pt"
    average = {f"module.{name}": tensor for name, tensor in state.items()}
    last = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"ema_state_dict": average, "state_dict": {"gen_model": last, "dics_model": {}}}, file)
    return {name: tensor.double() for name, tensor in state.items()}, file


def write_transformer(folder: Path, name: str) -> tuple[dict[str, Tensor], Path]:
    state = small_state(name, DIT, {"blocks.": 2})
    state |= dit_positions(state)
    torch.save({"ema": state, "model": {}, "config": {"latent_multiplier": 1.092421}}, folder / "dit.pt")
    return state, folder / "dit.pt"


def test_a_tokenizer_computes_what_the_released_names_say(tmp_path: Path) -> None:
    """Encoder, 17 levels, codes whose first channel counts least, and decoder."""
    state, file = write_tokenizer(tmp_path)
    images = 2 * torch.rand(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    digits = (8 * torch.tanh(0.8 * ldm_encode(state, images))).round() + 8
    places = 17 ** torch.arange(4)
    codes = (digits.long().flatten(2) * places[:, None]).sum(1, keepdim=True)

    tokenizer = polytoken.from_pretrained("ifsq/f16_d4_4bit", file=file).double()
    encoding = tokenizer.encode(images)
    assert torch.equal(encoding.codes, codes)
    assert len(codes.unique()) > 8
    torch.testing.assert_close(encoding.quantized.double(), digits / 8 - 1, atol=1e-6, rtol=0)
    decoded = tokenizer.decode(digits / 8 - 1).image
    torch.testing.assert_close(decoded, ldm_decode(state, digits / 8 - 1), atol=1e-8, rtol=1e-8)

    grouped = polytoken.from_pretrained("ifsq/f16_d4_4bit_grouped", file=file).double()
    pairs = digits.long().flatten(2).unflatten(1, (2, 2))
    assert torch.equal(grouped.encode(images).codes, pairs[:, :, 0] + 17 * pairs[:, :, 1])


@pytest.mark.parametrize(
    ("name", "keys"), [("llamagen_l", "ifsq_llamagen"), ("llamagen_l_grouped", "ifsq_llamagen_grouped")]
)
def test_llamagen_computes_what_the_released_names_say(name: str, keys: str, tmp_path: Path) -> None:
    file, state = tmp_path / "llamagen.pt", small_state(keys, LLAMAGEN, {"layers.": 1, "factorized_blocks.": 1})
    torch.save({"ema": state}, file)
    pipeline = polytoken.from_pretrained(f"ifsq/{name}", file=file, tokenizer_file=write_tokenizer(tmp_path)[1])
    images = pipeline.images(torch.tensor([3]), CategoricalSampler(), 0, 0)
    assert images.shape == (1, 256, 256, 3)
    assert images.float().std() > 1

    sizes = torch.tensor(pipeline.network.spec.codebook_sizes).view(1, -1, 1)
    codes = torch.randint(2**31, (1, sizes.numel(), 256), generator=torch.Generator().manual_seed(0)) % sizes
    losses = pipeline.network.loss(Tokens(codes=codes), torch.tensor([3])).parts
    expected = gpt_losses({key: tensor.double() for key, tensor in state.items()}, codes, torch.tensor([3]))
    torch.testing.assert_close([*losses.values()], [loss.float() for loss in expected], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "keys", "grid"), [("dit_l1", "ifsq_f16", 16), ("dit_l2", "ifsq_f8", 32)])
def test_a_transformer_computes_what_the_released_names_say(name: str, keys: str, grid: int, tmp_path: Path) -> None:
    tokenizer_file = write_tokenizer(tmp_path, keys)[1]
    state, file = write_transformer(tmp_path, f"ifsq_{name}")
    pipeline = polytoken.from_pretrained(f"ifsq/{name}", file=file, tokenizer_file=tokenizer_file)
    assert pipeline.network.spec.mean == (0,) * 4
    assert pipeline.network.spec.deviation == (1 / 1.092421,) * 4
    states = torch.randn(2, 4, grid, grid, generator=torch.Generator().manual_seed(0))
    times, labels = torch.tensor([0.25, 0.9]), torch.tensor([3, 1000])
    precise = {key: tensor.double() for key, tensor in state.items()}
    expected = dit_velocity(precise, states.double(), times.double(), labels)
    velocity = pipeline.network.velocity(states, times, labels)[0]
    torch.testing.assert_close(velocity.double(), expected, atol=1e-4, rtol=1e-4)

    layout = RELEASES[f"ifsq/{name}"].describe(state, 256).layout
    kept = {key: tensor for key, tensor in state.items() if key not in layout.left_out(state)}
    back = layout.to_released(pipeline.network.state_dict(), shapes_of(kept))
    assert back.keys() == kept.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in kept.items())

    images = pipeline.images(torch.tensor([3]), FlowSampler(steps=2), 0, 0)
    assert images.shape == (1, 256, 256, 3)
    assert images.float().std() > 1


def test_a_transformer_needs_the_tokenizer_of_its_latents(tmp_path: Path) -> None:
    tokenizer_file, file = write_tokenizer(tmp_path, "ifsq_f8")[1], write_transformer(tmp_path, "ifsq_dit_l1")[1]
    with pytest.raises(UserError, match="tokenizer.pt is no checkpoint like ifsq/f16_d4_4bit: a position covers 8 pix"):
        polytoken.from_pretrained("ifsq/dit_l1", file=file, tokenizer_file=tokenizer_file)
    tokenizer = polytoken.from_pretrained("ifsq/f8_d4_4bit", file=tokenizer_file)
    message = "dit.pt models latents of 4 × 16 × 16, and runs/f8 has 4 × 32 × 32: name the file of its own"
    with pytest.raises(UserError, match=message):
        generator_checkpoint(Source.find("ifsq/dit_l1", file), tokenizer, "runs/f8")


def test_there_is_nothing_to_download() -> None:
    with pytest.raises(MissingFileError, match="the authors released no weights of ifsq/f16_d4_4bit"):
        polytoken.from_pretrained("ifsq/f16_d4_4bit")
