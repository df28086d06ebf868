"""Picture of one metric over another."""

from pathlib import Path

import pytest

from artifacts.results import Record
from experiments.__main__ import main
from experiments.plot import plot, save
from experiments.specification import Experiment
from polytoken.errors import UserError
from tests.support.experiments import TEXT, load_rows


def experiment(place: Path, lines: bool) -> Experiment:
    """Two rows of one tokenizer and one of another."""
    listed = [
        {"label": label, "stages": [{"stage": "tokenizer", "recipe": recipe, "preset_file": "tokenizer"}]}
        | ({"line": line} if lines else {})
        for label, recipe, line in (("a", "vq", "x"), ("b", "vq", "x"), ("c", "lfq", "y"))
    ]
    columns = TEXT.replace(
        "direction: up, paper: rFID}", "direction: up, paper: rFID}\n  - {name: gfd, label: gFD, direction: down}"
    )
    return load_rows(place, listed, columns)


def records(scale: float = 1.0) -> list[Record]:
    values = {"a": (30.0, [3.0, 5.0]), "b": (10.0, [1.0, 2.0]), "c": (20.0, [7.0])}
    return [
        Record(experiment="paper/table", row=row, seed=seed, metric=metric, value=value)
        for row, (psnr, distances) in values.items()
        for seed, distance in enumerate(distances)
        for metric, value in (("val/psnr", psnr), ("gfd", distance * scale**seed))
    ]


def test_lines_join_means_over_seeds_in_a_panel_for_each_tokenizer(tmp_path: Path) -> None:
    figure = plot(experiment(tmp_path, lines=True), records(), "val/psnr", "gfd")
    first, second = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["vq", "lfq"]
    assert (first.get_xlabel(), first.get_ylabel(), first.get_yscale()) == ("PSNR", "gFD", "linear")
    line = first.get_lines()[0]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([10.0, 30.0], [1.5, 4.0])
    assert first.get_lines()[0].get_color() != second.get_lines()[0].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x", "y"]


def test_rows_without_a_line_have_their_labels_beside_them(tmp_path: Path) -> None:
    figure = plot(experiment(tmp_path, lines=False), records(), "val/psnr", "gfd")
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.texts} == {"a", "b", "c"} and not figure.legends
    assert axes.get_lines()[0].get_linestyle() == "None"


def test_values_of_several_orders_have_a_logarithmic_axis(tmp_path: Path) -> None:
    assert plot(experiment(tmp_path, True), records(scale=9), "val/psnr", "gfd").axes[0].get_yscale() == "log"


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_same_results_make_the_same_file(tmp_path: Path, suffix: str) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        save(plot(experiment(tmp_path, True), records(), "val/psnr", "gfd"), tmp_path / name / f"it{suffix}")
    first, second = ((tmp_path / name / f"it{suffix}").read_bytes() for name in ("first", "second"))
    assert first == second and len(first) > 2_000


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    given = experiment(tmp_path, True)
    with pytest.raises(UserError, match=r"has no metric val/psn: choose one of val/psnr, gfd"):
        plot(given, records(), "val/psn", "gfd")
    with pytest.raises(UserError, match="no row .* that is done has both val/psnr and gfd"):
        plot(given, [], "val/psnr", "gfd")
    with pytest.raises(UserError, match="it.bmp has no known format: end its name with .png, .svg, .pdf"):
        save(plot(given, records(), "val/psnr", "gfd"), tmp_path / "it.bmp")
    assert not (tmp_path / "it.bmp").exists()


def test_the_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    axes = ["--x", "val/code_bits", "--y", "sweep/gfd/judge", "--root", str(tmp_path)]
    assert main(["plot", "polytoken/heads", str(tmp_path / "it.svg"), *axes]) == 2
    assert "no row of polytoken/heads that is done has both" in capsys.readouterr().err
