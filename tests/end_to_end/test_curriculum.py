"""Tokenizer → tokens → stage 1 → stage 2 → samples with the shipped recipes, at a size of seconds."""

import json
from pathlib import Path

import numpy as np
import pytest

from artifacts.token_store import TokenStore
from polytoken.fingerprint import fingerprint
from polytoken.loading import load_generator, load_tokenizer
from tests.support.commands import exit_code
from tests.support.generator_recipes import tiny
from tests.support.recipes import CONFIGS
from tests.support.runs import trained_tokenizer

RUNS = Path("runs/digits")
QUIET = ("--trainer.enable_progress_bar", "false")


def predict(stage: str, *overrides: str) -> int:
    files = (CONFIGS / f"{stage}.yaml", CONFIGS / f"presets/digits/{stage}.yaml")
    return exit_code("predict", *(part for file in files for part in ("--config", str(file))), *QUIET, *overrides)


def test_from_images_to_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage finds the previous one at the recipes' default place, and checks the codes that it reads."""
    trained_tokenizer(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    tokens = RUNS / "tokens/fq_dual"
    assert predict("tokens") == 0
    assert exit_code("fit", *tiny("stage1", tokens)) == 0
    stage1 = RUNS / "stage1/fq_dual"
    assert exit_code("fit", *tiny("stage2", tokens), "--model.init_from", str(stage1)) == 0
    few = ("--data.num_images", "20", "--data.batch_size", "10", "--data.part_size", "10")
    assert predict("sample", "--model.generator_run", str(RUNS / "stage2/fq_dual"), *few) == 0

    expected = fingerprint(load_tokenizer(RUNS / "tokenizer/fq_dual"))
    assert TokenStore.open(tokens / "train", verify=True).tokenizer_fingerprint == expected
    for stage in ("stage1", "stage2"):
        lineage = json.loads((RUNS / stage / "fq_dual/lineage.json").read_text())
        assert lineage["tokenizer_fingerprint"] == expected
        metrics = json.loads((RUNS / stage / "fq_dual/metrics.json").read_text())["validate"]["metrics"]
        assert metrics["val/nll"] == pytest.approx(np.log(64), abs=0.1), "hardly trained"
    assert lineage["init_from"]["sub_code"] == 0
    assert load_generator(RUNS / "stage2/fq_dual").spec.codebook_sizes == (64, 64)
    with np.load(RUNS / "samples/fq_dual/samples.npz", allow_pickle=False) as samples:
        assert samples["arr_0"].shape == (20, 32, 32, 3) and samples["arr_0"].dtype == np.uint8
        assert sorted(samples["arr_1"].tolist()) == sorted([*range(10)] * 2)
