"""Directory of a run, and the checkpoint that a command reads."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from artifacts import lock
from artifacts.checkpoint_files import BEST, candidates, fault
from polytoken.errors import UserError
from polytoken.files import is_file_name
from polytoken.layout import CHECKPOINTS, LAST


@dataclass(frozen=True)
class RunConfig:
    """Directory of a run: `<root>/<preset>/<stage>`.

    Args:
        root: Directory of all runs.
        preset: Name of the data and the sizes: digits, photos, imagenet.
        stage: What is trained, usually `<stage>/<recipe>`: tokenizer/fq_dual.
    """

    root: str = "runs"
    preset: str = "default"
    stage: str | None = None

    @property
    def directory(self) -> Path:
        """The run's directory; raises UserError if the stage is not set or leads out of the root."""
        if not self.stage:
            raise UserError(
                "run.stage is not set, so this run has no directory: give the recipe a section "
                "`run: {stage: tokenizer/my_recipe}`, or add --run.stage tokenizer/my_recipe."
            )
        for name, value in (("run.preset", self.preset), ("run.stage", self.stage)):
            place = PurePosixPath(value)
            if place.is_absolute() or ".." in place.parts or not place.parts:
                raise UserError(f"{name} is '{value}', which leads out of run.root: use a plain relative name.")
            if not all(map(is_file_name, place.parts)):
                raise UserError(
                    f"{name} is {value[:60]!r}, and no directory can have this name: use a shorter, plain one"
                )
        return Path(self.root) / self.preset / self.stage

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint that the run resumes from, which may not exist yet."""
        return self.directory / CHECKPOINTS / LAST


def check_directory(directory: Path) -> None:
    """Raise UserError if a run's directory cannot be written or created; creates nothing."""
    place = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    own = os.access in os.supports_effective_ids
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK, effective_ids=own):
        reason = "may not be written by this user" if place.is_dir() else "is a file"
        raise UserError(
            f"the run's directory {directory} cannot be written: {place} {reason}. Make it a writable directory, or "
            "choose another place by run.root"
        )
    try:  # some file systems, such as /proc, only say that they are writable
        os.rmdir(tempfile.mkdtemp(prefix=".writable_", dir=place))
    except OSError as error:
        raise UserError(
            f"the run's directory {directory} cannot be made in {place}: {error.strerror}. Choose another run.root"
        ) from error


def lock_outputs(config: Any, directory: Path) -> None:
    """Hold a run's directory, and the files of weights that its model writes; one rank does so for all.

    Raises UserError if another process writes there.
    """
    # Lightning reads the rank when it is imported, which may be before a launcher of processes has set it
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else rank_zero_only.rank
    first = rank == 0 and os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")) == "0"
    if first:
        lock.hold(directory)
        for section, name in _outputs(config):
            lock.hold(Path(section[name]), is_file=True)


def divert_outputs(config: Any) -> Path:
    """A temporary directory in place of the run's, for a trial (`trainer.fast_dev_run`) that must change nothing.

    The directory is removed when the process ends.
    """
    directory = Path(tempfile.mkdtemp(prefix="fast_dev_run_"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    callbacks = config["trainer"].get("callbacks")
    for callback in callbacks if isinstance(callbacks, list) else []:
        if (arguments := callback.get("init_args")) and arguments.get("output"):
            arguments["output"] = None  # the run's directory
    for section, name in _outputs(config):
        section[name] = str(directory / Path(section[name]).name)
    return directory


def _outputs(config: Any) -> Iterator[tuple[Any, str]]:
    """The model's arguments that name a file of weights to be written, such as a judge's."""
    arguments = (config.get("model") or {}).get("init_args") or {}
    yield from ((arguments, name) for name in ("output", "text_output") if arguments.get(name))


def place_outputs(trainer: Any, directory: Path) -> None:
    """Fill the empty directories of the trainer's section: root directory, loggers and checkpoints."""
    trainer["default_root_dir"] = trainer.get("default_root_dir") or str(directory)
    loggers = trainer.get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if _has_open(logger, "save_dir"):
            logger["init_args"]["save_dir"] = str(directory)
    callbacks = trainer.get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    for callback in callbacks:
        if _has_open(callback, "dirpath"):
            callback["init_args"]["dirpath"] = str(directory / CHECKPOINTS)
    # two callbacks of base.yaml raise if the logger or the progress bar is off
    unwanted = ("LearningRateMonitor",) if loggers is False else ()
    unwanted += ("StepProgressBar",) if trainer.get("enable_progress_bar") is False else ()
    if unwanted:
        trainer["callbacks"] = [c for c in callbacks if not str(c.get("class_path")).endswith(unwanted)]


def resolve_checkpoint(ckpt_path: str | None, run: RunConfig, subcommand: str) -> str | None:
    """The file that `ckpt_path` means; `last` and `best` are those of the run, and a first fit has no last one.

    If the last one is truncated or damaged, the one before it is used, with a warning.

    Raises UserError if the file does not exist or cannot be read.
    """
    if ckpt_path is None:
        return None
    if ckpt_path == "last":
        return _last_readable(run.last_checkpoint, subcommand)
    path = run.last_checkpoint.with_name(BEST) if ckpt_path == "best" else Path(ckpt_path)
    if not path.exists():
        remedy = ": a run keeps its best one if callbacks.LastCheckpoint has a monitor" if ckpt_path == "best" else ""
        raise UserError(f"ckpt_path is '{ckpt_path}', and there is no {path}{remedy}.")
    if (reason := fault(path)) is not None:
        raise UserError(f"{path} cannot be read: {reason}. Restore it, or name another file by --ckpt_path")
    return str(path)


def _last_readable(last: Path, subcommand: str) -> str | None:
    """The newest intact checkpoint; None if the command is fit and none exists."""
    faults = []
    for path in candidates(last.parent):
        if (reason := fault(path)) is None:
            if faults:
                rank_zero_warn(f"{'; '.join(faults)}. {subcommand} uses {path} instead.")
            return str(path)
        faults.append(f"{path} cannot be read: {reason}")
    if faults:
        raise UserError(
            f"{'; '.join(faults)}. No checkpoint of this run is intact: restore one, "
            f"or delete {last.parent} to start over."
        )
    if subcommand == "fit":
        return None
    raise UserError(
        f"{subcommand} needs a trained model, and there is no {last}: run fit with the same configs first, "
        "name a file by --ckpt_path, or ask for untrained weights by --ckpt_path null."
    )


def _has_open(component: Any, argument: str) -> bool:
    """True if a `class_path` entry has this argument, and it is empty."""
    if not hasattr(component, "get") or not component.get("init_args"):
        return False
    arguments = component["init_args"]
    return argument in arguments and arguments[argument] in (None, "")
