"""The drill and the soak themselves: faults hit as often as asked, and differences are reported."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from tests import soak
from tests.drill import __main__ as drill
from tests.drill.curricula import CURRICULA, RUNS, Stage, equal, prepare
from tests.drill.faults import End, Fault, run

SAMPLES = Stage("samples", "samples/fq_dual/done.json", "samples/fq_dual")
WAIT = "import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"


def after(seconds: float) -> Callable[[], bool]:
    since = time.monotonic()
    return lambda: time.monotonic() > since + seconds


@pytest.fixture
def ignored_ctrl_c() -> Iterator[None]:
    """As in a background job of a shell."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ignored_ctrl_c")
@pytest.mark.parametrize(("fault", "tracebacks"), [("SIGKILL", 0), ("SIGTERM", 0), ("Ctrl-C", 2)])
def test_a_fault_hits_make_and_its_children(tmp_path: Path, fault: Fault, tracebacks: int) -> None:
    begun, lived = (str(tmp_path / name) for name in ("begun", "lived"))
    child = f"import time, pathlib as p; p.Path({begun!r}).touch(); time.sleep(2); p.Path({lived!r}).touch()"
    (tmp_path / "program.py").write_text(WAIT.format(child=child))
    (tmp_path / "Makefile").write_text(f"all:\n\t{sys.executable} program.py\n")
    end = run(["make"], tmp_path, fault, Path(begun).exists)
    assert end.struck and end.code != 0 and end.left_after < 2 and not end.hung
    time.sleep(max(0.0, 2.2 - end.left_after))
    assert not Path(lived).exists()
    assert end.tracebacks == tracebacks, (tmp_path / "output.txt").read_text()


def test_a_full_disk_stops_every_write(tmp_path: Path) -> None:
    """Output still arrives; a start without a fault ends by itself."""
    code = "import pathlib, time; print('begun', flush=True); time.sleep(1); pathlib.Path('file').write_text('text')"
    end = run([sys.executable, "-c", code], tmp_path, "full disk", after(0.7))
    assert end.struck and end.code == 1 and end.tracebacks == 1
    said = (tmp_path / "output.txt").read_text()
    assert said.startswith("begun") and "File too large" in said and (tmp_path / "file").read_text() == ""
    end = run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)
    assert (end.struck, end.code, end.tracebacks) == (False, 3, 0)


def test_a_kill_falls_between_two_writes(tmp_path: Path) -> None:
    parts = tmp_path / SAMPLES.place / "parts"
    parts.mkdir(parents=True)
    (parts / "0.npy").touch()
    come = drill.moment(SAMPLES, tmp_path, units=2, delay=0.05)
    for name in ("1.npy", "2.npy"):
        assert not come()
        (parts / name).touch()
        time.sleep(0.11)
    assert not come(), "not at once"
    time.sleep(0.06)
    assert come()


@pytest.mark.parametrize("different", [False, True])
def test_every_fault_happens_and_differences_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, different: bool
) -> None:
    starts: list[tuple[str, Fault | None]] = []

    def start(command: list[str], directory: Path, fault: Fault | None, when: Callable[[], bool]) -> End:
        starts.append((directory.name, fault))
        struck = fault is not None and len(starts) % 5 != 0  # every fifth ends before it is hit
        if not struck:
            (directory / command[-1]).parent.mkdir(parents=True, exist_ok=True)
            (directory / command[-1]).touch()
        return End(struck, int(struck), 10.0, 0.1, 0)

    def result(_: object, runs: Path) -> dict:
        killed = "killed" in runs.parts
        return {"weights": {"a": torch.full((2,), float(different and killed))}, "codes": ["x"]}

    monkeypatch.setattr(drill, "run", start)
    monkeypatch.setattr(drill, "result", result)
    monkeypatch.setattr(drill, "reached", lambda *_: 0)
    monkeypatch.setattr(drill, "prepare", lambda directory, _: directory.mkdir(parents=True))
    place = tmp_path / "drill"
    assert drill.main(["--kills", "9", "--seed", "3", "--directory", str(place)]) == int(different)
    stages = [stage.name for stage in CURRICULA["fq_dual"].stages]
    assert starts[: len(stages)] == [("undisturbed", None)] * len(stages)
    report = json.loads((place / "drill.json").read_text())
    assert report["equal"] == {"weights": not different, "codes": True}
    struck = [entry for entry in report["log"] if entry["struck"]]
    assert len(struck) == 9 and {entry["what"] for entry in struck} == {"SIGKILL", "SIGTERM", "Ctrl-C", "full disk"}
    assert len({entry["stage"] for entry in struck}) > 5, "they are distributed over the stages"
    last = {entry["stage"]: entry["what"] for entry in report["log"]}
    assert set(last.values()) == {"ended"} and [*last] == stages, "each stage is completed"
    said = capsys.readouterr().out
    assert ("DIFFERENT: weights" if different else "9 faults in 0 min, all is equal") in said and "| judge |" in said


def test_a_stage_that_fails_by_itself_ends_the_drill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill, "run", lambda *_: End(False, 3, 10.0, 0.0, 1))
    monkeypatch.setattr(drill, "prepare", lambda directory, _: directory.mkdir(parents=True))
    with pytest.raises(SystemExit, match=f"make of judge ended with 3, see {tmp_path}/undisturbed/output.txt"):
        drill.main(["--directory", str(tmp_path)])


@pytest.mark.parametrize("name", CURRICULA)
def test_a_curriculum_is_one_of_the_makefile(name: str, tmp_path: Path) -> None:
    """Its tiny presets keep their keys, and make knows each goal."""
    prepare(tmp_path / "copy", CURRICULA[name])
    for file in (tmp_path / "copy/configs/presets/digits").glob("*.yaml"):
        steps = yaml.safe_load(file.read_text()).get("trainer", {}).get("max_steps", 0)
        assert steps <= 60, file
    for stage in CURRICULA[name].stages:
        command = drill.make(CURRICULA[name], stage)
        end = run([*command, "-n"], tmp_path / "copy")
        assert end.code == 0, (tmp_path / "copy/output.txt").read_text()
    assert str(RUNS / stage.goal) == command[-1]


def test_values_are_compared_bit_for_bit() -> None:
    assert equal({"a": [torch.zeros(2), "x"]}, {"a": [torch.zeros(2), "x"]})
    assert not equal({"a": [torch.zeros(2)]}, {"a": [torch.tensor([0.0, 1e-38])]}) and not equal([1], [1, 2])


def test_the_soak_names_what_grew() -> None:
    steady = {"memory": 500.0, "workers": 90.0, "processes": 2, "files": 30, "threads": 9, "ms": 9.0, "cpu_ms": 8.0}
    used = [{"step": step, **steady} for step in range(40)]
    assert soak.grown(used) == {} and len(soak.table(used).splitlines()) == 12
    for name, value in (("memory", 531.0), ("files", 41), ("threads", 12), ("cpu_ms", 10.7)):
        worse = [{**row, name: value} if row["step"] >= 30 else row for row in used]
        assert [*soak.grown(worse)] == [name]
    assert soak.grown([{**row, "memory": 100.0} if row["step"] < 10 else row for row in used]) == {}, "the start"
