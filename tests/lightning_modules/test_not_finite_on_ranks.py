"""A non-finite value on one of two ranks: both skip the step, and the message names the rank."""

import copy
import logging
import sys
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

import cli
from polytoken.generators.autoregressive import AutoregressiveGenerator
from polytoken.guard import NonFiniteError
from tests.lightning_modules.test_tokenizer import batches, build
from tests.support.generator_recipes import tiny, write_digit_codes
from tests.support.ranks import run_on_ranks

REPORTED = "step 1: perceptual on rank 1 not finite, so this step was left out (1 in a row, 2 allowed)"


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


class Weights(pl.Callback):
    """Copies all weights after each batch."""

    def __init__(self) -> None:
        self.after: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_) -> None:
        self.after.append(copy.deepcopy({name: value.detach() for name, value in module.named_parameters()}))


def train_tokenizer(poison: set[int], rank: int) -> tuple[list[dict], str]:
    """Weights after each batch, and the error that ended it."""
    module = build(poison=poison if rank == 1 else {10**6}, max_nonfinite_steps=2)
    weights = Weights()
    trainer = pl.Trainer(
        max_steps=3,
        accelerator="cpu",
        devices=2,
        strategy="ddp_find_unused_parameters_true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=".",
        callbacks=[weights],
    )
    try:
        trainer.fit(module, batches(2, count=32))
    except NonFiniteError as error:
        return weights.after, str(error)
    return weights.after, ""


def train_generator(rank: int) -> list[dict]:
    """Weights after each of three updates; the second loss is non-finite on rank 1."""
    loss, calls, weights = AutoregressiveGenerator.loss, [], Weights()
    build_trainer = cli.CommandLine.instantiate_trainer

    def poisoned(self, *arguments, **options):
        calls.append(1)
        result = loss(self, *arguments, **options)
        if len(calls) != 2 or rank == 0:
            return result
        parts = {name: value * float("nan") for name, value in result.parts.items()}
        return replace(result, total=result.total * float("nan"), parts=parts)

    def with_weights(self, **options):
        trainer = build_trainer(self, **options)
        trainer.callbacks.append(weights)
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoregressiveGenerator, "loss", poisoned)
        patch.setattr(cli.CommandLine, "instantiate_trainer", with_weights)
        patch.setattr(sys, "argv", ["cli.py"])
        ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
        few = ["--trainer.max_steps", "3", "--trainer.limit_val_batches", "0", "--data.init_args.batch_size", "4"]
        cli.main(["fit", *tiny("stage1", Path("codes")), *ranks, *few])
    return weights.after


def two_ranks(rank: int) -> dict[str, object]:
    heard = Heard()
    logging.getLogger("polytoken.guard").addHandler(heard)
    result: dict[str, object] = {}
    result["tokenizer"], result["tolerated"] = train_tokenizer({2}, rank)
    _, result["ended"] = train_tokenizer(set(range(2, 100)), rank)
    result["generator"] = train_generator(rank)
    return {**result, "said": heard.said}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.cluster
def test_a_non_finite_value_on_one_rank_rejects_the_step_on_both(tmp_path: Path) -> None:
    write_digit_codes(tmp_path / "codes")
    first, second = run_on_ranks(two_ranks, tmp_path)
    for network, batches_trained in (("tokenizer", 4), ("generator", 3)):
        assert len(first[network]) == len(second[network]) == batches_trained
        for mine, theirs in zip(first[network], second[network], strict=True):
            assert equal(mine, theirs), "ranks stay together"
            assert all(value.isfinite().all() for value in mine.values())
        one, left_out, then = first[network][:3]
        assert equal(one, left_out) and not equal(left_out, then)
    assert first["tolerated"] == second["tolerated"] == ""
    said = "step 1: perceptual on rank 1 not finite, so this step was left out; 3 in a row is more than"
    assert first["ended"].startswith(said) and second["ended"] == first["ended"]
    assert first["said"][0] == REPORTED and second["said"] == [], "logged once"
    of_generator = first["said"][-1]
    assert of_generator.startswith("step 1: gradient on rank 0; nll/0, gradient on rank 1 not finite")
