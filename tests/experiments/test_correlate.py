"""Rank correlation of the metrics of an experiment over its rows."""

from pathlib import Path

import pytest

from artifacts.results import Record
from experiments.__main__ import main
from experiments.correlate import correlate
from experiments.specification import Experiment, load
from polytoken.errors import UserError
from tests.support.experiments import TEXT, write_experiment


def experiment(place: Path) -> Experiment:
    columns = TEXT.replace(
        "direction: up, paper: rFID}", "direction: up, paper: rFID}\n  - {name: gfd, label: gFD, direction: down}"
    )
    return load(str(write_experiment(place, text=columns)))


def records(**columns: list[float]) -> list[Record]:
    """Two seeds a row, whose mean is the value."""
    return [
        Record(experiment="paper/table", row=str(row), seed=seed, metric=name.replace("_", "/"), value=value + shift)
        for name, values in columns.items()
        for row, value in enumerate(values)
        for seed, shift in enumerate((-9.0, 9.0))
    ]


def test_ranks_of_the_means_over_seeds_are_compared(tmp_path: Path) -> None:
    found = correlate(experiment(tmp_path), records(val_psnr=[1, 2, 3, 4, 5], gfd=[10, 8, 9, 2, 1]), "gfd")
    ((label, rho, interval, rows),) = found.rows
    assert (label, rho, rows) == ("PSNR", "-0.90", "5")
    low, high = map(float, interval.split(" to "))
    assert -1 <= low <= -0.9 <= high <= 1


def test_a_monotone_metric_has_no_spread(tmp_path: Path) -> None:
    found = correlate(experiment(tmp_path), records(val_psnr=[1, 2, 3, 4], gfd=[1, 4, 9, 16]), "gfd")
    assert found.rows == [["PSNR", "+1.00", "+1.00 to +1.00", "4"]]


def test_three_rows_say_nothing_and_an_unknown_metric_is_named(tmp_path: Path, capsys, monkeypatch) -> None:
    assert correlate(experiment(tmp_path), records(val_psnr=[1, 2, 3], gfd=[1, 2, 3]), "gfd").rows == []
    with pytest.raises(UserError, match="has no metric fid: choose one of val/psnr, gfd"):
        correlate(experiment(tmp_path), [], "fid")
    monkeypatch.chdir(tmp_path)
    assert main(["correlate", str(write_experiment(tmp_path)), "--with", "val/psnr"]) == 0
    assert "fewer than four rows" in capsys.readouterr().err
