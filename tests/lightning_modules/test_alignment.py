"""A generator aligned with a teacher: trained, resumed, sampled from, and refused where something is missing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_modules import GeneratorModule
from polytoken.generators.record import GeneratorRecord
from polytoken.pipeline import GenerationPipeline
from polytoken.sampling import CategoricalSampler
from tests.end_to_end.test_cli import assert_equal
from tests.support.commands import exit_code
from tests.support.generator_recipes import tiny, write_digit_codes
from tests.support.online import tiny_online, write_online_digits, write_teacher
from tests.support.slow import slow_but

RUN = Path("runs/digits/llamagen_repa/ifsq")
STEP = ("--trainer.max_steps", "1", "--trainer.val_check_interval", "1")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_online_digits(tmp_path)


def fit(store: Path, *overrides: str, run: Path = RUN, recipe: str = "llamagen_repa") -> dict[str, Any]:
    """The checkpoint of a run."""
    stage = str(run.relative_to("runs/digits"))
    assert exit_code("fit", *tiny_online(recipe, store), "--run.stage", stage, *overrides) == 0
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


def error_of(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """Error message of a fit."""
    capsys.readouterr()
    assert exit_code("fit", *arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error[error.index("error: ") :]


@pytest.mark.parametrize(("recipe", "weight"), [("llamagen_repa", 2.0), ("dit_repa", 0.5)])
def test_the_alignment_is_trained_and_measured(recipe: str, weight: float, store: Path) -> None:
    checkpoint = fit(store, "--trainer.log_every_n_steps", "1", recipe=recipe)
    fitted, validated = (json.loads((RUN / "metrics.json").read_text())[key]["metrics"] for key in ("fit", "validate"))
    parts = [value for name, value in fitted.items() if name.startswith(("train/nll/", "train/loss/"))]
    alignment = fitted["train/alignment"]
    assert fitted["train/loss"] == pytest.approx(sum(parts) + weight * alignment, rel=1e-5) and -1 <= alignment <= 1
    assert -1 <= validated["val/alignment"] <= 1
    state = checkpoint["state_dict"]
    projector = [name for name in state if name.startswith("alignment.")]
    assert len(projector) == 6 and not [name for name in state if "teacher" in name]
    moments = checkpoint["optimizer_states"][0]["state"]
    assert len(moments) == len(state), "all weights are trained"
    assert all(moments[number]["exp_avg"].any() for number in sorted(moments)[-6:]), "the projector's, which come last"
    teacher = GeneratorRecord.from_plain(checkpoint["generator"], "").teacher
    assert teacher is not None and teacher.startswith("stand_in ")


@pytest.mark.parametrize("recipe", slow_but(("dit_repa",), ("llamagen_repa", "dit_repa")))
def test_a_resumed_run_equals_an_uninterrupted_one(recipe: str, store: Path) -> None:
    whole = fit(store, run=RUN.with_name("whole"), recipe=recipe)
    fit(store, *STEP, recipe=recipe)
    resumed = fit(store, recipe=recipe)
    assert resumed["global_step"] == whole["global_step"] == 2
    assert_equal(resumed["callbacks"], whole["callbacks"], "callbacks")
    for key in ("state_dict", "optimizer_states", "random_state", "generator"):
        assert_equal(resumed[key], whole[key], key)


def test_samples_need_neither_projector_nor_teacher(store: Path) -> None:
    checkpoint = fit(store)
    (store.parent / "teacher.safetensors").unlink()
    pipeline = GenerationPipeline.from_run(RUN)
    assert not [name for name, _ in pipeline.named_parameters() if "projector" in name]
    images = pipeline.images(torch.tensor([3, 7]), CategoricalSampler(), seed=1)
    for name in [name for name in checkpoint["state_dict"] if name.startswith("alignment.")]:
        del checkpoint["state_dict"][name]
    torch.save(checkpoint, RUN / "checkpoints/last.ckpt")
    again = GenerationPipeline.from_run(RUN).images(torch.tensor([3, 7]), CategoricalSampler(), seed=1)
    assert images.shape == (2, 16, 16, 3) and torch.equal(images, again)


def test_another_teacher_is_refused(store: Path, capsys: pytest.CaptureFixture) -> None:
    fit(store, *STEP)
    torch.manual_seed(5)
    write_teacher(store.parent / "teacher.safetensors")
    error = error_of(capsys, *tiny_online("llamagen_repa", store))
    assert "was aligned with the teacher stand_in (digest" in error and "restore its weights" in error


def test_generator_weights_alone_are_handed_over(store: Path) -> None:
    first = fit(store)
    begin = ("--model.init_args.init_from", str(RUN), "--seed_everything", "7", *STEP)
    second = fit(store, *begin, run=RUN.with_name("second"))
    assert not [name for name in second["generator"]["lineage"]["init_from"]["carried"] if "projector" in name]
    name = "alignment.projector.0.weight"
    assert (first["state_dict"][name] - second["state_dict"][name]).abs().max() > 1e-2, "drawn again"


def test_the_alignment_does_not_change_the_initial_generator(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[dict[str, torch.Tensor]] = []

    def keep(self: GeneratorModule) -> None:
        states.append({name: value.clone() for name, value in self.generator.state_dict().items()})

    monkeypatch.setattr(GeneratorModule, "on_train_start", keep)
    fit(store, *STEP)
    fit(store, *STEP, "--model.init_args.alignment", "null", run=RUN.with_name("without"))
    assert_equal(*states, "generator")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("--model.init_args.alignment.depth", "3"), "alignment.depth is 3 and the generator has blocks 1 to 2"),
        (("--model.init_args.alignment.weight", "0"), "alignment: weight is 0.0; it must be above 0, and finite"),
        (("--model.init_args.alignment.teacher.weights", "gone.safetensors"), "gone.safetensors"),
        (("--model.init_args.alignment.teacher.weights", "wide.safetensors"), "a grid of 3 × 3 patches"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    overrides: tuple[str, ...], message: str, store: Path, capsys: pytest.CaptureFixture
) -> None:
    write_teacher(Path("wide.safetensors"), image_size=24)
    assert message in error_of(capsys, *tiny_online("llamagen_repa", store), *overrides)


def test_a_weight_without_teacher_is_one_sentence(store: Path, capsys: pytest.CaptureFixture) -> None:
    overlay = Path("overlay.yaml")
    overlay.write_text("model: {init_args: {alignment: {weight: 2.0}}}")
    arguments = [*tiny("llamagen", write_digit_codes(Path("stored"))), "--config", str(overlay)]
    error = error_of(capsys, *arguments, "--data.init_args.sub_codes", "[0]")
    assert "teacher" in error and "alignment" in error


def test_data_without_images_are_refused(store: Path, capsys: pytest.CaptureFixture) -> None:
    alignment = json.dumps({"teacher": {"name": "stand_in", "weights": "teacher.safetensors"}, "weight": 2.0})
    arguments = [*tiny("llamagen", write_digit_codes(Path("stored"))), "--data.init_args.sub_codes", "[0]"]
    error = error_of(capsys, *arguments, "--model.init_args.alignment", alignment)
    assert "data is TokenDataModule, which has none: set data.class_path to datamodules.OnlineTokenDataModule" in error


@pytest.mark.parametrize(("recipe", "time"), slow_but(("dit_repa",), [("llamagen_repa", None), ("dit_repa", 0.5)]))
def test_the_layers_of_a_run_are_analysed_at_each_validation(recipe: str, time: float | None, store: Path) -> None:
    teacher = {"name": "stand_in", "weights": str(store.parent / "teacher.safetensors")}
    analysis = {"class_path": "callbacks.LayerAnalysis", "init_args": {"teacher": teacher, "k": 2, "max_images": 999}}
    fit(store, *STEP, "--trainer.callbacks+", json.dumps(analysis), recipe=recipe)
    record = json.loads((RUN / "layers.json").read_text())
    metrics = json.loads((RUN / "metrics.json").read_text())["validate"]["metrics"]
    assert metrics["val/layers/sts/1"] == pytest.approx(record["sts"][0]) and record["sts"][1] == pytest.approx(1)
    assert record["aligned"] == 1 and record["time"] == time and record["positions"] == 4
    assert record["n"] == 8 and (RUN / "layers.png").exists()
