"""Checks that compare the configuration of a command with its checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn

from artifacts import yaml_files
from callbacks.checkpoint.ema import EMA
from callbacks.checkpoint.last_checkpoint import LastCheckpoint
from callbacks.checkpoint.random_state import RandomState
from callbacks.checkpoint.run_record import FIT, differences, recorded_model
from callbacks.measure.metrics_file import MetricsFile
from callbacks.steer.requeue import Requeue
from commands.processes import devices
from datamodules.resumable import ResumableDataModule
from polytoken.errors import UserError, first_line
from polytoken.layout import whole_of
from polytoken.loading import REMEDY, read_metadata, recorded_step
from polytoken.optimization import OptimizerConfig
from polytoken.ranges import above, at_least, within

SHOWN = 5
TRAINS = ("precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches", "sync_batchnorm")
LENGTH = "max_steps"
COUNTERS = {"ready", "started", "processed", "completed"}  # of Lightning's loops

# Settings that trade memory for time, and change numbers by rounding at most, so that a run that ran out of memory may
# resume with others; and those of validation alone.
NO_NUMBER_CHANGES = (
    ".trunk.checkpointing",  # keep or recompute activations
    ".trunk.compile",  # kernels
    "model.init_args.compile",
    "model.init_args.recompute_norms",
    ".init_args.max_matrix_elements",  # chunk size of the code look-up
    "model.init_args.metric_size",
)


def check_numbers(seed: int | bool | None, trainer: dict[str, Any]) -> None:
    """Raise SettingError for numbers that Lightning accepts or fails on with a traceback.

    Args:
        seed: `seed_everything`.
        trainer: The trainer's section.
    """
    within(0, 2**32 - 1, "cli", seed_everything=seed)
    above(0, "trainer", gradient_clip_val=trainer.get("gradient_clip_val"))
    counts = ("accumulate_grad_batches", "check_val_every_n_epoch")
    at_least(1, "trainer", **{name: trainer.get(name) for name in counts})
    if isinstance(interval := trainer.get("val_check_interval"), int | float):
        above(0, "trainer", val_check_interval=interval)


def check_devices(trainer: dict[str, Any]) -> None:
    """Raise UserError if a preset for several GPUs would start as many processes on a machine that has none.

    Args:
        trainer: The trainer's section.
    """
    count = devices(trainer) or 1
    launched = any(name in os.environ for name in ("LOCAL_RANK", "SLURM_PROCID"))  # by torchrun or srun, as asked
    if trainer.get("accelerator") == "auto" and count > 1 and not launched:
        if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
            raise UserError(
                f"trainer.devices is {count}, and this machine has no GPU: set --trainer.devices 1 "
                f"--trainer.strategy auto (make: DEVICES=1), or --trainer.accelerator cpu for {count} processes"
            )


def check_saves(trainer: Trainer, on_purpose: bool) -> None:
    """Raise UserError if nothing saves a fit, and warn if it lacks another callback of base.yaml, or its curves.

    Args:
        trainer: Of the fit.
        on_purpose: Whether `trainer.enable_checkpointing` is false.
    """
    lost = [kind.__name__ for kind in (LastCheckpoint, Requeue, RandomState, MetricsFile) if not _has(trainer, kind)]
    replaced = "a list under trainer.callbacks replaces that of configs/base.yaml, and `callbacks+` adds to it"
    if "LastCheckpoint" in lost and not on_purpose:
        raise UserError(
            f"nothing saves this run so that it could resume: it has no callbacks.LastCheckpoint ({replaced}). Add it, "
            "or train without checkpoints by --trainer.enable_checkpointing false"
        )
    if lost:
        rank_zero_warn(f"this run has no {', '.join(f'callbacks.{name}' for name in lost)}: {replaced}")
    if not any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        rank_zero_warn("this run has no TensorBoardLogger (trainer.logger), so the report shows no curves of it")


def _has(trainer: Trainer, kind: type[Callback]) -> bool:
    return any(isinstance(callback, kind) for callback in trainer.callbacks)


def check_drift(checkpoint: Path, model: dict[str, Any], subcommand: str) -> None:
    """Compare the model section of a checkpoint with that of this command.

    A difference outside NO_NUMBER_CHANGES raises UserError in fit. The other commands may sample or measure
    differently, so they only warn, as does any command whose checkpoint has no record.
    """
    recorded = recorded_model(checkpoint)
    if recorded is None:
        rank_zero_warn(f"{checkpoint} does not record its model section, so that it is not compared with this one.")
        return
    changed = [change for change in differences(recorded, model) if not change[0].endswith(NO_NUMBER_CHANGES)]
    if not changed:
        return
    lines = [f"  {key}: {_short(old)} -> {_short(new)}" for key, old, new in changed[:SHOWN]]
    if len(changed) > SHOWN:
        lines.append(f"  ... and {len(changed) - SHOWN} more")
    text = "\n".join([f"{checkpoint} was trained with a different model section (there -> here):", *lines])
    if subcommand == "fit":
        raise UserError(
            f"{text}\nRestore these values to resume the run, or set run.stage to a new name to start another one "
            "(make: RUN=name)."
        )
    rank_zero_warn(text)


def check_trainer_drift(checkpoint: Path, config: dict[str, Any]) -> None:
    """Warn if a resumed fit has other settings of its trainer than the run began with.

    Other precision, clipping or accumulation may be what the run needs. A longer one under a falling learning rate is
    a warm restart, and neither the shorter nor the longer run.

    Args:
        checkpoint: Of the run, next to whose checkpoints its first configuration lies.
        config: The whole configuration of this command.
    """
    file = checkpoint.parent.parent / FIT
    try:
        before = _of_training(yaml_files.read(file))
    except (OSError, UserError, LookupError, TypeError, AttributeError) as error:  # missing, or damaged
        rank_zero_warn(f"{file} cannot be read ({first_line(error)}), so its trainer is not compared with this one.")
        return
    now = _of_training(config)
    if changed := differences(before, now, "trainer"):
        shown = ", ".join(f"{key} {_short(old)} -> {_short(new)}" for key, old, new in changed)
        text = f"{file.parent} began with other settings (there -> here): {shown}."
        remedy = "For a run that has them from its first step, set run.stage to a new name (make: RUN=name)"
        if before.get(LENGTH) != now.get(LENGTH):
            text += f" {_restart(checkpoint, config, before[LENGTH])}"
            if "init_from" in config["model"]["init_args"]:
                remedy += f"; there, --model.init_from {file.parent} starts from these weights"
        rank_zero_warn(f"{text} {remedy}.")


def _restart(checkpoint: Path, config: dict[str, Any], length: int) -> str:
    """What the learning rates at the step of a checkpoint do in a run that began with `length` steps."""
    step, now = recorded_step(checkpoint) or 0, config["trainer"][LENGTH]
    schedules = {name: OptimizerConfig(**settings) for name, settings in _falling(config).items()}
    rates = [
        f"model.{name} {schedule.learning_rate_at(step, length):.1e} -> {schedule.learning_rate_at(step, now):.1e}"
        for name, schedule in schedules.items()
    ]
    return (
        f"Learning rates fall until trainer.max_steps (at step {step}: {', '.join(rates)}): a rise is a warm restart, "
        "and ends with the weights of neither length."
    )


def _of_training(config: dict[str, Any]) -> dict[str, Any]:
    """Settings of a trainer that the weights depend on, the averaging among them."""
    trainer = config["trainer"]
    found = {name: trainer.get(name) for name in (*TRAINS, *([LENGTH] if _falling(config) else []))}
    callbacks = trainer.get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if callback["class_path"].rpartition(".")[2] == EMA.__name__:
            ema = EMA(**(callback.get("init_args") or {}))  # with the defaults of settings that are newer than the run
            found[EMA.__name__] = {"modules": [*ema.modules], "decay": ema.decay, "warmup": ema.warmup}
    return found


def _falling(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of the optimizers whose learning rate falls until `trainer.max_steps`, by name."""
    parts = (config.get("model") or {}).get("init_args") or {}
    return {name: part for name, part in parts.items() if isinstance(part, dict) and part.get("schedule") == "cosine"}


