"""Rank correlation of the metrics of an experiment over its rows."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from artifacts.results import Record
from experiments.__main__ import main
from experiments.correlate import correlate
from experiments.specification import Experiment
from polytoken.errors import UserError
from tests.support.experiments import TEXT, load_rows, write_experiment


def with_tokenizers(place: Path, tokenizers: Iterable[int]) -> Experiment:
    """An experiment whose rows, named by their number, have these tokenizers."""
    columns = TEXT.replace(
        "direction: up, paper: rFID}", "direction: up, paper: rFID}\n  - {name: gfd, label: gFD, direction: down}"
    )
    stages = [
        [{"stage": "tokenizer", "recipe": "vq", "preset_file": "tokenizer", "overrides": {"data.init_args.seed": one}}]
        for one in tokenizers
    ]
    rows = [{"label": str(number), "stages": listed} for number, listed in enumerate(stages)]
    return load_rows(place, rows, columns)


def records(**columns: list[float]) -> list[Record]:
    """Two seeds a row, whose mean is the value."""
    return [
        Record(experiment="paper/table", row=str(row), seed=seed, metric=name.replace("_", "/"), value=value + shift)
        for name, values in columns.items()
        for row, value in enumerate(values)
        for seed, shift in enumerate((-9.0, 9.0))
    ]


def test_ranks_of_the_means_over_seeds_are_compared(tmp_path: Path) -> None:
    given = with_tokenizers(tmp_path, range(9))
    found = correlate(given, records(val_psnr=[1, 2, 3, 4, 5, 6, 7, 8, 9], gfd=[10, 8, 9, 2, 1, 0, -1, -3, -2]), "gfd")
    ((label, rho, interval, rows, tokenizers),) = found.rows
    assert (label, rho, rows, tokenizers) == ("PSNR", "-0.97", "9", "9")
    low, high = map(float, interval.split(" to "))
    assert -1 <= low <= -0.97 <= high <= 1


def test_the_rows_of_a_tokenizer_are_drawn_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.correlate.RESAMPLES", 999)
    values = {"val_psnr": [1, 2, 3, 4, 5, 6, 7, 8, 9, 9], "gfd": [5, 1, 9, 2, 7, 3, 8, 4, 6, 6]}
    # each row three times, on the same tokenizer: no more evidence than once
    alone = correlate(with_tokenizers(tmp_path, range(10)), records(**values), "gfd")
    thrice = {name: [value for value in column for _ in range(3)] for name, column in values.items()}
    together = correlate(with_tokenizers(tmp_path, [i for i in range(10) for _ in range(3)]), records(**thrice), "gfd")
    (one, of_one), (many, of_many) = ((table.rows[0][2], table.rows[0][3:]) for table in (alone, together))
    assert of_one == ["10", "10"] and of_many == ["30", "10"]
    for first, second in zip(one.split(" to "), many.split(" to "), strict=True):
        assert float(first) == pytest.approx(float(second), abs=0.02)


def test_few_tokenizers_have_no_interval_and_a_constant_no_correlation(tmp_path: Path) -> None:
    given = with_tokenizers(tmp_path, range(4))
    found = correlate(given, records(val_psnr=[1, 2, 3, 4], gfd=[1, 4, 9, 16]), "gfd")
    assert found.rows == [["PSNR", "+1.00", "—", "4", "4"]]
    found = correlate(given, records(val_psnr=[1, 1, 1, 1], gfd=[1, 4, 9, 16]), "gfd")
    assert found.rows == [["PSNR", "—", "—", "4", "4"]]


def test_three_rows_say_nothing_and_an_unknown_metric_is_named(tmp_path: Path, capsys, monkeypatch) -> None:
    given = with_tokenizers(tmp_path, range(3))
    assert correlate(given, records(val_psnr=[1, 2, 3], gfd=[1, 2, 3]), "gfd").rows == []
    with pytest.raises(UserError, match="has no metric fid: choose one of val/psnr, gfd"):
        correlate(given, [], "fid")
    monkeypatch.chdir(tmp_path)
    assert main(["correlate", str(write_experiment(tmp_path)), "--with", "val/psnr"]) == 2
    assert "there is no metric that four rows have" in capsys.readouterr().err
