"""Training and prediction: `python cli.py {fit,validate,test,predict} --config RECIPE.yaml --config PRESET.yaml`.

This file defines no class that YAML names: run as a program it is the module `__main__`, whose classes differ from
those imported from `cli`.
"""

from __future__ import annotations

import commands.cli.early  # isort: skip  # noqa: F401 - first: a Ctrl-C or a missing file ends in one line

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.distributed.checkpoint.api import CheckpointException

from artifacts import lock
from artifacts.checkpoint_files import SyncedCheckpointIO
from artifacts.origin import origin_of
from artifacts.repository import BASE_CONFIG
from callbacks.checkpoint.run_record import RunRecord
from callbacks.steer.rank_watch import RankWatch
from commands.cli.checks import (
    check_counters,
    check_data,
    check_devices,
    check_drift,
    check_saves,
    check_shards,
    check_trainer_drift,
)
from commands.cli.composed import dump, settle
from commands.cli.errors import Parser, explained, reordered, where, while_restoring
from commands.cli.noise import quiet
from commands.cli.places import check_files, config_files
from commands.cli.runs import (
    RunConfig,
    check_directory,
    divert_outputs,
    lock_outputs,
    place_outputs,
    resolve_checkpoint,
)
from lightning_modules.resuming import ResumingModule
from polytoken.errors import SettingError, UserError, first_line
from polytoken.files import is_full

LONGEST_WAIT = timedelta(days=1)  # of a rank for the others, where Lightning's half an hour is too short


