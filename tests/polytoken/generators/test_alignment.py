"""Representation alignment: its value, its gradient, its offset, and what does not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from polytoken.generators import (
    AutoregressiveGenerator,
    DiffusionTransformer,
    DiffusionTrunkConfig,
    LinearHead,
    RepresentationAlignment,
    TrunkConfig,
)
from polytoken.generators.alignment import negative_cosine
from polytoken.specs import LatentSpec, Tokens, TokenSpec
from polytoken.teachers import SmallVisionTransformer, Teacher
from polytoken.transformer import SIZES
from tests.support.generators import build_generator, random_codes
from tests.support.host_sync import host_syncs

SPEC = TokenSpec((11,), ((2, 2),))
TRUNK = TrunkConfig(dim=16, depth=4, num_heads=2, ffn_multiple=16)


def stand_in(folder: Path, patches: int = 2) -> Teacher:
    """A teacher with a grid of `patches` × `patches`, and random weights."""
    torch.manual_seed(0)
    path = folder / f"stand_in_{patches}.safetensors"
    SmallVisionTransformer(image_size=8 * patches, width=12, depth=1, num_heads=2).save(path)
    return Teacher("stand_in", str(path))


def generator_of(trunk: TrunkConfig = TRUNK, spec: TokenSpec = SPEC) -> AutoregressiveGenerator:
    torch.manual_seed(1)
    return build_generator(spec, 5, trunk, LinearHead()).eval()


def diffusion_of(patch_size: int = 2) -> DiffusionTransformer:
    """On latents of 3 channels and 4 × 4; random weights, since fresh ones ignore the condition."""
    torch.manual_seed(1)
    generator = DiffusionTransformer(DiffusionTrunkConfig(dim=16, depth=4, num_heads=2, patch_size=patch_size))
    generator.connect(LatentSpec(3, (4, 4), (0.0,) * 3, (1.0,) * 3), 5)
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return generator.eval()


def connected(generator: AutoregressiveGenerator, teacher: Teacher, **changes) -> RepresentationAlignment:
    alignment = RepresentationAlignment(teacher, **{"weight": 2.0, "width": 24, **changes})
    alignment.connect(generator)
    return alignment


def images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 20, 20, generator=torch.Generator().manual_seed(2)) * 2 - 1


def hidden_of(generator: AutoregressiveGenerator, tap: int, batch: int = 3) -> torch.Tensor:
    codes, labels = random_codes(generator, batch)
    return generator.loss(Tokens(codes=codes), labels, taps=(tap,)).hidden[tap]


@pytest.mark.parametrize("family", ["autoregressive", "diffusion"])
def test_the_gradient_reaches_the_blocks_below_the_tap_and_nothing_above(family: str, tmp_path: Path) -> None:
    below = ("class_embedding.", "trunk.blocks.0.", "trunk.blocks.1.")
    if family == "autoregressive":
        generator, below = generator_of(), (*below, "embeddings.")
        hidden = hidden_of(generator, 2)
    else:
        generator, below = diffusion_of(), (*below, "patch_embedding.", "time_embedding.")
        labels = torch.tensor([0, 1, 2])
        hidden = generator.loss(Tokens(latents=torch.randn(3, 3, 4, 4)), labels, taps=(2,)).hidden[2]
    alignment = connected(generator, stand_in(tmp_path), depth=2)
    alignment(hidden, images()).backward()
    reached = {name for name, value in generator.named_parameters() if value.grad is not None and value.grad.any()}
    assert reached == {name for name, _ in generator.named_parameters() if name.startswith(below)}
    assert all(value.grad is not None and value.grad.any() for value in alignment.parameters())


@pytest.mark.parametrize(("patches", "offset"), [(2, 0), (2, 1), (6, 0)])
def test_the_value_is_that_of_float64(patches: int, offset: int, tmp_path: Path) -> None:
    """A finer grid of the teacher is averaged over the patches of a position."""
    generator, teacher = generator_of(), stand_in(tmp_path, patches)
    alignment = connected(generator, teacher, offset=offset)
    assert alignment.tap == 1
    hidden = hidden_of(generator, 1).detach()
    (features,) = teacher.features(images())
    fine = features.patches.double().numpy()
    factor = patches // 2
    targets = fine.reshape(3, 2, factor, 2, factor, -1).mean((2, 4)).reshape(3, 4, -1)
    rows = hidden.double().numpy()
    for number, layer in enumerate(alignment.projector[::2]):
        rows = rows / (1 + np.exp(-rows)) if number else rows
        rows = rows @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
    pairs = [(rows[b, i + offset], targets[b, i]) for b in range(3) for i in range(4 - offset)]
    expected = -np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs])
    found = alignment(hidden, images())
    assert found.dtype == torch.float32 and found.shape == ()
    assert found.item() == pytest.approx(expected, abs=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = alignment(hidden, images())
    assert rounded.dtype == torch.float32 and rounded.item() == pytest.approx(expected, abs=2e-2)


def test_offset_1_compares_the_first_state_that_has_seen_a_code(tmp_path: Path) -> None:
    patches = torch.eye(4).unsqueeze(0)
    late = torch.cat([torch.zeros(1, 1, 4), patches[:, :-1]], dim=1)  # row i + 1 is patch i
    assert negative_cosine(late, patches, offset=1).item() == -1
    assert negative_cosine(late, patches).item() == negative_cosine(patches, patches, offset=1).item() == 0
    assert negative_cosine(patches, patches).item() == -1

    generator = generator_of()
    codes, labels = random_codes(generator, 1)
    other = codes.clone()
    other[:, :, 1] = (other[:, :, 1] + 1) % 11
    before, after = (generator.loss(Tokens(codes=c), labels, taps=(1,)).hidden[1][0] for c in (codes, other))
    assert [bool((a != b).any()) for a, b in zip(before, after, strict=True)] == [False, False, True, True]


@pytest.mark.parametrize(("blocks", "tap"), [(1, 1), (2, 1), (4, 1), (5, 2), (12, 4), (24, 8), (36, 12), (48, 16)])
def test_the_default_depth_is_a_third(blocks: int, tap: int, tmp_path: Path) -> None:
    trunk = TrunkConfig(dim=16, depth=blocks, num_heads=2, ffn_multiple=16)
    assert connected(generator_of(trunk), stand_in(tmp_path)).tap == tap


@pytest.mark.parametrize(("size", "parameters"), [("B", 7_344_896), ("L", 7_869_184), ("XL", 8_393_472)])
def test_published_sizes(size: str, parameters: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """DINOv2-B reads 224 px for 16 × 16 positions and 448 px for 32 × 32, unless its size is set."""
    monkeypatch.chdir(tmp_path)  # no weights/
    with torch.device("meta"):
        for grid, given, pixels in ((16, None, 224), (32, None, 448), (16, 448, 448)):
            generator = build_generator(TokenSpec((16,), ((grid, grid),)), 10, SIZES[size], LinearHead())
            alignment = RepresentationAlignment(Teacher("dinov2_base", image_size=given), 2.0)
            alignment.connect(generator)
            assert alignment.teacher.image_size == pixels
            assert sum(parameter.numel() for parameter in alignment.parameters()) == parameters


def test_the_teacher_is_no_part_of_the_weights(tmp_path: Path) -> None:
    alignment = connected(generator_of(), stand_in(tmp_path))
    alignment(hidden_of(generator_of(), 1), images())
    assert {name.split(".")[0] for name in alignment.state_dict()} == {"projector"}
    assert alignment.identity.startswith("stand_in ") and len(alignment.identity.split()[1]) == 64


def test_no_host_synchronisation(tmp_path: Path) -> None:
    generator = generator_of()
    alignment, hidden, batch = connected(generator, stand_in(tmp_path)), hidden_of(generator, 1), images()
    alignment(hidden, batch)  # the first call loads the teacher
    with host_syncs() as counts:
        alignment(hidden, batch).backward()
    assert not counts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": 0.0}, "alignment: weight is 0.0; .* above 0, and finite .set alignment to null for none"),
        ({"weight": float("inf")}, "alignment: weight is inf; it must be above 0, and finite"),
        ({"weight": -1.0}, "alignment: weight is -1.0"),
        ({"weight": float("nan")}, "alignment: weight is nan"),
        ({"width": 0}, "alignment: width is 0"),
        ({"offset": 2}, "alignment: offset is 2; it must be 0 or 1"),
        ({"depth": 5}, "alignment.depth is 5 and the generator has blocks 1 to 4"),
        ({"depth": 0}, "alignment.depth is 0 and the generator has blocks 1 to 4"),
    ],
)
def test_settings_out_of_range(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        connected(generator_of(), stand_in(tmp_path), **changes)


@pytest.mark.parametrize(("patches", "grid"), [(3, (2, 2)), (2, (4, 4)), (4, (2, 4)), (2, (2, 1))])
def test_a_teacher_whose_grid_cannot_match(patches: int, grid: tuple[int, int], tmp_path: Path) -> None:
    generator = generator_of(spec=TokenSpec((11,), (grid,)))
    message = f"grid of {patches} × {patches} patches and the generator one of {grid[0]} × {grid[1]} positions"
    with pytest.raises(ValueError, match=message):
        connected(generator, stand_in(tmp_path, patches))


def test_offset_1_needs_an_autoregressive_generator(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="offset is 1 and DiffusionTransformer sees all positions at once: set it to 0"
    ):
        connected(diffusion_of(), stand_in(tmp_path), offset=1)


def test_a_missing_teacher_is_noticed_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone.safetensors"):
        connected(generator_of(), Teacher("stand_in", str(tmp_path / "gone.safetensors")))
