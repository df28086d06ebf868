"""Tokenizer → tokens → diffusion transformer → samples → sweep → report, by commands, at a size of seconds."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from artifacts.token_store import TokenStore
from commands import evaluate, sweep, tokens_check
from commands.report import __main__ as report
from polytoken.fingerprint import fingerprint
from polytoken.loading import load_generator, load_tokenizer
from tests.end_to_end.test_cli import assert_equal
from tests.end_to_end.test_curriculum import RUNS, predict
from tests.support.commands import exit_code, forked
from tests.support.generator_recipes import tiny, write_digit_codes
from tests.support.runs import trained_tokenizer

FEW = ("--data.num_images", "20", "--data.batch_size", "10", "--data.part_size", "10")
INTERRUPTED = """
trainer:
  callbacks:
    - {{class_path: callbacks.LastCheckpoint, init_args: {{every_n_train_steps: 2}}}}
    - {{class_path: callbacks.RandomState}}
    - {{class_path: callbacks.EMA, init_args: {{modules: [generator]}}}}
    - {{class_path: tests.support.interrupt.KillAfter, init_args: {{step: {kill_after}}}}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ifsq", "ae"])
def test_from_images_to_images(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A tokenizer with codes and one without; the recipe of the transformer and its commands are the same."""
    trained_tokenizer(tmp_path, recipe)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    tokens, run, samples = RUNS / f"tokens/{recipe}", RUNS / f"dit/{recipe}", RUNS / f"samples/{recipe}_dit"
    tokenizer_run = RUNS / f"tokenizer/{recipe}"
    assert predict("tokens", "--model.tokenizer_run", str(tokenizer_run), "--run.stage", f"tokens/{recipe}") == 0
    tokenizer = load_tokenizer(tokenizer_run)
    for split in ("train", "validation"):
        store = TokenStore.open(tokens / split, verify=True)
        assert store.tokenizer_fingerprint == fingerprint(tokenizer) and store.spec == tokenizer.spec
        assert store.latents is not None and (store.latents.channels, *store.latents.grid) == tokenizer.latent_shape
    capsys.readouterr()
    tokens_check.main([str(tokens), "--images", "4"])
    assert f"{'codes' if recipe == 'ifsq' else 'latents'} equal 100.0%" in capsys.readouterr().out

    assert exit_code("fit", *tiny("dit", tokens), "--run.stage", f"dit/{recipe}") == 0
    measured = json.loads((run / "metrics.json").read_text())["validate"]["metrics"]
    assert 0 < measured["val/loss"] < 10 and not any("bits" in name for name in measured)
    assert load_generator(run).spec == TokenStore.open(tokens / "train").latents

    place = ("--model.generator_run", str(run), "--run.stage", f"samples/{recipe}_dit")
    steps = ("--model.sampler.steps", "3", "--model.sampler.method", "heun")
    assert predict("sample", *place, *steps, *FEW) == 0
    settings = json.loads((samples / "samples.json").read_text())["settings"]["sampler"]
    assert (settings["guidance"], settings["steps"], settings["method"]) == (2.0, 3, "heun")
    with np.load(samples / "samples.npz", allow_pickle=False) as drawn:
        assert drawn["arr_0"].shape == (20, 32, 32, 3) and drawn["arr_0"].dtype == np.uint8
    capsys.readouterr()
    assert predict("sample", *place, "--model.sampler.temperature", "0.5", *FEW) == 2
    assert "error: sampler.temperature is no rule of FlowSampler" in capsys.readouterr().err
    snapped = predict("sample", *place[:2], "--run.stage", "snapped", "--model.sampler.snap", "true", *steps, *FEW)
    assert snapped == (0 if recipe == "ifsq" else 2)
    sweep.main(["--run", str(run), "--guidance", "1", "3", "--steps", "2", "--num-images", "20", "--batch-size", "10"])
    assert [entry["guidance"] for entry in json.loads((run / "sweep.json").read_text())["scales"]] == [1, 3]
    evaluate.main(["--samples", str(samples / "samples.npz"), "--preset", "digits"])
    report.main(["--preset", "digits"])
    said = (RUNS / "report.md").read_text()
    assert f"generator: dit/{recipe}, step 2" in said and "recognised as their label" in said and "steps 3" in said


@pytest.mark.slow
def test_a_killed_run_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times, noise and dropped labels come from random states that checkpoints keep."""
    monkeypatch.chdir(tmp_path)
    store = write_digit_codes(tmp_path / "tokens", None, latent_shape=(4, 4, 4))
    sizes = ("--trainer.max_steps", "6", "--trainer.val_check_interval", "3", "--trainer.accelerator", "cpu")

    def arguments(root: str, kill_after: int) -> list[str]:
        overlay = tmp_path / "overlay.yaml"
        overlay.write_text(INTERRUPTED.format(kill_after=kill_after))
        return ["fit", *tiny("dit", store), *sizes, "--config", str(overlay), "--run.root", root]

    def state(root: str) -> dict:
        (run,) = (tmp_path / root / "digits/dit").iterdir()
        return torch.load(run / "checkpoints/last.ckpt", weights_only=True)

    assert exit_code(*arguments("whole", kill_after=-1)) == 0
    assert forked(*arguments("killed", kill_after=5), cwd=tmp_path).returncode == -signal.SIGKILL
    assert state("killed")["global_step"] == 4
    assert forked(*arguments("killed", kill_after=-1), cwd=tmp_path).returncode == 0
    assert_equal(state("killed"), state("whole"))
    assert_equal(state("killed")["callbacks"], state("whole")["callbacks"], "callbacks")
