"""`python -m experiments {run,show,…} EXPERIMENT --preset PRESET`: run and show tables of the papers."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path

from artifacts.results import Table
from commands.cli.places import nearest
from commands.program import print_any_name, whole_number
from experiments import contrasts, schedule, start, table
from experiments.adopt import adopt, release
from experiments.check import check, check_files
from experiments.power import power
from experiments.specification import Experiment, load, names
from experiments.tasks import ROOT, Task, expand, nested
from polytoken.errors import UserError

HELP = {
    "run": "run what is missing, --jobs at once; a second call continues",
    "show": "print the table and the direction of each comparison, and write all results as CSV and JSON",
    "status": "list what is done and what is missing",
    "correlate": "print the rank correlation of each metric with one, over the rows",
    "plot": "draw one metric over another: a point for each row, with its deviation over the seeds",
    "power": "print how many seeds decide an effect as large as the paper's, by the noise of the seeds that are done",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main_parser = argparse.ArgumentParser("python -m experiments", description="Tables of the papers.")
    commands = main_parser.add_subparsers(dest="command", required=True)
    for name, text in HELP.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("experiment", help=f"one of {', '.join(names())}, or the path of a YAML file")
        command.add_argument("--preset", help="data and sizes (default: the first that the experiment names)")
        command.add_argument(
            "--seeds", type=whole_number(1), help="number of seeds from 0 on (default: those begun, or 1)"
        )
        command.add_argument("--root", type=Path, default=ROOT, help="directory of all runs (default: %(default)s)")
    run = commands.choices["run"]
    run.add_argument("--dry-run", action="store_true", help="print the commands")
    run.add_argument(
        "--jobs", type=whole_number(1), default=1, help="stages at once; they share processors (default: 1)"
    )
    run.add_argument("--sbatch", metavar="OPTIONS", help="submit each stage as a SLURM job: --sbatch='OPTIONS'")
    commands.choices["correlate"].add_argument(
        "--with", dest="target", required=True, metavar="METRIC", help="a column"
    )
    plot = commands.choices["plot"]
    plot.add_argument("picture", type=Path, help="file to write, .png, .svg or .pdf")
    for axis in "xy":
        plot.add_argument(f"--{axis}", required=True, metavar="METRIC", help="a column")
    for name in ("show", "power", "correlate"):
        commands.choices[name].add_argument("--markdown", action="store_true", help="print Markdown, for docs")
    commands.choices["show"].add_argument(
        "--against", metavar="ROW", help="print the change of every other row from this one in place of the tables"
    )
    commands.add_parser("list", help="list the experiments and their presets")
    return main_parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is 1 if a row failed, 2 for a mistake in the experiment's file."""
    print_any_name()
    options = parser().parse_args(arguments)
    try:
        if options.command == "list":
            return _list()
        experiment = load(options.experiment, options.preset)
        _release(expand(experiment, root=options.root))  # the results are written for all seeds
        tasks = expand(experiment, options.seeds, options.root)
        _warn(tasks)
        return COMMANDS[options.command](experiment, tasks, options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped: the same command continues", file=sys.stderr)
        return 130


def _release(tasks: list[Task]) -> None:
    """Remove the links of changed runs, and name those that stay: other people's results may only be read."""
    for directory, error in release(tasks).items():
        reason = error.strerror or error
        print(
            f"warning: {directory} links to a run that has changed since, and cannot be removed ({reason}): its "
            "numbers are not those of this experiment, so remove the link",
            file=sys.stderr,
        )


def _warn(tasks: list[Task]) -> None:
    """Name the stages that were made from an input that was made again since."""
    runs = {run.directory: run for task in tasks for run in task.runs}
    for run in runs.values():
        if place := run.outdated:
            print(
                f"warning: {place} was made again since {run.directory} was made from it: delete the latter, and `run` "
                "makes it again",
                file=sys.stderr,
            )


def _list() -> int:
    width = max(map(len, names())) + 2
    for name in names():
        experiment = load(name)
        print(f"{name:<{width}}{experiment.title}  ({', '.join(experiment.presets)})")
    return 0


def _run(experiment: Experiment, tasks: list[Task], options: argparse.Namespace) -> int:
    named = check(experiment)
    if not options.dry_run:
        check_files(tasks, named)
        for directory, by_hand in adopt(tasks).items():
            print(f"reusing {by_hand} for {directory} (same configuration)")
    todo = schedule.missing(tasks)
    runs = [run for run, _ in todo.values()]
    summary = f"{len(runs)} stages to run{schedule.estimate(runs, options.jobs if options.sbatch else 1)}"
    if options.dry_run:
        print(f"# {summary}")
        for run in runs:
            print(f"# {run.overrides}: {nested(run.stage.overrides)}", *map(shlex.join, run.commands()), sep="\n")
        return 0
    print(summary, flush=True)
    schedule.run_all(todo, options.jobs, options.sbatch)
    _write(experiment, options)
    failed = [(task, task.missing) for task in tasks if task.missing]
    if failed:
        print(f"{len(failed)} of {len(tasks)} rows failed; the same command tries them again", file=sys.stderr)
        for task, run in failed:
            words = start.last_words(run.log)
            print(f"  {task.row.label}, seed {task.seed}: {run.stage.kind}, {run.log}\n    {words}", file=sys.stderr)
        return 1
    root = "" if options.root == ROOT else f" --root {options.root}"
    command = f"python -m experiments show {options.experiment} --preset {experiment.preset}{root}"
    print(f"all {len(tasks)} rows are done; {command}")
    return 0


def _show(experiment: Experiment, tasks: list[Task], options: argparse.Namespace) -> int:
    file, found = _write(experiment, options), table.results(experiment, tasks)
    tables = found.tables
    if options.against:
        tables = contrasts.tables(experiment.compared_with(options.against), found.records)
    if options.markdown:
        print(table.markdown(tables))
        return 0
    measured = {name for task in tasks for run in task.runs for name in run.metrics()}
    for metric in experiment.metrics:
        if measured and metric.name not in {record.metric for record in found.records}:
            print(f"no run has measured '{metric.name}'; nearest is {nearest(metric.name, measured)}", file=sys.stderr)
    table.show(f"{experiment.title} ({experiment.preset})", tables)
    print(f"all results: {file}, and .json")
    return 0


def _status(experiment: Experiment, tasks: list[Task], options: argparse.Namespace) -> int:
    for task in tasks:
        stages = ", ".join(f"{run.stage.kind} {run.state}" for run in task.runs)
        print(f"{task.row.label}, seed {task.seed}: {stages}  {task.runs[-1].directory}")
    runs = [run for run, _ in schedule.missing(tasks).values()]
    left = f"; {len(runs)} stages to run{schedule.estimate(runs)}" if runs else ""
    print(f"{sum(task.missing is None for task in tasks)} of {len(tasks)} rows done{left}")
    return 0


def _power(experiment: Experiment, tasks: list[Task], options: argparse.Namespace) -> int:
    if not any(metric.paper for metric in experiment.metrics):
        raise UserError(f"{experiment.name} has no numbers of a paper, whose effects power is about: see show")
    found = power(table.results(experiment, tasks).comparisons)
    if not found.rows:
        raise UserError("there is no pair of rows with two seeds that the paper compares: run --seeds 3 first")
    return _print(found, experiment, options)


def _correlate(experiment: Experiment, tasks: list[Task], options: argparse.Namespace) -> int:
    from experiments.correlate import correlate  # scipy.stats imports torch, which a start of a stage must not

    found = correlate(experiment, table.results(experiment, tasks).records, options.target)
    if not found.rows:
        raise UserError("there is no metric that four rows have together with this one: run the experiment first")
    return _print(found, experiment, options)


def _plot(experiment: Experiment, tasks: list[Task], options: argparse.Namespace) -> int:
    from experiments.plot import plot, save

    figure = plot(experiment, table.results(experiment, tasks).records, options.x, options.y)
    save(figure, options.picture)
    print(options.picture)
    return 0


def _print(found: Table, experiment: Experiment, options: argparse.Namespace) -> int:
    if options.markdown:
        print(table.markdown([found]))
    else:
        table.show(f"{experiment.title} ({experiment.preset})", [found])
    return 0


def _write(experiment: Experiment, options: argparse.Namespace) -> Path:
    """Write the results of all seeds for the report, whatever --seeds names; returns the file."""
    file: Path = options.root / "results" / f"{experiment.name}_{experiment.preset}.csv"
    table.write(file, table.results(experiment, expand(experiment, root=options.root)))
    return file


COMMANDS = {
    "run": _run,
    "show": _show,
    "status": _status,
    "power": _power,
    "correlate": _correlate,
    "plot": _plot,
}

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.exit(main())
