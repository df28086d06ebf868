"""Direction of each comparison with the paper."""

import json
from pathlib import Path

import pytest

from artifacts.completion import finish
from experiments import directions
from experiments.__main__ import main
from experiments.specification import Experiment
from experiments.tasks import expand
from tests.support.experiments import load_rows, psnr_records

STAGE = {"stage": "tokenizer", "recipe": "vq", "preset_file": "tokenizer"}
PAPERS = (3.0, None, 2.0, 2.5)  # of rows a, b, c, d


def experiment(tmp_path: Path, papers: tuple[float | None, ...] = PAPERS) -> Experiment:
    rows = [
        {"label": label, "stages": [{**STAGE, "overrides": {"data.init_args.batch_size": number}}]}
        | ({} if paper is None else {"paper": {"rFID": paper}})
        for number, (label, paper) in enumerate(zip("abcd"[: len(papers)], papers, strict=True))
    ]
    return load_rows(tmp_path, rows)


def test_a_row_is_compared_with_the_nearest_above_that_the_paper_reports(tmp_path: Path) -> None:
    made = directions.compare(experiment(tmp_path), psnr_records(a=[5.0], b=[9.0], c=[4.0], d=[6.0]))
    assert [(one.row, one.against, one.difference, one.paper) for one in made] == [
        ("c", "a", -1.0, -1.0),
        ("d", "c", 2.0, 0.5),
    ]
    assert all(one.metric == "val/psnr" and one.verdict == "one seed" and one.margin is None for one in made)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([4.0, 4.1, 3.9], "holds"),
        ([6.0, 6.1, 5.9], "fails"),
        ([4.0, 6.2, 4.9], "within noise"),
        ([5.0, 5.0, 5.0], "within noise"),
        ([4.0, 4.0, 4.0], "holds"),
        ([4.0, 3.0], "within noise"),  # two seeds of one sign say little
    ],
)
def test_the_verdict_follows_from_the_interval(tmp_path: Path, ours: list[float], verdict: str) -> None:
    (made,) = directions.compare(experiment(tmp_path, (3.0, 2.0)), psnr_records(a=[5.0, 5.0, 5.0], b=ours))
    assert made.verdict == verdict and made.seeds == len(ours)


def test_seeds_are_paired_and_the_interval_is_students(tmp_path: Path) -> None:
    """Seeds differ by far more than the rows: only differences of common seeds count."""
    far = {"a": [10.0, 20.0, 30.0, 40.0], "b": [9.0, 18.8, 28.8]}
    (made,) = directions.compare(experiment(tmp_path, (3.0, 2.0)), psnr_records(**far))
    assert made.difference == pytest.approx(-3.4 / 3) and made.verdict == "holds"
    assert made.margin == pytest.approx(4.302653 * 0.11547005 / 3**0.5, rel=1e-6)  # t of two degrees, 97.5 %
    (row,) = directions.table([made]).rows
    assert row == ["b", "a", "PSNR", "-1.13 ± 0.29", "-1", "holds"]


def test_no_comparison_without_numbers_of_paper_and_runs(tmp_path: Path) -> None:
    assert directions.compare(experiment(tmp_path, (3.0, 3.0)), psnr_records(a=[5.0], b=[4.0])) == []
    assert directions.compare(experiment(tmp_path, (3.0, None)), psnr_records(a=[5.0], b=[4.0])) == []
    first, _, _, second = psnr_records(a=[5.0, 5.0], b=[4.0, 4.0])  # no seed in common
    assert directions.compare(experiment(tmp_path, (3.0, 2.0)), [first, second]) == []


def test_directions_are_below_the_table_and_in_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    made = experiment(tmp_path, (3.0, 2.0))
    for task in expand(made, 3):
        (run,) = task.runs
        run.directory.mkdir(parents=True)
        value = 5.0 + task.seed + (task.row.label == "b")
        (run.directory / "metrics.json").write_text(json.dumps({"validate": {"metrics": {"val/psnr": value}}}))
        finish(run.directory, "fit", "", [run.directory / "metrics.json"])
    assert main(["show", str(made.source.file), "--markdown"]) == 0
    table, caption, compared = capsys.readouterr().out.strip().split("\n\n")
    assert "| b | 7 ± 1 | 2 |" in table and caption == directions.CAPTION
    assert compared.splitlines()[2:] == ["| b | a | PSNR | +1 ± 0 | -1 | fails |"]
    content = json.loads(Path("runs/experiments/results/paper/table_digits.json").read_text())
    assert [one["verdict"] for one in content["comparisons"]] == ["fails"]
    assert content["tables"][1]["rows"] == [["b", "a", "PSNR", "+1 ± 0", "-1", "fails"]]
    assert main(["show", str(made.source.file), "--markdown", "--against", "b"]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("| a | b | -14.5 % (")
    assert main(["show", str(made.source.file)]) == 0
    assert "fails" in capsys.readouterr().out
