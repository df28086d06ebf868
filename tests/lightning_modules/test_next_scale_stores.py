"""A next-scale generator on a token store: of its own scales, of others, and of one."""

from pathlib import Path

import pytest

from artifacts.token_store import TokenStore
from polytoken.loading import Checkpoint
from polytoken.specs import TokenSpec
from tests.support.commands import exit_code
from tests.support.generator_recipes import tiny, write_digit_codes, write_scale_codes


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
    assert "[16, 16] entries on a grid of 1 × 1, 2 × 2, 4 × 4, and" in capsys.readouterr().err
    single = write_digit_codes(tmp_path / "single", TokenSpec((16, 16), ((4, 4),)), **same)
    assert exit_code("fit", *tiny("next_scale", single), "--run.stage", "next_scale/single") == 2
    assert "error: these codes have one scale, 4 × 4, and NextScaleGenerator predicts" in capsys.readouterr().err
