"""Two steps of every family of recipes on two ranks, by the command line with the files of configs/cluster."""

import sys
from pathlib import Path

import pytest
import torch

import cli
from commands.consolidate import consolidate
from polytoken.generators import FlowMatching
from polytoken.loading import Checkpoint
from tests.support.conditioned import conditioned
from tests.support.generator_recipes import GENERATOR, tiny, write_digit_codes, write_scale_codes
from tests.support.ranks import run_on_ranks
from tests.support.recipes import CONFIGS, digits, write_judge

pytestmark = pytest.mark.cluster

JUDGE = Path("runs/digits/teacher/judge.safetensors")
TOKENIZERS = ("vq", "fq_triple", "fsq", "ae", "vae")
GENERATORS = (
    "llamagen",
    "stage1",
    "far_base",
    "dit",
    "next_scale",
)  # stage2: tests/lightning_modules/test_generator_on_ranks.py
QUICK = (
    *("--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.limit_val_batches", "1"),
    *("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"),
)
# no rank-specific random numbers, and steps proportional to the gradients
DROPOUTS = {"dit": ("class_dropout",), "next_scale": ("class_dropout", "stochastic_depth")}
EQUAL = ("--model.optimizer.learning_rate", "0.3", "--model.optimizer.schedule", "constant")
OVERLAYS = {
    "ddp": (),
    "fsdp": (
        "--trainer.strategy.data_parallel_size",
        "2",
        f"--{GENERATOR}.trunk.compile",
        "false",
    ),
}


def fit(*arguments: str) -> torch.nn.Module:
    sys.argv = ["cli.py"]
    with conditioned():
        return cli.CommandLine(["fit", *arguments]).model


def over_two(name: str) -> tuple[str, ...]:
    return ("--config", str(CONFIGS / f"cluster/{name}.yaml"), "--trainer.devices", "2", *OVERLAYS[name])


def generator(recipe: str, batch_size: int, stage: str) -> list[str]:
    one_code = ["--data.sub_codes", "[0]"] if recipe == "llamagen" else []
    size = ["--data.batch_size", str(batch_size), "--run.stage", stage]
    names = DROPOUTS.get(recipe, ("resid_dropout", "ffn_dropout", "token_dropout", "class_dropout"))
    dropouts = [part for name in names for part in (f"--{GENERATOR}.trunk.{name}", "0")]
    store = Path({"dit": "latents", "next_scale": "scales"}.get(recipe, "codes"))
    return [*tiny(recipe, store), *one_code, *QUICK, *EQUAL, *dropouts, *size]


def fixed_draw(self: FlowMatching, latents: torch.Tensor, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """One time and one noise for all rows, which do not depend on the rank."""
    noise = torch.linspace(-1, 1, latents[0].numel()).view_as(latents[0])
    return torch.full((len(latents),), 0.4), noise.expand_as(latents)


def tokenizers(rank: int) -> dict[str, float]:
    sums = {}
    for recipe in TOKENIZERS:
        late = ("--data.batch_size", "4", "--model.objective.adversarial.start_step", "1")
        model = fit(*digits(recipe, JUDGE), *QUICK, *late, *over_two("ddp"))
        for name, value in model.state_dict().items():
            if "running_" not in name:  # batch norm's, of each rank's own batch
                sums[f"{recipe} {name}"] = float(value.double().abs().sum())
    return sums


def generators(rank: int) -> None:
    FlowMatching.draw = fixed_draw  # type: ignore[method-assign]
    for recipe in GENERATORS:
        for name in OVERLAYS:
            for steps in ("1", "2") if recipe == "next_scale" else ("2",):  # stopped and resumed, as stage2 elsewhere
                fit(*generator(recipe, 8, f"{name}/{recipe}"), *over_two(name), "--trainer.max_steps", steps)


def test_tokenizers(tmp_path: Path) -> None:
    write_judge(tmp_path / JUDGE)
    first, second = run_on_ranks(tokenizers, tmp_path)
    assert first == second, "ranks stay together"
    for recipe in TOKENIZERS:
        state = torch.load(tmp_path / f"runs/digits/tokenizer/{recipe}/checkpoints/last.ckpt", weights_only=True)
        assert state["global_step"] == 2 and len(state["random_state"]) == 2
        assert len(state["optimizer_states"]) == 2, "both networks are compared"


def test_two_ranks_equal_one_rank_with_twice_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    monkeypatch.setattr(FlowMatching, "draw", fixed_draw)
    write_digit_codes(tmp_path / "codes")
    write_digit_codes(tmp_path / "latents", None)
    write_scale_codes(tmp_path / "scales")
    run_on_ranks(generators, tmp_path)
    for recipe in GENERATORS:
        fit(*generator(recipe, 16, f"alone/{recipe}"))
        consolidate(Path(f"runs/digits/fsdp/{recipe}/checkpoints/last.ckpt"))
        expected = Checkpoint.open(f"runs/digits/alone/{recipe}").content
        for name in OVERLAYS:
            found = Checkpoint.open(f"runs/digits/{name}/{recipe}").content
            assert found["global_step"] == 2 and len(found["random_state"]) == 2
            for key, value in expected["state_dict"].items():
                where = f"{name} {recipe} {key}"
                torch.testing.assert_close(found["state_dict"][key], value, rtol=1e-4, atol=1e-6, msg=where)
