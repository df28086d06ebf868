"""Profile of a run: `python -m commands.profile runs/digits/stage2/fq_dual` (make profile RUN=…).

Repeats some steps of a fit, from its last checkpoint, or some batches of a prediction, on one device. Prints where
their time goes, and writes a trace for Perfetto or TensorBoard into `<run>/profile/`. Nothing else of the run changes.
See docs/speed.md, "Finding where the time goes".
"""

from __future__ import annotations

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # isort: skip - read when torch is imported: the tracer's own messages

import warnings
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

from artifacts import lock, yaml_files
from callbacks.steer.requeue import Requeue
from callbacks.steer.text_progress import TextProgress
from commands.cli.noise import quiet
from commands.cli.runs import divert_outputs
from commands.program import new_parser, run, whole_number
from commands.step_window import StepsTracedError, StepWindow
from commands.trace import Figures, figures, read_events
from polytoken.errors import MissingFileError, UserError
from polytoken.loading import checkpoint_path

FOLDER = "profile"
UNREACHED = 1 << 30  # the repetition ends itself, and a finished run is at its last step
OF_A_WHOLE_RUN = (Checkpoint, Requeue, TextProgress)  # callbacks that save a run, or print how long it takes
STEPS = {"fit": 5, "predict": 1}
CONFIGS = {"fit": "config.yaml", "predict": "config_predict.yaml"}


def command_of(directory: Path) -> str:
    """The command that has made a run: fit or predict.

    Raises:
        MissingFileError: there is no such directory.
        UserError: it is no run.
    """
    if not directory.is_dir():
        raise MissingFileError(f"there is no {directory}: name the directory of a run, as `make status` lists them")
    for command, name in CONFIGS.items():
        if (directory / name).is_file():
            return command
    raise UserError(
        f"{directory} is no run: it has neither {' nor '.join(CONFIGS.values())}. Name the directory of a fit or of a "
        "prediction, such as runs/digits/stage2/fq_dual or runs/digits/samples/fq_dual"
    )


def repetition(directory: Path, command: str) -> dict[str, Any]:
    """The configuration of a run, changed so that it continues on one device and writes into a temporary directory.

    Raises:
        UserError: if it cannot be read.
    """
    config = yaml_files.read(directory / CONFIGS[command])
    if not isinstance(config, dict) or not all(isinstance(config.get(part), dict) for part in ("trainer", "run")):
        raise UserError(f"{directory / CONFIGS[command]} has no sections `trainer` and `run`: name a run of cli.py")
    elsewhere = divert_outputs(config)
    trainer = config["trainer"]
    trainer.update(
        accelerator="auto", devices=1, num_nodes=1, strategy="auto", limit_val_batches=0, enable_progress_bar=False
    )
    trainer["default_root_dir"] = None
    if trainer.get("logger"):  # a remote one would begin a run there
        curves = {"save_dir": str(elsewhere), "name": "", "version": ""}
        trainer["logger"] = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": curves}
    config["run"]["root"] = str(elsewhere)
    if command == "fit":
        trainer["max_steps"] = UNREACHED
        last = checkpoint_path(directory)
        config["ckpt_path"] = str(last) if last.is_file() else None
    return config


def profile(directory: Path, command: str, steps: int) -> tuple[Figures, float, Path]:
    """Repeat steps of a run; returns the figures of a traced step, milliseconds of one without a trace, and the trace.

    Args:
        directory: of the run.
        command: fit or predict.
        steps: traced ones; twice as many run before.

    Raises:
        UserError: if inputs of the run are gone, or if it is shorter than the steps.
    """
    from cli import CommandLine  # takes ten seconds

    path = directory / FOLDER / f"{command}.pt.trace.json.gz"  # the name that TensorBoard looks for
    window = StepWindow(steps, path)

    class Repetition(CommandLine):
        def instantiate_trainer(self, **kwargs: Any) -> Trainer:
            trainer = super().instantiate_trainer(**kwargs)
            kept = [callback for callback in trainer.callbacks if not isinstance(callback, OF_A_WHOLE_RUN)]
            trainer.callbacks = [*kept, window]
            return trainer

    config = repetition(directory, command)
    file = Path(config["run"]["root"]) / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    quiet()
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint.*")  # those that save
    try:
        Repetition([command, "--config", str(file)])
    except StepsTracedError:
        return figures(read_events(path), steps), window.milliseconds, path
    finally:
        lock.release_all()
    raise UserError(
        f"{directory} ends before {3 * steps} batches, of which the last {steps} would be traced: take fewer STEPS, or "
        "profile a prediction of more batches"
    )


def lines(found: Figures, milliseconds: float) -> Iterator[str]:
    """A line for each figure of a step, and for each of the heaviest operators.

    Args:
        found: of the traced steps.
        milliseconds: of a step that was not traced.
    """
    on_gpu = found.idle is not None
    waits = ", ".join(f"{name} {count:g}" for name, count in found.synchronisations.items())
    yield _line("time", f"{milliseconds:.2f} ms", f"{found.milliseconds:.2f} ms while it is traced")
    yield _line("waiting for a batch", f"{found.loading:.2f} ms")
    yield _line("operators dispatched", f"{found.operators:,.0f}")
    yield _line("host synchronisations" if on_gpu else "reads by the host", f"{found.waits:g}", waits)
    if found.idle is None:
        yield _line("GPU", "none", "idle time, launches and synchronisations are not measured")
    else:
        yield _line("idle GPU", f"{found.idle:.1%}", "of the traced time; tracing slows the host")
        yield _line("launches", f"{found.launches:,.0f}", f"of {found.kernels:,.0f} kernels")
        yield _line("copies to the host", f"{found.copies_to_host:g}")
    by = "the time of their kernels" if on_gpu else "their own time"
    yield f"the {len(found.heaviest)} heaviest operators, by {by}:"
    for one in found.heaviest:
        calls = f"{one.calls:,.0f} {'kernels' if on_gpu else 'calls'}"
        yield f"  {one.milliseconds:>9.3f} ms {one.share:>6.1%} {calls:>14}  {one.name}"


def _line(name: str, value: str, remark: str = "") -> str:
    return f"  {name:<22}{value:>12}  {remark}".rstrip()


def work(given: Namespace) -> None:
    """Profile a run, and print the figures and the path of the trace."""
    command = command_of(given.run)
    steps = STEPS[command] if given.steps is None else given.steps
    found, milliseconds, path = profile(given.run, command, steps)
    print(f"a {'step' if command == 'fit' else 'batch'} of {given.run}, mean of {steps}:")
    for line in lines(found, milliseconds):
        print(line)
    print(f"the trace is {path}: open it at https://ui.perfetto.dev, or see docs/speed.md")


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.profile", __doc__)
    parser.add_argument("run", type=Path, help="directory of a fit or of a prediction")
    parser.add_argument(
        "--steps",
        type=whole_number(1),
        help=f"traced steps; by default {STEPS['fit']}, of a prediction {STEPS['predict']}",
    )
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
