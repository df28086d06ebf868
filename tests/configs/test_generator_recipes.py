"""Recipes of generators: built at full size on the meta device, and trained for two steps at test size."""

from pathlib import Path

import pytest
import torch

from callbacks import EMA
from datamodules import OnlineTokenDataModule
from polytoken.generators import SIZES
from polytoken.specs import TokenSpec
from tests.support.commands import exit_code
from tests.support.generator_recipes import built, tiny, write_digit_codes
from tests.support.online import write_teacher
from tests.support.recipes import CONFIGS, PRESETS
from tests.support.slow import slow_but

GENERATORS = sorted(
    path.stem for path in CONFIGS.glob("*.yaml") if "lightning_modules.GeneratorModule" in path.read_text()
)
ALIGNED = [name for name in GENERATORS if "alignment:" in (CONFIGS / f"{name}.yaml").read_text()]
ONLINE = [
    (path.stem, preset)
    for preset in PRESETS
    for path in CONFIGS.glob(f"presets/{preset}/*.yaml")
    if "OnlineTokenData" in path.read_text()
]
SINGLE = (
    "llamagen",
    "llamagen_ideal",
    "llamagen_ifsq",
    "llamagen_repa",
    "next_scale",
)  # read stores of one code per position
ONE_CODE = (*SINGLE, "stage1")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("recipe", "sub_codes", "parameters"),
    [
        ("llamagen", 1, 342_910_976),
        ("llamagen_ifsq", 1, 342_910_976),
        ("llamagen_repa", 1, 342_910_976),
        ("llamagen_grouped", 2, 402_159_616),
        ("stage1", 2, 342_910_976),
        ("far_base", 2, 417_104_896),
        ("far_base", 3, 451_707_904),
        ("far_large", 2, 901_195_520),
        ("far_large", 3, 944_776_960),
        ("stage2", 3, 451_707_904),
    ],
)
def test_published_sizes(
    recipe: str, sub_codes: int, parameters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TokenSpec((16384,) * sub_codes, ((16, 16),))
    store = write_digit_codes(tmp_path / "codes", spec, num_classes=1000, image_size=256)
    command, generator = built(recipe, "imagenet", store, monkeypatch)
    assert count(generator) == parameters
    assert next(generator.parameters()).device.type == "meta"
    assert command.datamodule.batch_size * 8 == 256
    summed = sub_codes if recipe == "llamagen_grouped" else 1  # iFSQ's released loss, a mean here
    assert command.trainer.gradient_clip_val == 1.0 / summed and str(command.trainer.precision) == "bf16-mixed"
    optimizer = command.model.optimizer_config
    assert optimizer.betas == (0.9, 0.95) and optimizer.weight_decay == 0.05 and optimizer.schedule == "constant"
    assert (generator.noise is not None) == (recipe == "stage2")


@pytest.mark.parametrize(
    ("size", "name", "parameters", "epochs"),
    [
        (None, "B", 110_888_448, 300),
        ("l", "L", 342_910_976, 300),
        ("xxl", "XXL", 1_410_972_672, 200),
        ("3b", "3B", 3_096_659_200, 200),
    ],
)
def test_sizes_of_ideal(
    size: str | None, name: str, parameters: int, epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ideal Tables 5 and 9, the class token counted with its null class."""
    store = write_digit_codes(tmp_path / "codes", TokenSpec((16384,), ((24, 24),)), num_classes=1000, image_size=384)
    overlays = [CONFIGS / f"sizes/{size}.yaml"] if size else []
    command, generator = built("llamagen_ideal", "imagenet", store, monkeypatch, *overlays)
    assert count(generator) == parameters and generator.config == SIZES[name]
    assert generator.spec.num_positions == 576 and command.trainer.max_steps == epochs * 5004
    config = generator.config
    assert config.class_dropout == config.resid_dropout == config.ffn_dropout == config.token_dropout == 0.1
    optimizer = command.model.optimizer_config
    assert (optimizer.learning_rate, optimizer.betas, optimizer.weight_decay) == (1e-4, (0.9, 0.95), 0.05)
    assert (optimizer.schedule, optimizer.decay, command.trainer.gradient_clip_val) == ("constant", "matrices", 1.0)
    assert str(command.trainer.precision) == "bf16-mixed"
    assert any(isinstance(callback, EMA) and callback.decay == 0.9999 for callback in command.trainer.callbacks)


def test_published_size_of_the_diffusion_transformer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """L/2 on 32 × 32 latents, without the 256 fixed positions of 1,024 channels that the released code stores."""
    spec = TokenSpec((17**4,), ((32, 32),))
    store = write_digit_codes(tmp_path / "latents", spec, num_classes=1000)
    command, generator = built("dit", "imagenet", store, monkeypatch)
    assert count(generator) == 458_123_248 - 256 * 1024 and generator.hidden_grid == (16, 16)
    assert command.datamodule.batch_size * 8 == 1024
    assert command.trainer.gradient_clip_val is None and str(command.trainer.precision) == "bf16-mixed"
    optimizer = command.model.optimizer_config
    assert optimizer.betas == (0.9, 0.95) and optimizer.weight_decay == 0 and optimizer.schedule == "constant"


@pytest.mark.parametrize("preset", slow_but(("digits",), [preset for preset in PRESETS if preset != "imagenet"]))
@pytest.mark.parametrize("recipe", GENERATORS)
def test_a_preset_changes_only_sizes(recipe: str, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, grid, size = {"digits": (32, (4, 4), 64), "photos": (64, (8, 8), 1024)}[preset]
    scales = ((1, 1), grid) if recipe == "next_scale" else (grid,)
    spec = TokenSpec((size,) * (1 if recipe in SINGLE else 2), scales)
    store = write_digit_codes(tmp_path / "codes", spec, image_size=pixels)
    command, generator = built(recipe, preset, store, monkeypatch)
    assert count(generator) < 10_000_000
    if generator.models == "latents":
        assert generator.hidden_grid == grid
    else:
        assert generator.spec.num_sub_codes == (1 if recipe in ONE_CODE else 2)
    assert generator.config.class_dropout == 0.1, "guidance needs a null class"
    optimizer = command.model.optimizer_config
    assert optimizer.schedule == "cosine" and optimizer.weight_decay == (0 if generator.models == "latents" else 0.05)
    assert {"EMA", "LastCheckpoint"} <= {type(callback).__name__ for callback in command.trainer.callbacks}


@pytest.mark.parametrize(("recipe", "preset"), ONLINE)
def test_an_overlay_that_reads_images(
    recipe: str, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data of the preset, and a teacher whose grid is that of the generator; DiT-L/2 has four latents a patch."""
    pixels, grid = {"digits": (32, 4), "photos": (64, 8), "imagenet": (256, 16)}[preset]
    side = 2 * grid if (recipe, preset) == ("dit_repa", "imagenet") else grid
    spec = TokenSpec((64,), ((side, side),))
    store = write_digit_codes(tmp_path / "codes", spec, num_classes=1000, image_size=pixels)
    write_teacher(tmp_path / f"runs/{preset}/teacher/high.safetensors", pixels)
    command, generator = built(recipe, preset, store, monkeypatch)
    assert isinstance(command.datamodule, OnlineTokenDataModule) and command.datamodule.image_size == pixels
    assert command.datamodule.training_transform.horizontal_flip == (
        preset != "digits" and (recipe, preset) != ("dit_repa", "imagenet")
    ), "iFSQ mirrors images for AR alone"
    assert (command.model.alignment is not None) == (recipe in ALIGNED)
    if recipe in ALIGNED:
        command.model.alignment.connect(generator)
        assert command.model.alignment.teacher.grid == (grid, grid)
        assert command.model.alignment.tap == max(1, round(generator.depth / 3))


@pytest.mark.parametrize("recipe", [name for name in GENERATORS if name not in (*ALIGNED, "next_scale")])
def test_two_steps(recipe: str, tmp_path: Path) -> None:
    """Others read images or a tokenizer: tests/lightning_modules/test_alignment.py, end_to_end/test_next_scale.py."""
    spec = None if recipe == "dit" else TokenSpec((8,) if recipe in SINGLE else (8, 8, 8), ((2, 3),))
    assert exit_code("fit", *tiny(recipe, write_digit_codes(tmp_path / "codes", spec))) == 0
    (run,) = (tmp_path / "runs/digits" / recipe).iterdir()
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    assert {"config.yaml", "metrics.json", "lineage.json"} <= {path.name for path in run.iterdir()}
