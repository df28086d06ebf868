"""Broken files of a run: the report sets them aside with a warning and shows the rest."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from artifacts.metrics import merge_section
from commands.report.__main__ import main
from tests.support import reports
from tests.support.slow import slow_but

BROKEN = {
    "empty": b"",
    "half": b'{"validate": {"metrics": {"val/psnr": 2',
    "latin-1": '{"validate": {"metrics": {"\xe9": 1}}}'.encode("latin-1"),
    "list": b"[1]",
    "null": b"null",
    "number": b"7",
    "deep": b'{"x": ' + b"[" * 100_000,
    "huge": b'{"validate": {"metrics": {"val/psnr": 1e999}}}',
}
FILES = (
    "metrics.json",
    "lineage.json",
    "sweep.json",
    "probes.json",
    "zero_shot.json",
    "fidelity.json",
    "codes.json",
    "recovery.json",
)


@pytest.mark.parametrize("kind", slow_but(("deep",), BROKEN))
def test_the_report_skips_broken_files(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reports.write_measured_runs(tmp_path)
    run, samples = tmp_path / "runs/digits/tokenizer/fq_dual", tmp_path / "runs/digits/samples/fq_dual"
    results = tmp_path / "runs/experiments/results/paper/x_digits.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    places = [*(run / name for name in FILES), samples / "samples.json", results]
    for place in places:
        place.write_bytes(BROKEN[kind])
    with caplog.at_level(logging.WARNING):
        main(["--runs", str(tmp_path / "runs")])
    for place in places:
        assert f"{place}" in caplog.text and f"{place}.broken" in caplog.text
        assert place.with_name(f"{place.name}.broken").read_bytes() == BROKEN[kind]
    assert "fq_dual" in (tmp_path / "runs/digits/report.html").read_text()


@pytest.mark.parametrize("content", [{"scales": 3}, {"scales": [{"guidance": "1"}]}, {"scales": [3]}, {}])
def test_a_wrong_type_is_reported_with_its_place(
    content: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reports.write_measured_runs(tmp_path)
    sweep = tmp_path / "runs/digits/tokenizer/fq_dual/sweep.json"
    sweep.write_text(json.dumps(content))
    main(["--runs", str(tmp_path / "runs")])
    assert f"{sweep}: $" in caplog.text


@pytest.mark.parametrize("kind", BROKEN)
def test_a_section_replaces_a_broken_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_bytes(BROKEN[kind])
    merge_section(path, "fit", {"metrics": {"loss": 1.0}})
    assert json.loads(path.read_text())["fit"] == {"metrics": {"loss": 1.0}}
    merge_section(path, "reconstruction", {"metrics": {}}, within="judge")
    merge_section(path, "reconstruction", {"metrics": {"x": {}}}, within="inception")
    assert json.loads(path.read_text())["reconstruction"].keys() == {"judge", "inception"}
    assert path.with_name("metrics.json.broken").read_bytes() == BROKEN[kind]


@pytest.mark.parametrize(
    "content", slow_but((str(b"a: ["),), [b"", b"[1]", b"model: 7", b"a: [", b"a: \xff", b"a: &a [*a]"])
)
def test_the_report_of_broken_configurations(content: bytes, tmp_path: Path) -> None:
    reports.write_measured_runs(tmp_path)
    (tmp_path / "runs/digits/tokenizer/fq_dual/config.yaml").write_bytes(content)
    main(["--runs", str(tmp_path / "runs")])
    assert "24.78" in (tmp_path / "runs/digits/report.html").read_text()


def test_the_report_skips_pipes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reports.write_measured_runs(tmp_path)
    run = tmp_path / "runs/digits/tokenizer/fq_dual"
    for name in ("events.out.tfevents.9", "reconstructions.png", "metrics.json"):
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
    main(["--runs", str(tmp_path / "runs")])
    assert "the events of" in caplog.text and "it is a pipe, and no file" in caplog.text


def test_names_that_are_markup(tmp_path: Path) -> None:
    reports.write_measured_runs(tmp_path)
    stage = tmp_path / "runs/digits/<script>alert(1)"
    for name in ("[x](http:", "$_{", "`a`", "\udcff"):
        shutil.copytree(tmp_path / "runs/digits/tokenizer/fq_dual", stage / name)
    main(["--runs", str(tmp_path / "runs")])
    text = (tmp_path / "runs/digits/report.md").read_text()
    assert "<script" not in text and "### \\[x\\](http:" in text and "### \\`a\\`" in text


@pytest.mark.parametrize("preset", ["../..", "..", "/tmp", "a/b", "", "a\0b", "x" * 300, "\ud800"])
def test_a_preset_is_a_directory_of_the_runs(preset: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    reports.write_measured_runs(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        main(["--runs", str(tmp_path / "runs"), "--preset", preset])
    assert "--preset is" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
