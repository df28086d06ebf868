"""Changes between rows and lines that an experiment compares itself."""

from math import sqrt
from pathlib import Path
from typing import Any

import msgspec
import pytest

from experiments import table
from experiments.contrasts import change, tables
from experiments.specification import Experiment
from polytoken.errors import UserError
from tests.support.experiments import TEXT, load_rows, psnr_records

STAGE = {"stage": "tokenizer", "recipe": "vq", "preset_file": "tokenizer"}


def experiment(place: Path, **rows: dict[str, Any]) -> Experiment:
    listed = [
        {"label": label, "stages": [{**STAGE, "overrides": {"data.init_args.batch_size": number + 1}}], **fields}
        for number, (label, fields) in enumerate(rows.items())
    ]
    text = TEXT.replace("presets: [digits]", "presets: [digits, photos]")
    return load_rows(place, listed, text)


def test_a_row_is_compared_with_the_one_it_names(tmp_path: Path) -> None:
    made = tables(experiment(tmp_path, a={}, b={}, c={"against": "a"}), psnr_records(a=[8.0], b=[1.0], c=[2.0]))
    (found,) = made
    assert found.head == ["", "against", "PSNR", "codes used", "over"]
    assert found.rows == [["c", "a", "-75.0 %", "—", "1 seed"]]


LINES = {
    "a1": {"line": "a"},
    "b1": {"line": "b", "against": "a1"},
    "a2": {"line": "a"},
    "b2": {"line": "b", "against": "a2"},
}


def test_a_row_of_a_line_counts_once_with_its_mean_over_the_seeds(tmp_path: Path) -> None:
    # log2 of the ratios: (1, 3) in one row, 4 in the other; 12.706 = t(0.975; 1 degree of freedom)
    values = {"a1": [1.0, 10.0], "b1": [2.0, 80.0], "a2": [4.0], "b2": [64.0, 99.0]}  # seed 1 of a2 is missing
    (found,) = tables(experiment(tmp_path, **LINES), psnr_records(**values))
    low, high = (100 * (2 ** (3 + sign * 12.7062 * 1) - 1) for sign in (-1, 1))
    assert found.rows[0][2].startswith("+700.0 % (")
    assert [float(part) for part in found.rows[0][2][10:-1].split(" to ")] == pytest.approx(
        [low, high], rel=1e-4, abs=0.05
    )
    assert found.rows[0][3:] == ["—", "2 rows"]


def test_a_line_of_one_row_is_over_its_seeds(tmp_path: Path) -> None:
    rows = {name: LINES[name] for name in ("a1", "b1")}
    (found,) = tables(experiment(tmp_path, **rows), psnr_records(a1=[1.0, 1.0], b1=[2.0, 2.0]))
    assert found.rows == [["b", "a", "+100.0 % (+100.0 to +100.0) *", "—", "2 seeds"]]


def test_a_metric_that_some_seeds_lack_says_so(tmp_path: Path) -> None:
    made = psnr_records(a=[1.0, 1.0], b=[2.0, 2.0])
    used = [msgspec.structs.replace(one, metric="val/usage/*") for one in made if one.seed == 0]
    (found,) = tables(experiment(tmp_path, a={}, b={"against": "a"}), [*made, *used])
    assert found.rows[0][3] == "+100.0 %, 1 of 2 pairs"


def test_the_interval_is_students_of_the_logarithms() -> None:
    # ratios 2, 4 and 8: a mean of log2 of 2 with deviation 1, and 4.303 = t(0.975; 2 degrees of freedom)
    margin = 4.302653 / sqrt(3)
    low, high = (100 * (2 ** (2 + sign * margin) - 1) for sign in (-1, 1))
    assert change([[(1.0, 2.0), (1.0, 4.0), (1.0, 8.0)]]) == f"+300.0 % ({low:+.1f} to {high:+.1f})"


@pytest.mark.parametrize(("pairs", "starred"), [([(1, 2), (1, 2.1), (1, 2.2)], True), ([(1, 2), (1, 0.5)], False)])
def test_a_star_marks_an_interval_without_zero(pairs: list[tuple[float, float]], starred: bool) -> None:
    assert change([pairs]).endswith("*") == starred


def test_equal_values_have_no_interval() -> None:
    assert change([[(2.0, 2.0)], [(3.0, 3.0)]]) == "0 %"


@pytest.mark.parametrize("pairs", [[], [(1.0, 0.0)], [(-1.0, 1.0), (2.0, 2.0)]])
def test_values_without_a_logarithm_have_no_change(pairs: list[tuple[float, float]]) -> None:
    assert change([pairs]) == "—"


def test_show_has_the_changes_after_the_table(tmp_path: Path) -> None:
    given = experiment(tmp_path, a={}, b={"against": "a"})
    assert [one.head[:2] for one in table.results(given, []).tables] == [["", "PSNR ↑"], ["", "against"]]


def test_a_row_that_the_preset_leaves_out_is_compared_with_nothing(tmp_path: Path) -> None:
    given = experiment(tmp_path, a={"presets": ["photos"]}, b={"against": "a"})
    assert [row.label for row in given.rows] == ["b"] and tables(given, psnr_records(b=[1.0])) == []


def test_a_row_that_is_not_there_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'linera' is not the label of another row[\s\S]*linear"):
        experiment(tmp_path, linear={}, b={"against": "linera"})
    with pytest.raises(UserError, match="row 'alone': 'alone' is not the label of another row"):
        experiment(tmp_path, alone={"against": "alone"})


def test_all_rows_are_compared_with_any_row(tmp_path: Path) -> None:
    given = experiment(tmp_path, **LINES)
    (found,) = tables(given.compared_with("b1"), psnr_records(a1=[1.0], b1=[2.0], a2=[4.0], b2=[1.0]))
    assert [row[:3] for row in found.rows] == [
        ["a1", "b1", "-50.0 %"],
        ["a2", "b1", "+100.0 %"],
        ["b2", "b1", "-50.0 %"],
    ]
    with pytest.raises(UserError, match="'b11' is no row of paper/table at the preset digits: did you mean b1"):
        given.compared_with("b11")