def check_data(checkpoint: str | None, data: LightningDataModule | None, subcommand: str) -> None:
    """Raise UserError if a fit resumes with the batches of another class, which would begin at the first one."""
    if checkpoint is None or subcommand != "fit" or not isinstance(data, ResumableDataModule):
        return
    content, name = read_metadata(Path(checkpoint)), type(data).__qualname__
    known = [key for key, state in content.items() if isinstance(state, dict) and "batches_trained" in state]
    if known and name not in known:
        raise UserError(
            f"{checkpoint} was trained on the batches of {known[0]}, and data.class_path is a {name}: restore it to "
            "resume the run, or set run.stage to a new name to start another one"
        )


def check_counters(checkpoint: Path) -> None:
    """Raise UserError if a checkpoint's counters of batches, which Lightning takes over unread, are no numbers."""
    sections: list[Any] = [read_metadata(checkpoint).get("loops")]
    while sections:
        section = sections.pop()
        if not isinstance(section, dict):
            continue
        sections += section.values()
        for name in COUNTERS & section.keys():
            if not isinstance(section[name], int):
                raise UserError(f"{checkpoint} is broken: its counter {name} is {_short(section[name])}. {REMEDY}")


def check_shards(checkpoint: str | None, trainer: Trainer) -> None:
    """Raise UserError if a strategy that reads one file is given a sharded checkpoint."""
    path = Path(checkpoint or "")
    if checkpoint and path.is_dir() and not isinstance(trainer.strategy, ModelParallelStrategy):
        run = path.parent.parent
        raise UserError(
            f"{path} is a sharded checkpoint, which only ModelParallelStrategy reads (configs/cluster/fsdp.yaml): "
            f"resume with it, or make one file of it (make consolidate RUN={run}) and pass --ckpt_path "
            f"{whole_of(path)}"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
