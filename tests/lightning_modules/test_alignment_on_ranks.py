"""An aligned generator on two ranks, replicated or sharded, equals one rank with twice the batch."""

import sys
from pathlib import Path

import pytest

import cli
from commands.consolidate import consolidate
from tests.lightning_modules.test_generator_on_ranks import assert_alike, checkpoint_of
from tests.support.conditioned import conditioned
from tests.support.generator_recipes import GENERATOR
from tests.support.online import tiny_online, write_online_digits
from tests.support.ranks import run_on_ranks
from tests.support.recipes import CONFIGS

EQUAL = (
    *(part for name in ("resid", "ffn", "token", "class") for part in (f"--{GENERATOR}.trunk.{name}_dropout", "0")),
    *("--model.init_args.optimizer.learning_rate", "0.3", "--model.init_args.optimizer.schedule", "constant"),
    *("--model.code_alignment.width", "16"),
    *("--trainer.val_check_interval", "1", "--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu"),
)
SHARDED = ("--trainer.strategy.init_args.data_parallel_size", "2", f"--{GENERATOR}.trunk.compile", "false")


def fit(stage: str, *arguments: str) -> None:
    sys.argv = ["cli.py"]
    with conditioned():
        cli.main(["fit", *tiny_online("llamagen_repa", Path("codes")), *EQUAL, *arguments, "--run.stage", stage])


def two_ranks(rank: int) -> None:
    for stage, options in (("ddp", ()), ("fsdp", SHARDED)):
        fit(stage, "--config", str(CONFIGS / f"cluster/{stage}.yaml"), "--trainer.devices", "2", *options)


@pytest.mark.cluster
def test_two_ranks_equal_one_rank_with_twice_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    write_online_digits(tmp_path)
    fit("alone", "--data.init_args.batch_size", "16")
    run_on_ranks(two_ranks, tmp_path)
    consolidate(Path("runs/digits/fsdp/checkpoints/last.ckpt"))
    expected = checkpoint_of("alone")
    assert sum(name.startswith("alignment.") for name in expected["state_dict"]) == 6
    assert sum(name.startswith("code_alignment.") for name in expected["state_dict"]) == 12
    assert all(moment["exp_avg"].any() for moment in expected["optimizer_states"][0]["state"].values())
    for stage in ("ddp", "fsdp"):
        assert_alike(checkpoint_of(stage), expected)
