"""`python -m experiments {run,show,status} EXPERIMENT --preset PRESET`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from commands.cli.places import nearest
from experiments import schedule, start, table
from experiments.adopt import adopt
from experiments.runner import Task, begun, check, check_reference, plan
from experiments.runs import ROOT, Run, nested
from experiments.specification import Experiment, load, names
from polytoken.errors import UserError


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("python -m experiments", description="The papers' tables.")
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "run": "run what is missing, --jobs at once; a second call goes on",
        "show": "print the table and the direction of each comparison, and write every figure as CSV and JSON",
        "status": "list what is done and what is missing",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("experiment", help=f"one of {', '.join(names())}, or the path of a YAML file")
        command.add_argument("--preset", help="data and sizes; by default the first that the experiment names")
        command.add_argument("--seeds", type=_positive, help="how many: 0, 1, ...; by default those begun, or one")
        command.add_argument("--root", type=Path, default=ROOT, help="directory of all runs (default: %(default)s)")
    run = commands.choices["run"]
    run.add_argument("--dry-run", action="store_true", help="print the commands")
    run.add_argument("--jobs", type=_positive, default=1, help="stages at once; they share the processors (1)")
    run.add_argument("--sbatch", metavar="OPTIONS", help="each stage a SLURM job: --sbatch='options of sbatch'")
    commands.choices["show"].add_argument("--markdown", action="store_true", help="print Markdown, for docs")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is 1 if a row failed, 2 for a mistake in the experiment's file."""
    given = parse(arguments)
    try:
        experiment = load(given.experiment)
        preset = given.preset or experiment.presets[0]
        experiment = experiment.at(preset)
        tasks = plan(experiment, preset, given.seeds or begun(experiment, preset, given.root), given.root)
        if given.command == "run":
            check(experiment, preset)
            if not given.dry_run:
                check_reference(tasks)
            return _run(experiment, preset, tasks, given)
        if given.command == "show":
            _show(experiment, preset, tasks, given)
        else:
            _status(tasks)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on", file=sys.stderr)
        return 130
    return 0


def _run(experiment: Experiment, preset: str, tasks: list[Task], given: argparse.Namespace) -> int:
    if not given.dry_run:
        for directory, hand in adopt(tasks).items():
            print(f"{hand} was made by hand and is what {directory} is to be")
    todo = schedule.missing(tasks)
    runs = [run for run, _ in todo.values()]
    print(
        f"{'# ' * given.dry_run}{len(runs)} stages to run{_estimate(runs, given.jobs if given.sbatch else 1)}",
        flush=True,
    )
    if given.dry_run:
        for run in runs:
            print(f"# {run.overrides}: {nested(run.stage.overrides)}")
            for command in run.commands():
                print(shlex.join(command))
        return 0
    for run, label in todo.values():
        start.write(run, label)
    schedule.make(todo, given.jobs, given.sbatch)
    every = plan(experiment, preset, begun(experiment, preset, given.root), given.root)
    table.write(_results(experiment, preset, given), experiment, preset, every)  # for the report
    stopped = [(task, next((run for run in task.runs if run.state() != "done"), None)) for task in tasks]
    failed = [
        f"  {task.row.label}, seed {task.seed}: {run.stage.stage}, {run.log}\n    {start.last_words(run.log)}"
        for task, run in stopped
        if run
    ]
    if failed:
        text = f"{len(failed)} of {len(tasks)} rows failed; the same command tries them again"
        print("\n".join([text, *failed]), file=sys.stderr)
    else:
        root = "" if given.root == ROOT else f" --root {given.root}"
        print(f"all {len(tasks)} rows are done; python -m experiments show {given.experiment} --preset {preset}{root}")
    return 1 if failed else 0


def _estimate(runs: list[Run], jobs: int) -> str:
    seconds = schedule.estimate(runs)
    return "" if seconds is None else f", about {start.clock(seconds / min(jobs, len(runs)))}"


def _show(experiment: Experiment, preset: str, tasks: list[Task], given: argparse.Namespace) -> None:
    file = _results(experiment, preset, given)
    content = table.write(file, experiment, preset, tasks)
    if given.markdown:
        print(table.markdown(content["tables"]))
        return
    found = {figure["metric"] for figure in content["figures"]}
    for metric in experiment.metrics:
        measured = {name for task in tasks for run in task.runs for name in run.metrics() or {}}
        if measured and metric.name not in found:
            print(f"no run has measured '{metric.name}'; nearest is {nearest(metric.name, measured)}", file=sys.stderr)
    table.rich(f"{experiment.title} ({preset})", content["tables"])
    print(f"every figure: {file}, and .json")


def _results(experiment: Experiment, preset: str, given: argparse.Namespace) -> Path:
    return given.root / "results" / f"{experiment.name}_{preset}.csv"


def _status(tasks: list[Task]) -> None:
    states = [(task, [run.state() for run in task.runs]) for task in tasks]
    for task, found in states:
        stages = ", ".join(f"{run.stage.stage} {state}" for run, state in zip(task.runs, found, strict=True))
        print(f"{task.row.label}, seed {task.seed}: {stages}  {task.runs[-1].directory}")
    runs = [run for run, _ in schedule.missing(tasks).values()]
    left = f"; {len(runs)} stages to run{_estimate(runs, 1)}" if runs else ""
    print(f"{sum(set(found) == {'done'} for _, found in states)} of {len(tasks)} rows done{left}")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got '{text}'")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
