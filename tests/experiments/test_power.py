"""Seeds that an experiment needs to show the paper's effect."""

from pathlib import Path
from statistics import stdev

import numpy as np
import pytest

from experiments import directions
from experiments.__main__ import main
from experiments.directions import margin_of
from experiments.power import noise_floor, power, seeds_needed
from tests.experiments.test_directions import experiment
from tests.support.experiments import psnr_records, write_experiment


@pytest.mark.parametrize(("effect", "floor"), [(0.1, 0.1), (-0.1, 0.1), (0.05, 0.31), (0.5, 0.01)])
def test_the_effect_is_decided_in_four_of_five_experiments(effect: float, floor: float) -> None:
    needed = seeds_needed(effect, floor)
    assert needed is not None

    def share(count: int) -> float:
        drawn = np.random.default_rng(0).normal(abs(effect), floor, (20_000, count))
        return float((drawn.mean(1) > margin_of(1.0, count) * drawn.std(1, ddof=1)).mean())

    assert share(needed) >= 0.79 and (needed == 2 or share(needed - 1) < 0.81)


def test_few_and_very_many_seeds() -> None:
    assert seeds_needed(0.1, 0.0) == 2 and seeds_needed(1e-4, 1.0) is None


def test_shares_are_of_the_row_that_is_compared_with(tmp_path: Path) -> None:
    values = psnr_records(a=[4.0, 5.0, 6.0], b=[4.5, 4.0, 6.0])
    (one,) = directions.compare(experiment(tmp_path, (3.0, 2.0)), values)
    assert noise_floor(one) == pytest.approx(stdev([0.5, -1.0, 0.0]) / 5)
    (line,) = power([one]).rows
    assert line == ["b", "a", "PSNR", "-33.3%", "-3.3%", "15.3%", "3", "4"]


def test_one_seed_has_no_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    assert power(directions.compare(experiment(tmp_path, (3.0, 2.0)), psnr_records(a=[5.0], b=[4.0]))).rows == []
    monkeypatch.chdir(tmp_path)
    assert main(["power", str(write_experiment(tmp_path))]) == 2
    assert "there is no pair of rows with two seeds" in capsys.readouterr().err


def test_an_experiment_without_numbers_of_a_paper_is_refused(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["power", str(write_experiment(tmp_path, (", paper: rFID}", "}")))]) == 2
    assert "has no numbers of a paper" in capsys.readouterr().err
