"""The drill itself: it kills as often as asked, and reports differences. `make drill` runs it at full length."""

import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests import drill


def test_a_program_is_killed_with_its_children(tmp_path: Path) -> None:
    marker = tmp_path / "child_lived"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(marker)!r}).touch()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    killed, after = drill.run(["-c", parent], tmp_path, drill.moment("evaluate", tmp_path, 0, 1.0))
    assert killed and 1 <= after < 3
    assert drill.run(["-c", "import time; time.sleep(3)"], tmp_path, lambda: False)[0] is False
    assert not marker.exists()
    with pytest.raises(SystemExit, match="ended with 3, see .*output.txt"):
        drill.run(["-c", "import sys; sys.exit(3)"], tmp_path)


def test_a_kill_falls_between_two_writes(tmp_path: Path) -> None:
    parts = tmp_path / drill.PLACES["samples"] / "parts"
    parts.mkdir(parents=True)
    (parts / "0.npy").touch()
    come = drill.moment("samples", tmp_path, units=2, delay=0.05)
    for name in ("1.npy", "2.npy"):
        assert not come()
        (parts / name).touch()
    assert not come(), "not at once"
    time.sleep(0.06)
    assert come()


@pytest.mark.parametrize("different", [False, True])
def test_every_kill_happens_and_differences_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, different: bool
) -> None:
    starts: list[tuple[str, bool]] = []

    def run(command: list[str], directory: Path, kill_when: Callable | None = None) -> tuple[bool, float]:
        starts.append((directory.name, kill_when is not None))
        return kill_when is not None and len(starts) % 5 != 0, 10.0  # every fifth ends before it would be killed

    def result(directory: Path) -> dict:
        return {"weights": {"a": torch.full((2,), float(different and directory.name == "killed"))}, "codes": ["x"]}

    monkeypatch.setattr(drill, "run", run)
    monkeypatch.setattr(drill, "result", result)
    place = tmp_path / "drill"
    assert drill.main(["--kills", "7", "--seed", "3", "--directory", str(place)]) == int(different)
    assert starts[:6] == [("undisturbed", False)] * 6
    report = json.loads((place / "drill.json").read_text())
    assert report["equal"] == {"weights": not different, "codes": True}
    entries = [entry["what"] for entry in report["log"]]
    assert entries.count("killed") == 7 and entries.count("undisturbed") == 6
    killed = {entry["stage"] for entry in report["log"] if entry["what"] == "killed"}
    assert len(killed) > 3, "kills are distributed over the stages"
    last = {entry["stage"]: entry["what"] for entry in report["log"]}
    assert set(last.values()) == {"ended"} and len(last) == 6, "each stage is completed"
    said = capsys.readouterr().out
    assert ("DIFFERENT: weights" if different else "7 kills; all is equal") in said


def test_the_drill_uses_the_shipped_recipes() -> None:
    stages = drill.commands(steps=10, samples=20)
    assert [*stages] == [*drill.STAGES]
    for arguments in stages.values():
        files = [Path(file) for option, file in pairwise(arguments) if option == "--config"]
        assert all(file.exists() for file in files if file.is_absolute())
