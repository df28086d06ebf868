"""Tokenizer recipes and generator recipes put together: untrained tokenizers, two steps of a generator, one image."""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path
from unittest import mock

import torch
from lightning.pytorch import Trainer
from PIL import Image

import cli
from callbacks import TokenWriter
from callbacks.checkpoint.run_record import RunRecord
from datamodules import DigitsSource, ImageDataModule, Views
from datamodules.sources.base import Split
from datamodules.sources.digits import DigitsRecords
from datamodules.stored import StoredTokens
from lightning_modules import ExtractionModule
from polytoken.layout import CHECKPOINTS, LAST
from polytoken.pipeline import GenerationPipeline
from polytoken.sampling import SamplerSettings
from tests.support.commands import exit_code
from tests.support.generator_recipes import TRUNK
from tests.support.recipes import CONFIGS, digits, preset_files

COUNTS: dict[Split, int] = {"train": 16, "validation": 8}
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class FewDigits(DigitsSource):
    """The first digits of each split."""

    def split(self, name: Split) -> DigitsRecords:
        all_digits, few = super().split(name), slice(COUNTS[name])
        return DigitsRecords(all_digits.pixels[few], all_digits.labels[few], all_digits.rows[few], self.size)


def write_tokens(recipe: str, judge: Path) -> Path:
    """Run of an untrained tokenizer under the digits preset, and the tokens of a few digits: the store."""
    command = _composed(digits(recipe, judge))
    run = Path("runs/digits/tokenizer") / recipe
    trainer = _trainer(command, run)
    trainer.strategy.connect(command.model)
    trainer.save_checkpoint(run / CHECKPOINTS / LAST)
    store = Path("runs/digits/tokens") / recipe
    writer = Trainer(**QUIET, callbacks=[TokenWriter(str(store), images_per_shard=16)])
    images = ImageDataModule(FewDigits(), 32, batch_size=16, num_workers=0, views=Views())
    writer.predict(ExtractionModule(str(run)), images, return_predictions=False)
    return store


def generator(recipe: str, store: Path, head: str | None = None) -> cli.CommandLine:
    """A generator recipe under the digits preset, composed with a trunk of a few channels."""
    files = [str(CONFIGS / f"{recipe}.yaml"), *preset_files(recipe, "digits", "generator")]
    arguments = [part for file in files for part in ("--config", file)]
    arguments += ["--model.generator.trunk", TRUNK, "--data.store", str(store)]
    arguments += ["--data.batch_size", "8", "--data.num_workers", "0"]
    if "OnlineTokenDataModule" in "".join(Path(file).read_text() for file in files):
        arguments += ["--data.source", f"{__name__}.{FewDigits.__name__}"]
    if head is not None:
        arguments += ["--model.generator.head", f"polytoken.generators.{head}"]
    return _composed(arguments)


def drawn(command: cli.CommandLine, store: Path) -> Image.Image:
    """An image that a generator draws after two steps on a store; raises as :func:`trained` does."""
    run = trained(command, store, steps=2)
    pipeline = GenerationPipeline.from_run(run)
    steps = 2 if pipeline.network.models == "latents" else None
    return pipeline.sample(["3"], sampler=SamplerSettings(guidance=1.5, steps=steps))[0]


def trained(command: cli.CommandLine, store: Path, steps: int) -> Path:
    """Run of a generator after some steps on a store; after none it is connected to the tokens.

    Raises:
        UserError: if the generator does not fit the tokens.
    """
    section = command.config["fit"]["data"]
    arguments = section.init_args.as_dict() | {"store": str(store)}
    if "source" in arguments:
        arguments["source"] = FewDigits()
    data = type(command.datamodule)(**arguments)
    assert isinstance(data, StoredTokens)
    run = Path("runs/digits/generator")
    trainer = _trainer(command, run, max_steps=steps, limit_val_batches=0, gradient_clip_val=1.0)
    torch.manual_seed(0)
    trainer.fit(deepcopy(command.model), data)
    assert trainer.global_step == steps
    if steps:
        trainer.save_checkpoint(run / CHECKPOINTS / LAST)
    return run


def _trainer(command: cli.CommandLine, run: Path, **changes: float) -> Trainer:
    """A trainer that writes into a run, whose checkpoints name the model of a command."""
    record = RunRecord(run, "fit", False, "", command.record.model)
    return Trainer(**QUIET, default_root_dir=run, callbacks=[record], **changes)


def _composed(arguments: list[str]) -> cli.CommandLine:
    """A command line before its fit, of which everything is built."""
    made: list[cli.CommandLine] = []

    def stop(command: cli.CommandLine) -> None:
        made.append(command)
        raise SystemExit(0)

    with (
        mock.patch.object(cli.CommandLine, "before_fit", stop, create=True),
        mock.patch.object(sys, "argv", ["cli.py"]),
    ):
        assert exit_code("fit", *arguments) == 0
    return made[0]
