"""Seeds that an experiment needs to show the paper's effect."""

from math import sqrt
from pathlib import Path
from statistics import stdev

import pytest

from experiments import directions
from experiments.__main__ import main
from experiments.power import noise_floor, power, seeds_needed
from tests.experiments.test_directions import experiment
from tests.support.experiments import psnr_records, write_experiment


def test_an_effect_shows_at_two_deviations_of_the_mean() -> None:
    for effect, floor in ((0.1, 0.1), (-0.1, 0.1), (0.05, 0.31), (0.5, 0.01)):
        needed = seeds_needed(effect, floor)
        assert abs(effect) >= 2 * floor / sqrt(needed)
        assert needed == 2 or abs(effect) < 2 * floor / sqrt(needed - 1)


def test_shares_are_of_the_row_that_is_compared_with(tmp_path: Path) -> None:
    values = psnr_records(a=[4.0, 5.0, 6.0], b=[4.5, 4.0, 6.0])
    (one,) = directions.compare(experiment(tmp_path, (3.0, 2.0)), values)
    assert noise_floor(one) == pytest.approx(stdev([0.5, -1.0, 0.0]) / 5)
    (line,) = power([one]).rows
    assert line == ["b", "a", "PSNR", "-33.3%", "-3.3%", "15.3%", "3", "2"]


def test_one_seed_has_no_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    assert power(directions.compare(experiment(tmp_path, (3.0, 2.0)), psnr_records(a=[5.0], b=[4.0]))).rows == []
    monkeypatch.chdir(tmp_path)
    assert main(["power", str(write_experiment(tmp_path))]) == 0
    assert "no two seeds of two rows are done" in capsys.readouterr().err
