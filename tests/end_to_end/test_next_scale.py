"""VAR's tokenizer → tokens → next-scale generator → samples → sweep, by commands, at a size of seconds.

The ordinary autoregressive generator reads the same tokens.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from artifacts.token_store import TokenStore
from commands import compute, evaluate, sweep, tokens_check
from polytoken.loading import load_generator
from tests.end_to_end.test_curriculum import RUNS, predict
from tests.support.commands import exit_code
from tests.support.generator_recipes import tiny
from tests.support.runs import trained_tokenizer

FEW = ("--data.num_images", "20", "--data.batch_size", "10", "--data.part_size", "10")


@pytest.mark.slow
def test_from_images_to_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    tokenizer = trained_tokenizer(tmp_path, "var")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    tokens, run, samples = RUNS / "tokens/var", RUNS / "next_scale/var", RUNS / "samples/var_next_scale"
    place = ("--model.tokenizer_run", str(tokenizer.relative_to(tmp_path)), "--run.stage", "tokens/var")
    assert predict("tokens", *place) == 0
    spec = TokenStore.open(tokens / "train", verify=True).spec
    assert spec is not None and spec.scales == ((1, 1), (2, 2), (3, 3), (4, 4))
    capsys.readouterr()
    tokens_check.main([str(tokens), "--images", "4"])
    assert "codes equal 100.0%" in capsys.readouterr().out

    assert exit_code("fit", *tiny("next_scale", tokens), "--run.stage", "next_scale/var") == 0
    measured = json.loads((run / "metrics.json").read_text())["validate"]["metrics"]
    assert measured["val/nll"] == pytest.approx(np.log(64), abs=0.2)
    assert measured["val/bits_per_image"] == pytest.approx(30 * measured["val/nll"] / np.log(2), rel=1e-4)
    assert load_generator(run).spec == spec
    compute.main(["--run", str(run)])
    assert "next_scale/var" in capsys.readouterr().out

    place = ("--model.generator_run", str(run), "--run.stage", "samples/var_next_scale")
    assert predict("sample", *place, "--model.sampler.guidance_schedule", "linear", *FEW) == 0
    with np.load(samples / "samples.npz", allow_pickle=False) as drawn:
        assert drawn["arr_0"].shape == (20, 32, 32, 3) and drawn["arr_0"].dtype == np.uint8
    sweep.main(["--run", str(run), "--guidance", "1", "3", "--num-images", "20", "--batch-size", "10"])
    evaluate.main(["--samples", str(samples / "samples.npz"), "--preset", "digits"])
    assert "samples" in json.loads((samples / "metrics.json").read_text())["evaluate"]["metrics"]

    assert exit_code("fit", *tiny("llamagen", tokens), "--run.stage", "llamagen/var") == 0
    measured = json.loads((RUNS / "llamagen/var/metrics.json").read_text())["validate"]["metrics"]
    assert measured["val/nll"] == pytest.approx(np.log(64), abs=0.2)
    place = ("--model.generator_run", str(RUNS / "llamagen/var"), "--run.stage", "samples/var_llamagen")
    assert predict("sample", *place, *FEW) == 0
    with np.load(RUNS / "samples/var_llamagen/samples.npz", allow_pickle=False) as drawn:
        assert drawn["arr_0"].shape == (20, 32, 32, 3)
