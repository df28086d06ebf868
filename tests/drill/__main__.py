"""Fault drill: a curriculum whose `make` is killed again and again ends with the numbers of an undisturbed one.

    python -m tests.drill --curriculum ideal --kills 50 --seed 0          (make drill ARGS='--curriculum ideal')

Teachers, tokenizer, tokens, generators, samples and their evaluation run twice, at a size of seconds, each by `make`
with the file that marks its end. The second time SIGKILL, SIGTERM, Ctrl-C and a full disk hit make and its children at
random moments, and the same command is started again. Weights, averages, metrics, codes, samples and the names of all
files of both must then be equal, bit for bit. A full disk is a limit on the size of files, as mounting one needs root.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from tests.drill.curricula import CURRICULA, RUNS, VALIDATION, Curriculum, Stage, equal, prepare, reached, result
from tests.drill.faults import FAULTS, End, Fault, run


def make(curriculum: Curriculum, stage: Stage) -> list[str]:
    """The command of a stage."""
    return ["make", "--no-print-directory", "-o", ".venv/.ready", *curriculum.names, str(RUNS / stage.goal)]


def moment(stage: Stage, runs: Path, units: int, delay: float) -> Callable[[], bool]:
    """A condition that holds `delay` seconds after the stage has written this many more units to the disk."""
    before, since, looked = reached(stage, runs), time.monotonic(), 0.0

    def come() -> bool:
        nonlocal since, units, looked
        if units and time.monotonic() > looked + 0.1:
            looked = time.monotonic()
            if reached(stage, runs) >= before + units:
                since, units = time.monotonic(), 0
        return not units and time.monotonic() >= since + delay

    return come


class Drill:
    """One curriculum, undisturbed and under faults.

    Args:
        directory: Emptied first.
        name: Of the curriculum.
        kills: Number of faults.
        seed: Of their order and moments.
    """

    def __init__(self, directory: Path, name: str, kills: int, seed: int) -> None:
        self.directory, self.name, self.kills, self.seed = directory, name, kills, seed
        self.curriculum, self.draw, self.begun = CURRICULA[name], random.Random(seed), time.monotonic()
        self.log: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}
        self.begins: dict[str, float] = {}  # seconds until a stage writes for the first time

    def run(self) -> dict[str, Any]:
        """Run both; the report is returned, and written to `drill.json`."""
        peace, fire = self.directory / "undisturbed", self.directory / "killed"
        shutil.rmtree(self.directory, ignore_errors=True)
        for place in (peace, fire):
            prepare(place, self.curriculum)
        for stage in self.curriculum.stages:
            self._undisturbed(stage, peace)
        # each stage has its share, and each fault; an order of their own pairs all faults with all stages
        stages = self.curriculum.stages
        planned = [stages[number * len(stages) // self.kills] for number in range(self.kills)]
        faults: list[Fault] = [*islice(cycle(FAULTS), self.kills)]
        self.draw.shuffle(faults)
        left = 0
        for stage in stages:
            left = self._under_faults(stage, fire, reached(stage, peace / RUNS), left + planned.count(stage), faults)
        expected, found = (result(self.curriculum, place / RUNS) for place in (peace, fire))
        same = {name: equal(found.get(name), expected[name]) for name in expected}
        report = {"curriculum": self.name, "seed": self.seed, "kills": self.kills, "equal": same, "log": self.log}
        report["seconds"] = round(time.monotonic() - self.begun, 1)
        (self.directory / "drill.json").write_text(json.dumps(report, indent=1) + "\n")
        return report

    def _undisturbed(self, stage: Stage, place: Path) -> None:
        start = time.time()
        end = self._start(stage, place)
        self.seconds[stage.name] = end.seconds
        written = [path.stat().st_mtime - start for path in (place / RUNS / stage.place).rglob("*") if path.is_file()]
        self.begins[stage.name] = min([after for after in written if after > 0] + [end.seconds])
        self._say(stage, "undisturbed", end, f"{reached(stage, place / RUNS)}")

    def _under_faults(self, stage: Stage, place: Path, total: int, left: int, faults: list[Fault]) -> int:
        """Hit a stage, until it ends or has had its share; returns how many faults the next stages get in addition."""
        runs, last = place / RUNS, stage == self.curriculum.stages[-1]
        while True:
            fault = faults[0] if left else None
            # each start does its share of the rest, and is hit before its first write or between two writes
            units = self.draw.randint(0, 2 * (total - reached(stage, runs)) // (left + 1)) if left else 0
            begins, writes = self.begins[stage.name], max(1, total // (VALIDATION if stage.trains else 1))
            write = (self.seconds[stage.name] - begins) / writes
            soon = self.draw.random() ** 3  # most of a start's writes follow each other within a second
            delay = soon * write if units else self.draw.uniform(0.3, 1) * begins
            end = self._start(stage, place, fault, moment(stage, runs, units, delay))
            if end.struck:
                left, _ = left - 1, faults.pop(0)
            self._say(stage, str(fault) if end.struck else "ended", end, f"{reached(stage, runs)} of {total}")
            if end.code == 0 and not (left and last):
                return left
            if end.code == 0:  # all faults are to come: the last stage is measured again
                (runs / stage.goal).unlink()

    def _start(self, stage: Stage, place: Path, fault: Fault | None = None, when: Callable[[], bool] = bool) -> End:
        end = run(make(self.curriculum, stage), place, fault, when)
        if end.code != 0 and not end.struck:
            sys.exit(f"drill: make of {stage.name} ended with {end.code}, see {place / 'output.txt'}")
        return end

    def _say(self, stage: Stage, what: str, end: End, state: str) -> None:
        entry = {"at": round(time.monotonic() - self.begun, 1), "stage": stage.name, "what": what, "state": state}
        self.log.append(entry | asdict(end))
        notes = f", left in {end.left_after:.1f} s" if end.struck else ""
        notes += ", HUNG" * end.hung + f", {end.tracebacks} tracebacks" * (end.tracebacks > 0)
        words = f"{self.name:<12}{stage.name:<15} {what:<12} after {end.seconds:5.1f} s, at {state}{notes}"
        print(f"{entry['at']:7.1f} s  {words}", flush=True)


def table(report: dict[str, Any]) -> str:
    """The faults by stage and kind, in Markdown."""
    struck = [entry for entry in report["log"] if entry["struck"]]
    lines = [f"| stage | {' | '.join(FAULTS)} | progress at each |", "| --- |" + " ---: |" * len(FAULTS) + " --- |"]
    for stage in CURRICULA[report["curriculum"]].stages:
        mine = [entry for entry in struck if entry["stage"] == stage.name]
        counts = [sum(entry["what"] == fault for entry in mine) for fault in FAULTS]
        lines.append(f"| {stage.name} | {' | '.join(map(str, counts))} | {', '.join(e['state'] for e in mine)} |")
    for name, key in (("tracebacks", "tracebacks"), ("did not leave", "hung")):
        counts = [sum(entry[key] for entry in struck if entry["what"] == fault) for fault in FAULTS]
        lines.append(f"| {name} | {' | '.join(map(str, counts))} | |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the drill; returns 0 if everything is equal and every program has left."""
    parser = argparse.ArgumentParser(prog="python -m tests.drill", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--curriculum", choices=CURRICULA, default="fq_dual", help="default: %(default)s")
    parser.add_argument("--kills", type=int, default=20, help="number of faults (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of their order and moments (default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="emptied first (default: runs/drill/<curriculum>)")
    options = parser.parse_args(arguments)
    directory = (options.directory or Path("runs/drill") / options.curriculum).absolute()
    report = Drill(directory, options.curriculum, options.kills, options.seed).run()
    wrong = [name for name, same in report["equal"].items() if not same]
    hung = any(entry["hung"] for entry in report["log"])
    print(f"\n{table(report)}\n")
    verdict = "all is equal" if not wrong else f"DIFFERENT: {', '.join(wrong)}"
    done = f"{options.curriculum}, seed {options.seed}: {options.kills} faults in {report['seconds'] / 60:.0f} min"
    print(f"{done}, {verdict}; {directory / 'drill.json'}")
    return 1 if wrong or hung else 0


if __name__ == "__main__":
    sys.exit(main())
