"""Stage 1, stage 2 and the handover between them, through the command line on a store of a few images."""

import hashlib
import json
import logging
import math
import re
import shutil
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

import cli
from artifacts.lineage import shared_sub_code
from lightning_modules import GeneratorModule
from polytoken.generators.record import GeneratorRecord, Lineage
from polytoken.loading import load_generator
from polytoken.specs import TokenSpec
from tests.end_to_end.test_cli import assert_equal
from tests.support.commands import exit_code
from tests.support.generator_recipes import GENERATOR, tiny, write_digit_codes
from tests.support.host_sync import host_syncs

FINGERPRINT = "0123456789abcdef" * 4
WEIGHT = "trunk.blocks.0.attention.wqkv.weight"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_digit_codes(tmp_path / "codes")


def fit(recipe: str, store: Path, *overrides: str, stage: str | None = None) -> dict[str, Any]:
    """The checkpoint of a run."""
    stage = stage or f"{recipe}/fq_dual"
    assert exit_code("fit", *tiny(recipe, store), "--run.stage", stage, *overrides) == 0
    return torch.load(f"runs/digits/{stage}/checkpoints/last.ckpt", weights_only=True)


def error_of(capsys: pytest.CaptureFixture, command: str, *arguments: str) -> str:
    """Error message of a command."""
    assert exit_code(command, *arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error[error.index("error: ") :]


def run(recipe: str) -> Path:
    return Path("runs/digits") / recipe / "fq_dual"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of stage 1 on the second sub-code."""
    place = tmp_path_factory.mktemp("trained")
    codes = write_digit_codes(place / "codes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("sys.argv", ["cli.py"])
        fit("stage1", codes, "--data.init_args.sub_codes", "[1]")
    return place / "runs"


@pytest.fixture
def stage1(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "runs")
    return run("stage1")


def stage2(store: Path, *overrides: str, stage: str | None = None) -> dict[str, Any]:
    return fit("stage2", store, "--model.init_args.init_from", str(run("stage1")), *overrides, stage=stage)


class Watch(Callback):
    """Records weights at every step, since checkpoints are too few."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []
        self.rates: list[dict[str, float]] = []
        self.groups: list[dict[str, Any]] = []

    def _keep(self, module: GeneratorModule) -> None:
        self.states.append({name: value.clone() for name, value in module.generator.state_dict().items()})

    def on_train_start(self, trainer, module) -> None:
        self._keep(module)

    def on_train_batch_end(self, trainer, module, *_) -> None:
        self._keep(module)
        self.groups = trainer.optimizers[0].param_groups
        self.rates.append({group["name"]: group["lr"] for group in self.groups})


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watching = Watch()
    build = cli.CommandLine.instantiate_trainer

    def with_watch(self: cli.CommandLine, **kwargs: Any) -> Any:
        trainer = build(self, **kwargs)
        trainer.callbacks.insert(1, watching)
        return trainer

    monkeypatch.setattr(cli.CommandLine, "instantiate_trainer", with_watch)
    return watching


class Waits(Callback):
    """Counts host synchronisations from the batch to the update."""

    def __init__(self) -> None:
        self.counts: list[Counter[str]] = []
        self.step = ExitStack()

    def on_train_batch_start(self, *_: object) -> None:
        self.counts.append(self.step.enter_context(host_syncs()))

    def on_train_batch_end(self, *_: object) -> None:
        self.step.close()


def test_a_step_reads_one_value_of_the_device(store: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard's; loss, noise, logged values, clipping and AdamW read nothing."""
    waits = Waits()
    for name in ("on_train_batch_start", "on_train_batch_end"):
        monkeypatch.setattr(watch, name, getattr(waits, name))
    fit("stage2", store, "--trainer.max_steps", "3", "--trainer.gradient_clip_val", "0.1")
    for found in waits.counts:
        found.pop("numpy", None)  # callbacks.RandomState, at the start of an epoch, of the CPU's random state
    assert waits.counts[-1:] == [{"aten::_local_scalar_dense": 1}]  # Lightning allocates its sums in the first step


def test_the_last_update_of_an_epoch_is_a_mean_of_its_batches(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With three batches an epoch, every second update of two has one batch: its gradient is that batch's."""
    norms: dict[int, list[float]] = {1: [], 2: []}
    still = ["--model.init_args.optimizer", '{"learning_rate": 1.0e-30}', "--data.init_args.batch_size", "7"]
    accept = GeneratorModule.on_before_optimizer_step
    for every, found in norms.items():

        def watched(self: GeneratorModule, optimizer: torch.optim.Optimizer, found: list[float] = found) -> None:
            accept(self, optimizer)
            found.append(float(self._norm))

        monkeypatch.setattr(GeneratorModule, "on_before_optimizer_step", watched)
        steps = ["--trainer.max_steps", str(4 // every), "--trainer.accumulate_grad_batches", str(every)]
        fit("far_base", store, *still, *steps, stage=f"accumulate_{every}")
    assert norms[2][1] == pytest.approx(norms[1][2], rel=1e-5)
    assert norms[2][0] < max(norms[1][:2])


def section(recipe: str, command: str = "validate") -> dict[str, float]:
    return json.loads((run(recipe) / "metrics.json").read_text())[command]["metrics"]


def test_losses_before_and_after_training(store: Path) -> None:
    """Zero-initialised outputs give ln K for every sub-code; bits per image count all positions and sub-codes."""
    assert exit_code("validate", *tiny("far_base", store), "--ckpt_path", "null") == 0
    before = section("far_base")
    for name in ("val/nll", "val/nll/0", "val/nll/1"):
        assert before[name] == pytest.approx(math.log(8), abs=1e-6)
    assert before["val/bits_per_image"] == pytest.approx(6 * 2 * 3, abs=1e-5)
    overrides = ["--trainer.max_steps", "60", "--model.init_args.optimizer", '{"learning_rate": 0.01}']
    fit("far_base", store, *overrides, "--trainer.log_every_n_steps", "1")
    after, trained = section("far_base"), section("far_base", "fit")
    assert after["val/nll"] < 1.5, "the codes of a class take two neighbouring values: ln 2 is 0.69"
    assert after["val/nll"] == pytest.approx((after["val/nll/0"] + after["val/nll/1"]) / 2, abs=1e-6)
    assert {"train/loss", "train/nll/0", "train/nll/1", "train/gradient_norm"} <= trained.keys()
    assert "train/noise_rate" not in trained


def test_validation_is_a_mean_over_images_and_drops_padding(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal in batches of 4 (the last one short), with two padding rows, and in one batch."""
    fit("far_base", store)
    expected = section("far_base")
    assert exit_code("validate", *tiny("far_base", store), "--data.init_args.batch_size", "4") == 0
    assert section("far_base")["val/bits_per_image"] == pytest.approx(expected["val/bits_per_image"], abs=1e-4)
    step = GeneratorModule.validation_step

    def padded(self: GeneratorModule, batch: dict[str, torch.Tensor], batch_index: int) -> None:
        rows = {name: torch.cat([value, value[:2]]) for name, value in batch.items()}
        rows["index"][-2:] = -1
        step(self, rows, batch_index)
        step(self, {**batch, "index": torch.full_like(batch["index"], -1)}, batch_index)

    monkeypatch.setattr(GeneratorModule, "validation_step", padded)
    assert exit_code("validate", *tiny("far_base", store)) == 0
    assert section("far_base")["val/bits_per_image"] == pytest.approx(expected["val/bits_per_image"], abs=1e-4)


def test_the_checkpoint_records_its_codes(stage1: Path) -> None:
    record = torch.load(stage1 / "checkpoints/last.ckpt", weights_only=True)["generator"]
    assert GeneratorRecord.from_plain(record, "").to_plain() == record
    assert record["spec"] == {"codebook_sizes": [8], "scales": [[2, 3]]}
    assert record["full_spec"] == {"codebook_sizes": [8, 8], "scales": [[2, 3]]}
    assert record["sub_codes"] == [1]
    assert record["tokenizer_fingerprint"] == FINGERPRINT
    assert record["tokenizer_run"] == "runs/digits/tokenizer/fq_dual"
    assert record["num_classes"] == len(record["class_to_idx"]) == 10
    lineage = json.loads((stage1 / "lineage.json").read_text())
    assert lineage == record["lineage"]
    assert lineage["init_from"] is None and lineage["store"].endswith("codes")
    assert load_generator(stage1).spec.codebook_sizes == (8,)


def test_stage_2_starts_from_the_hidden_states_of_stage_1(
    stage1: Path, store: Path, watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    """Hidden states equal those of stage 1's averaged weights; messages and lineage describe the handover."""
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        checkpoint = stage2(store)
    before, generator = load_generator(stage1), load_generator(run("stage2"))
    generator.load_state_dict(watch.states[0])
    codes, labels = torch.randint(8, (3, 2, 6)), torch.tensor([0, 5, 9])
    torch.testing.assert_close(generator.hidden(codes, labels), before.hidden(codes[:, 1:], labels))
    assert not torch.equal(watch.states[0][WEIGHT], watch.states[-1][WEIGHT])

    file = stage1 / "checkpoints/last.ckpt"
    source = json.loads((run("stage2") / "lineage.json").read_text())["init_from"]
    assert source == checkpoint["generator"]["lineage"]["init_from"]
    assert source["path"] == str(file) and source["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert source["sub_code"] == 1 and source["step"] == 2 and source["sub_codes"] == [1]
    assert set(generator.state_dict()) == {*source["carried"], *source["fresh"]}
    assert {"embeddings.1.weight", "head.norm.weight", "class_embedding.weight"} <= set(source["carried"])
    assert "embeddings.0.weight" in source["fresh"] and source["left_behind"] == ["head.outputs.0.weight"]
    assert f"weights of {file}\ncarried ({len(source['carried'])}): class_embedding.weight" in caplog.text
    assert "\nfresh (" in caplog.text and "\nleft behind (1): head.outputs.0.weight" in caplog.text


def test_the_average_starts_from_the_handed_over_weights(stage1: Path, store: Path) -> None:
    """After one update with decay 2/11, an average that started from fresh weights would be far away."""
    checkpoint = stage2(store, "--model.init_args.freeze_carried_steps", "9")
    average = checkpoint["callbacks"]["EMA"]["average"]
    torch.testing.assert_close(average[f"generator.{WEIGHT}"], checkpoint["state_dict"][f"generator.{WEIGHT}"])


def test_weights_of_another_tokenizer_carry_over_without_its_codes(store: Path, tmp_path: Path) -> None:
    other = {"tokenizer_fingerprint": "b" * 64, "tokenizer_run": "runs/digits/tokenizer/vq"}
    fit("stage1", write_digit_codes(tmp_path / "single", TokenSpec((16,), ((2, 3),)), **other))
    source = stage2(store)["generator"]["lineage"]["init_from"]
    assert source["sub_code"] is None and source["tokenizer_fingerprint"] == "b" * 64
    assert WEIGHT in source["carried"]
    assert not any("embeddings." in name for name in source["carried"])


def record(sub_codes: tuple[int, ...], run: str = "tokenizer", fingerprint: str = "a" * 64) -> GeneratorRecord:
    spec = TokenSpec((8, 8, 8), ((2, 3),))
    lineage = Lineage(run, fingerprint, "store")
    return GeneratorRecord(spec.select(sub_codes), spec, sub_codes, run, fingerprint, 1, {"a": 0}, lineage)


def test_sub_codes_of_an_earlier_run_are_identified() -> None:
    pairs = {((1,), (0, 1, 2)): 1, ((1,), (1,)): "all", ((2,), (0, 1)): None, ((0, 1), (0, 1)): "all"}
    pairs |= {((0, 1), (1, 0)): None, ((0, 1), (0, 1, 2)): None, ((2,), (1, 2)): 1}
    for (before, now), expected in pairs.items():
        assert shared_sub_code(record(before), record(now), Path("last.ckpt")) == expected, (before, now)
    other = record((0,), "other", "b" * 64)
    assert shared_sub_code(other, record((0,)), Path("last.ckpt")) is None


def test_a_tokenizer_trained_further_between_the_stages_is_rejected(
    stage1: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    again = write_digit_codes(tmp_path / "again", tokenizer_fingerprint="c" * 64)
    error = error_of(capsys, "fit", *tiny("stage2", again), "--model.init_args.init_from", str(stage1))
    assert "trained on in between" in error and FINGERPRINT[:12] in error and "cccccccccccc" in error


def test_a_different_trunk_or_grid_is_rejected(
    stage1: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    begin = ("--model.init_args.init_from", str(stage1))
    error = error_of(
        capsys, "fit", *tiny("stage2", store), *begin, "--model.init_args.generator.init_args.trunk.depth", "3"
    )
    assert "the trunks differ: trunk.blocks.2." in error and "is missing in the weights to start from" in error
    wide = write_digit_codes(tmp_path / "wide", TokenSpec((8, 8), ((2, 4),)))
    one = ("--data.init_args.sub_codes", "[1]")
    error = error_of(capsys, "fit", *tiny("stage1", wide), *one)
    assert "[8, 8] entries on a grid of 2 × 3, and" in error and "[8, 8] entries on a grid of 2 × 4" in error


def test_init_from_must_be_a_generator(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = [*tiny("stage2", store), "--model.init_args.init_from"]
    assert exit_code("fit", *arguments, str(tmp_path / "nowhere")) == 2
    assert "nowhere" in capsys.readouterr().err
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    error = error_of(capsys, "fit", *arguments, str(tmp_path / "other.ckpt"))
    assert "other.ckpt is not the checkpoint of a generator" in error


def test_carried_weights_are_frozen_for_the_configured_steps(stage1: Path, store: Path, watch: Watch) -> None:
    checkpoint = stage2(store, "--model.init_args.freeze_carried_steps", "2", "--trainer.max_steps", "3")
    carried = checkpoint["generator"]["lineage"]["init_from"]["carried"]
    start, _, frozen, free = watch.states
    for name in start:
        if name in carried:
            assert torch.equal(start[name], frozen[name]), name
    moved = [name for name in carried if not torch.equal(start[name], free[name])]
    assert WEIGHT in moved
    assert not torch.equal(start["embeddings.0.weight"], frozen["embeddings.0.weight"])


def test_freezing_all_weights_is_rejected(stage1: Path, store: Path, capsys: pytest.CaptureFixture) -> None:
    begin = ("--model.init_args.init_from", str(stage1), "--data.init_args.sub_codes", "[1]", "--run.stage", "again")
    error = error_of(capsys, "fit", *tiny("stage1", store), *begin, "--model.init_args.freeze_carried_steps", "2")
    assert "all weights are carried over from" in error and "set freeze_carried_steps to 0" in error


def test_carried_weights_have_a_separate_learning_rate(stage1: Path, store: Path, watch: Watch) -> None:
    rates = ["--model.init_args.carried_learning_rate", "1e-4", "--model.init_args.optimizer.learning_rate", "1e-3"]
    constant = ["--model.init_args.optimizer.schedule", "constant", "--model.init_args.optimizer.warmup_steps", "0"]
    checkpoint = stage2(store, *rates, *constant)
    expected = {"decayed": 1e-3, "not_decayed": 1e-3, "carried_decayed": 1e-4, "carried_not_decayed": 1e-4}
    assert watch.rates[-1] == pytest.approx(expected)
    assert [group["weight_decay"] for group in watch.groups] == [0.05, 0.0, 0.05, 0.0]
    counted = sum(len(group["params"]) for group in watch.groups)
    weights = load_generator(run("stage2"))
    assert counted == len(list(weights.parameters()))
    assert all(p.ndim >= 2 for group in watch.groups[::2] for p in group["params"])
    source = checkpoint["generator"]["lineage"]["init_from"]
    parameters = dict(weights.named_parameters())
    assert sum(len(g["params"]) for g in watch.groups[2:]) == sum(name in parameters for name in source["carried"])

    again = stage2(store, *rates, *constant, "--trainer.max_steps", "4")
    assert again["global_step"] == 4 and watch.rates[-1] == pytest.approx(expected), "resumed"


def test_a_resumed_run_equals_an_uninterrupted_one(stage1: Path, store: Path) -> None:
    """Dropout, class dropout, noise, views and order continue, even if stage 1 was deleted."""
    options = ["--model.init_args.optimizer.schedule", "constant", "--model.init_args.freeze_carried_steps", "3"]
    whole = stage2(store, *options, "--trainer.max_steps", "5", stage="stage2/whole")
    stage2(store, *options)
    stage1.rename("gone")
    resumed = stage2(store, *options, "--trainer.max_steps", "5")
    assert_equal(resumed, whole)
    assert_equal(resumed["callbacks"]["EMA"], whole["callbacks"]["EMA"], "EMA")
    assert resumed["generator"] == whole["generator"]


def test_a_resumed_run_must_read_the_same_codes(
    stage1: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    other = write_digit_codes(tmp_path / "other", tokenizer_fingerprint="c" * 64)
    both = f"{FINGERPRINT[:12]}.*cccccccccccc|cccccccccccc.*{FINGERPRINT[:12]}"
    second = ("--data.init_args.sub_codes", "[1]")
    assert re.search(both, error_of(capsys, "fit", *tiny("stage1", other), *second))
    error = error_of(capsys, "validate", *tiny("stage1", other), *second)
    assert re.search(f"writes codes of the tokenizer .*{both}", error)
    error = error_of(capsys, "fit", *tiny("stage1", store))
    assert re.search(r"sub-codes \[1\].*sub-codes \[0\].*data.sub_codes", error)


def test_a_changed_stage_1_causes_a_warning_and_is_not_read(stage1: Path, store: Path) -> None:
    before = stage2(store)
    fit("stage1", store, "--data.init_args.sub_codes", "[1]", "--trainer.max_steps", "3")
    with pytest.warns(UserWarning, match="has changed since this run began with it"):
        after = stage2(store)
    assert_equal(after, before)


class Poison(Callback):
    """Sets a weight's gradient to NaN at some steps."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps

    def on_after_backward(self, trainer, module) -> None:
        if trainer.global_step in self.steps:
            next(module.parameters()).grad[0] = float("nan")


def test_a_non_finite_update_is_skipped(
    store: Path,
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture,
) -> None:
    build = cli.CommandLine.instantiate_trainer
    poisoned = {1}

    def with_poison(self: cli.CommandLine, **kwargs: Any) -> Any:
        trainer = build(self, **kwargs)
        trainer.callbacks.append(Poison(poisoned))
        return trainer

    monkeypatch.setattr(cli.CommandLine, "instantiate_trainer", with_poison)
    with caplog.at_level(logging.WARNING):
        fit("stage1", store, "--trainer.max_steps", "3")
    assert "step 1: gradient not finite, so this step was left out" in caplog.text
    start, first, second, third = watch.states
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(second["head.outputs.0.weight"], third["head.outputs.0.weight"])

    poisoned |= {3}
    tolerated = ["--model.init_args.max_nonfinite_steps", "1", "--trainer.max_steps", "6"]
    fit("stage1", store, *tolerated, stage="stage1/tolerated")  # two, but not in a row
    poisoned |= {4}
    error = error_of(capsys, "fit", *tiny("stage1", store), *tolerated, "--run.stage", "stage1/bad")
    assert "2 in a row is more than max_nonfinite_steps=1" in error


def test_noise_is_logged_and_off_in_validation(stage1: Path, store: Path) -> None:
    noise = [
        "--model.init_args.generator.init_args.noise.init_args.probability",
        "0.5",
        "--trainer.log_every_n_steps",
        "1",
    ]
    late = [f"--{GENERATOR}.noise.init_args.start_step", "1"]  # the second of two updates
    checkpoint = stage2(store, *noise, *late)
    arguments = checkpoint["model_config"]["init_args"]["generator"]["init_args"]
    assert arguments["noise"]["init_args"]["probability"] == 0.5
    assert 0.2 < section("stage2", "fit")["train/noise_rate"] < 0.8
    figures = section("stage2")
    assert exit_code("validate", *tiny("stage2", store), "--model.init_args.init_from", str(stage1)) == 0
    assert section("stage2")["val/nll"] == pytest.approx(figures["val/nll"], abs=1e-6)


def test_an_image_data_module_is_rejected(store: Path, capsys: pytest.CaptureFixture) -> None:
    overlay = Path("images.yaml")
    overlay.write_text(
        "data: {class_path: datamodules.ImageDataModule, init_args: {source: {class_path: datamodules.DigitsSource}, "
        "image_size: 32, batch_size: 8, num_workers: 0}}"
    )
    arguments = tiny("llamagen", store)
    keep = arguments[: arguments.index("--data.init_args.store")]
    error = error_of(capsys, "fit", *keep, "--config", str(overlay))
    assert "reads the tokens of a token store, and data is ImageDataModule" in error
