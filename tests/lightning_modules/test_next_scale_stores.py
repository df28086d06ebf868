"""A next-scale generator on a token store: of its own scales, of others, and of one."""

import json
from pathlib import Path

import pytest

from artifacts.token_store import TokenStore
from commands import layers
from polytoken.loading import Checkpoint
from polytoken.specs import TokenSpec
from tests.support.commands import exit_code
from tests.support.generated import configure
from tests.support.generator_recipes import tiny, write_digit_codes, write_scale_codes
from tests.support.online import write_teacher
from tests.support.recipes import CONFIGS


@pytest.mark.slow
def test_it_resumes_on_its_own_scales_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    write_scale_codes(tmp_path / "codes")
    one = ("--trainer.max_steps", "1")
    assert exit_code("fit", *tiny("next_scale", tmp_path / "codes"), *one) == 0
    assert exit_code("fit", *tiny("next_scale", tmp_path / "codes")) == 0
    assert Checkpoint.open("runs/digits/next_scale/var").step == 2

    plan = TokenStore.open(tmp_path / "codes/train").plan
    same = {name: getattr(plan, name) for name in ("tokenizer_run", "tokenizer_fingerprint", "image_size")}
    other = write_digit_codes(tmp_path / "other", TokenSpec((16, 16), ((1, 1), (3, 3), (4, 4))), **same)
    assert exit_code("fit", *tiny("next_scale", other)) == 2
    assert "other holds tokens of the shape TokenSpec(" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["llamagen_repa", "next_scale"])
def test_alignment_reads_the_finest_scale(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images encoded online, a teacher of their 4 × 4 positions, and the analysis of the blocks afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    store = write_scale_codes(tmp_path / "codes", train=1442, validation=355, images_per_shard=1442)
    configure(tmp_path / "codes_runs/next_scale/tiny")
    write_teacher(Path("runs/digits/teacher/high.safetensors"), 32)
    head = ("--model.init_args.generator.init_args.head", "polytoken.generators.MultiLinearHead")
    aligned = ("--config", str(CONFIGS / "presets/digits/llamagen_repa.yaml"), "--data.init_args.store", str(store))
    aligned += ("--model.init_args.alignment.weight", "2.0") if recipe == "next_scale" else ()
    few = ("--trainer.limit_val_batches", "1", "--run.stage", "aligned/any")
    assert exit_code("fit", *tiny(recipe, store), *aligned, *head, *few) == 0
    run = Path("runs/digits/aligned/any")
    measured = json.loads((run / "metrics.json").read_text())["validate"]["metrics"]
    assert -1 <= measured["val/alignment"] <= 1 and measured["val/nll"] > 0
    layers.main(["--run", str(run), "--max-images", "24", "--k", "3"])
    assert json.loads((run / "layers.json").read_text())["positions"] == 16
