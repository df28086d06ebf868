"""Conditional samples by the user's command: references and classes in, a grid and an npz out."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cli
from datamodules import ReferenceDataModule
from polytoken.pipeline import GenerationPipeline
from polytoken.sampling import CategoricalSampler, Forcing
from tests.support.commands import exit_code
from tests.support.generated import write_next_scale_runs, write_runs
from tests.support.recipes import CONFIGS

SAMPLES = Path("runs/digits/samples/condition")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])


def predict(run: Path, *more: str, preset: str = "digits") -> int:
    files = ("--config", str(CONFIGS / "condition.yaml"), "--config", str(CONFIGS / f"presets/{preset}/condition.yaml"))
    quiet = ("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.devices", "1")
    return exit_code("predict", *files, "--model.generator_run", str(run), *quiet, *more)


def write_references(folder: Path, count: int = 2) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.mark.slow
def test_a_folder_of_references_becomes_a_grid(capsys: pytest.CaptureFixture) -> None:
    run = write_next_scale_runs(Path("runs/digits"))
    folder = ("--data.folder", str(write_references(Path("references"))))
    few = ("--data.classes", "[7, 1, 4]", "--data.batch_size", "4")
    assert predict(run, *folder, *few) == 0
    with np.load(SAMPLES / "samples.npz", allow_pickle=False) as drawn:
        images, labels = drawn["arr_0"], drawn["arr_1"]
    assert images.shape == (6, 32, 32, 3) and labels.tolist() == [7, 1, 4, 7, 1, 4]
    settings = json.loads((SAMPLES / "samples.json").read_text())["settings"]
    assert settings["forcing"] == {"sub_codes": [0], "guidance": 2.5}
    assert settings["references"] == ["references/0.png", "references/1.png"]

    pipeline = GenerationPipeline.from_run(run)
    references = ReferenceDataModule(32, [7, 1, 4], "references").references
    rules = CategoricalSampler(guidance=2.5, guidance_schedule="linear")
    again = pipeline.sample(
        labels, sampler=rules, references=references.repeat_interleave(3, 0), forcing=Forcing(guidance=2.5)
    )
    assert abs(np.stack([np.asarray(image) for image in again]).astype(int) - images).max() <= 1
    grid = np.asarray(Image.open(SAMPLES / "grid.png"))
    assert (grid[-66:-2:2, 2:66:2] == (references[1].permute(1, 2, 0) * 127.5 + 128).byte().numpy()).all()
    alone = pipeline.forced_alone(pipeline.force(references, Forcing())).numpy()
    width = (grid.shape[1] - 2) // 5
    assert abs(grid[-66:-2:2, 2 + width : 66 + width : 2].astype(int) - alone[1]).max() <= 1
    assert (grid[-66:-2:2, 2 + 4 * width : 66 + 4 * width : 2] == images[5]).all()

    assert predict(run, *folder, *few) == 0  # nothing left to do
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save("references/1.png")
    assert predict(run, *folder, *few) == 2
    assert "samples of other settings: references_sha256 was" in capsys.readouterr().err


@pytest.mark.parametrize(("preset", "side"), [("digits", 32), ("photos", 64)])
def test_presets_take_validation_images(preset: str, side: int) -> None:
    run = write_next_scale_runs(Path("runs/any"), image_size=side)
    few = ("--data.indices", "[3, 1]", "--data.classes", "[0, 3]")  # the run knows ten classes
    assert predict(run, *few, preset=preset) == 0
    with np.load(Path(f"runs/{preset}/samples/condition/samples.npz"), allow_pickle=False) as drawn:
        assert drawn["arr_0"].shape == (4, side, side, 3)


@pytest.mark.parametrize(("preset", "images"), [("digits", 50), ("photos", 42), ("imagenet", 54)])
def test_the_settings_of_every_preset_are_valid(preset: str, images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def stop(self: cli.CommandLine) -> None:
        built.append(self)
        raise SystemExit(0)

    monkeypatch.setattr(cli.CommandLine, "before_predict", stop, raising=False)
    assert predict(write_next_scale_runs(Path("runs/any")), preset=preset) == 0
    assert built[0].datamodule.num_images == images and built[0].model.forcing == Forcing((0,), 2.5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--data.indices", "[]"), "there are no reference images: set data.folder"),
        (("--data.indices", "[400]"), "names the validation image 400, and there are 355"),
        (("--data.folder", "nowhere"), "nowhere is not a folder"),
        (("--data.folder", "broken"), "the reference broken/0.png cannot be read"),
        (("--data.image_size", "16"), "are 3 × 16 × 16 and the tokenizer reads 3 × 32 × 32"),
        (("--data.classes", "[]"), "data.classes is an empty list"),
        (("--data.classes", "[0, 10]"), "names class 10, and the generator knows the 10 classes"),
        (("--model.forcing.sub_codes", "[3]"), "names 3, and the generator writes the sub-codes [0, 1]"),
        (("--model.forcing.sub_codes", "[0, 1]"), "nothing would be left to sample"),
        (("--model.forcing", "null"), "forced sub-codes are those of reference images: set both"),
        (
            ("--data", "datamodules.LabelDataModule", "--data.num_images", "4"),
            "forcing is Forcing(sub_codes=(0,), guidance=2.5) and data is LabelDataModule",
        ),
    ],
)
def test_bad_input_is_one_sentence(arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture) -> None:
    run = write_next_scale_runs(Path("runs/digits"))
    Path("broken").mkdir()
    Path("broken/0.png").write_bytes(b"no image")
    assert predict(run, *arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error
    assert not SAMPLES.exists()


def test_another_generator_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert predict(write_runs(Path("runs/digits"), image_size=32)) == 2
    assert "AutoregressiveGenerator cannot be forced" in capsys.readouterr().err