class CommandLine(LightningCLI):
    """LightningCLI with run directories, strict resuming and short messages."""

    def __init__(self, args: list[str] | None = None) -> None:
        super().__init__(
            save_config_callback=None,  # it refuses to start a run a second time; RunRecord replaces it
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # RunRecord keeps the configuration instead
            parser_kwargs={name: {"default_config_files": [str(BASE_CONFIG)]} for name in self.subcommands()},
            parser_class=Parser,
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the section `run`."""
        parser.add_class_arguments(RunConfig, "run")

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str] | None) -> None:
        """Parse; an error of jsonargparse becomes a few lines."""
        arguments = reordered(sys.argv[1:] if args is None else args, self.subcommands())
        check_files(arguments)
        self.arguments = arguments
        with explained(arguments, self._subcommand_parsers):
            super().parse_arguments(parser, arguments)
        self.notes = settle(self.config[self.config.subcommand])

    def _parse_ckpt_path(self) -> None:
        """Do nothing: LightningCLI would read the whole checkpoint for hyperparameters, and let them override."""

    def text(self, command: str) -> str:
        """Return the whole configuration of a command as YAML."""
        return dump(self._parser(command), self.config[command])

    def before_instantiate_classes(self) -> None:
        """Resolve the run's directory and checkpoint, and compare the checkpoint with the configuration."""
        config = self.config[self.subcommand]
        check_devices(config["trainer"])
        for note in self.notes:
            rank_zero_info(f"note: {note}")
        run = RunConfig(**config["run"].as_dict())
        directory = run.directory
        if config["trainer"].get("fast_dev_run"):
            directory = divert_outputs(config)
            config["ckpt_path"] = None if self.subcommand == "fit" else config["ckpt_path"]
        else:
            check_directory(directory)
            lock_outputs(config, directory)
        place_outputs(config["trainer"], directory)
        if self.subcommand == "predict":
            config["return_predictions"] = False  # writers store them; Lightning would keep all of them in memory
        config["ckpt_path"] = resolve_checkpoint(config["ckpt_path"], run, self.subcommand)
        text = self.text(self.subcommand)
        composed = yaml.safe_load(text)
        model = composed.get("model") or {}
        if config["ckpt_path"]:
            check_drift(Path(config["ckpt_path"]), model, self.subcommand)
            check_counters(Path(config["ckpt_path"]))
            if self.subcommand == "fit":
                check_trainer_drift(Path(config["ckpt_path"]), composed)
        files = [BASE_CONFIG, *map(Path, config_files(self.arguments))]
        origin = origin_of(self.arguments, files, composed, directory)
        self.record = RunRecord(directory, self.subcommand, bool(config["ckpt_path"]), text, model, origin)
        if torch.cuda.is_available():
            # Allow TF32 for training; code extraction and metrics disable it (polytoken.precision)
            torch.set_float32_matmul_precision("high" if self.subcommand in ("fit", "validate") else "highest")

    def instantiate_classes(self) -> None:
        """Build everything; an error of a constructor is raised as it is, without jsonargparse's tree around it."""
        try:
            super().instantiate_classes()
        except (ValueError, MemoryError, RuntimeError, ModuleNotFoundError) as error:
            causes: list[BaseException] = [error]
            while isinstance(error, ValueError) and causes[-1].__cause__ is not None:
                causes.append(causes[-1].__cause__)
            # one of our own errors may itself have a library's error as its cause
            cause = next((cause for cause in causes if isinstance(cause, UserError)), causes[-1])
            if isinstance(cause, MemoryError) or "allocate memory" in str(cause):
                raise UserError(f"the memory of this machine does not hold the model or the data: {cause}") from cause
            if isinstance(cause, ModuleNotFoundError):  # of an optional package, such as W&B's
                raise UserError(f"the configuration names a class whose package is missing: {cause}") from cause
            raise cause from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the record of the run, and the watch over the other ranks, to the trainer's callbacks."""
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except UserError:
            raise
        except (ValueError, TypeError, RuntimeError) as error:  # raised by Trainer(...) about an argument or callback
            raise UserError(str(error)) from error
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            # not as a plugin in YAML: the sharding strategies refuse one, and lists of plugins replace each other
            trainer.strategy.checkpoint_io = SyncedCheckpointIO()
        if self.subcommand == "fit" and not trainer.fast_dev_run:
            check_saves(trainer, self.config.fit.trainer.enable_checkpointing is False)
        if self.subcommand in ("test", "predict") and getattr(trainer.strategy, "_timeout", None) == default_pg_timeout:
            # ranks that generate or encode have different numbers of batches, and wait for the slowest in the end
            trainer.strategy._timeout = LONGEST_WAIT  # private: no public name after the strategy is built
        trainer.callbacks = [self.record, *trainer.callbacks, RankWatch()]
        return trainer

    def after_instantiate_classes(self) -> None:
        """Check command, strategy and data, and tell a generator early which checkpoint it restores."""
        if self.subcommand == "predict" and not is_overridden("predict_step", self.model, LightningModule):
            raise UserError(  # Lightning would call forward() and drop what it returns
                f"predict stores tokens or draws images, and {type(self.model).__name__} does neither: take "
                "configs/tokens.yaml (make tokens) or configs/sample.yaml (make sample) with its run"
            )
        checkpoint = self.config[self.subcommand]["ckpt_path"]
        check_shards(checkpoint, self.trainer)
        check_data(checkpoint, self.datamodule, self.subcommand)
        if isinstance(self.model, ResumingModule):
            self.model.resumes_from = checkpoint

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command; an error during the restore is reported as a broken checkpoint."""
        try:
            super()._run_subcommand(subcommand)
        except (Exception, CheckpointException) as error:
            if isinstance(error, UserError) or not while_restoring(error):
                raise
            # of a sharded checkpoint, no Exception: a summary of the ranks' own errors
            cause = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
            raise UserError(
                f"{self.config[subcommand]['ckpt_path']} cannot be restored, since its records are broken "
                f"({type(cause).__name__}: {first_line(cause)}): name an earlier "
                "checkpoint of the run by --ckpt_path, or delete the run's directory to start over"
            ) from error

    def after_fit(self) -> None:
        """Validate the final weights, since the last validation of the fit may be some steps older; mark the end."""
        measures = is_overridden("validation_step", self.model, LightningModule)
        if measures and is_overridden("val_dataloader", self.datamodule, LightningDataModule):
            self.trainer.validate(self.model, self.datamodule, verbose=False)
        self.record.finish(self.trainer, self.model)

    def after_predict(self) -> None:
        """Mark the stage as finished."""
        self.record.finish(self.trainer, self.model)


def main(args: list[str] | None = None) -> None:
    """Run one command; a mistake of the user is printed in a few lines, with exit code 2."""
    quiet()
    try:
        CommandLine(args)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # which Lightning has turned into code 1
            raise stop.__context__ from None
        raise
    except Exception as error:
        if not isinstance(error, UserError | MisconfigurationException):
            if not is_full(error):  # a fault of the code
                raise
            # elsewhere than in our own writers, such as TensorBoard's events
            reason = error.__cause__ or error
            error = UserError(f"a file of the run cannot be written: {reason}. Earlier files are whole: make room")
        place = where(error, sys.argv[1:] if args is None else args) if isinstance(error, SettingError) else ""
        print(f"error: {error}{place}", file=sys.stderr)
        lock.abandon()
        sys.exit(2)
    finally:
        lock.release_all()


if __name__ == "__main__":
    main()
