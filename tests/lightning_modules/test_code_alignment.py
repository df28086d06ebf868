"""A generator trained with the noise and the losses of reAR: measured, resumed, and sampled from without projectors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from polytoken.fingerprint import fingerprint
from polytoken.loading import load_tokenizer
from polytoken.pipeline import GenerationPipeline
from tests.end_to_end.test_cli import assert_equal
from tests.support.commands import exit_code
from tests.support.generated import write_runs
from tests.support.generator_recipes import tiny, write_digit_codes, write_scale_codes

RUN = Path("runs/digits/far_base/fq_dual")
NOISE = {"probability": 1.0, "decay_steps": 3, "sample_probability": "uniform", "nearest": 3}
REAR = (
    *("--model.generator.noise", json.dumps({"class_path": "polytoken.generators.SubTokenNoise", "init_args": NOISE})),
    *("--model.code_alignment.weight", "0.5", "--model.code_alignment.width", "16"),
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])


def write_store(place: Path) -> Path:
    run = write_runs(place / "runs/digits").parents[1] / "tokenizer/tiny"
    tokenizer = load_tokenizer(run)
    origin = {"tokenizer_run": str(run), "tokenizer_fingerprint": fingerprint(tokenizer), "image_size": 16}
    return write_digit_codes(place / "codes", tokenizer.spec, latent_shape=tokenizer.latent_shape, **origin)


def fit(store: Path, *overrides: str, run: Path = RUN) -> dict[str, Any]:
    """The checkpoint of a run."""
    stage = str(run.relative_to("runs/digits"))
    assert exit_code("fit", *tiny("far_base", store), *REAR, "--run.stage", stage, *overrides) == 0
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    store = write_store(tmp_path)
    whole = fit(store, run=RUN.with_name("whole"))
    fit(store, "--trainer.max_steps", "1", "--trainer.val_check_interval", "1")
    resumed = fit(store)
    for key in ("state_dict", "optimizer_states", "random_state", "generator"):
        assert_equal(resumed[key], whole[key], key)


def test_both_losses_are_trained_and_measured_and_sampling_has_no_projectors(tmp_path: Path) -> None:
    checkpoint = fit(write_store(tmp_path), "--trainer.log_every_n_steps", "1")
    record = json.loads((RUN / "metrics.json").read_text())
    fitted, validated = (record[key]["metrics"] for key in ("fit", "validate"))
    aligned = [fitted[f"train/code_alignment/{name}"] for name in ("read", "following")]
    nats = [fitted[f"train/nll/{i}"] for i in range(2)]
    assert fitted["train/loss"] == pytest.approx(sum(nats) / 2 + 0.5 * sum(aligned), rel=1e-5)
    assert 0 < fitted["train/noise_rate"] < 1
    assert -1 <= validated["val/code_alignment/read"] <= 1 and -1 <= validated["val/code_alignment/following"] <= 1

    state = checkpoint["state_dict"]
    moments = checkpoint["optimizer_states"][0]["state"]
    assert sum(name.startswith("code_alignment.projectors.") for name in state) == 12
    assert len(moments) == len(state) and all(moments[number]["exp_avg"].any() for number in sorted(moments)[-12:])
    names = [name for name, _ in GenerationPipeline.from_run(RUN).named_parameters()]
    assert names and not [name for name in names if "projector" in name]


def test_a_tokenizer_of_several_scales_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = tiny("far_base", write_scale_codes(tmp_path / "codes"))
    assert exit_code("fit", *arguments, "--model.code_alignment.width", "16") == 2
    assert "the tokenizer has codes of 3 scales, whose vectors are summed" in capsys.readouterr().err
