"""A run resumes with the model that it was started with; only memory and time settings may change."""

from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from commands.cli.checks import (
    check_counters,
    check_devices,
    check_drift,
    check_shards,
    check_trainer_drift,
)
from polytoken.errors import UserError
from polytoken.loading import MODEL_CONFIG


def model(**trunk: object) -> dict:
    quantizer = {"class_path": "models.VQ", "init_args": {"codebook_size": 8, "max_matrix_elements": 64}}
    tokenizer = {"class_path": "models.Tokenizer", "init_args": {"quantizer": quantizer}}
    return {"class_path": "models.Module", "init_args": {"trunk": {"dim": 8, **trunk}, "tokenizer": tokenizer}}


def test_settings_that_change_no_number_may_change(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    file = tmp_path / "last.ckpt"
    torch.save({MODEL_CONFIG: model(checkpointing=False, compile=False)}, file)
    now = model(checkpointing=True, compile=True)
    now["init_args"]["tokenizer"]["init_args"]["quantizer"]["init_args"]["max_matrix_elements"] = 32
    for subcommand in ("fit", "validate"):
        check_drift(file, now, subcommand)
    check_drift(file, model(), "fit")  # as written before there were such keys
    assert not recwarn.list
    now["init_args"]["trunk"]["dim"] = 16
    with pytest.raises(UserError, match=r"model.init_args.trunk.dim: 8 -> 16\nRestore") as refusal:
        check_drift(file, now, "fit")
    assert "checkpointing" not in str(refusal.value)


def test_a_resumed_fit_names_the_settings_of_its_trainer_that_changed(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    def config(schedule: str, decay: float, **trainer: object) -> dict:
        ema = {"class_path": "callbacks.EMA", "init_args": {"decay": decay}}
        section = {"precision": "32-true", "gradient_clip_val": 1.0, "max_steps": 10, "devices": 1, "callbacks": [ema]}
        optimizer = {"schedule": schedule, "learning_rate": 1e-3}
        return {"model": {"init_args": {"optimizer": optimizer, "init_from": None}}, "trainer": {**section, **trainer}}

    checkpoint = tmp_path / "run/checkpoints/last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    torch.save({"global_step": 10}, checkpoint)
    for schedule in ("constant", "cosine"):
        (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(config(schedule, 0.9)))
        check_trainer_drift(checkpoint, config(schedule, 0.9, devices=8))
        if schedule == "constant":
            check_trainer_drift(checkpoint, config(schedule, 0.9, max_steps=20))
    filled = config("cosine", 0.9)
    filled["trainer"]["callbacks"][0]["init_args"]["warmup"] = True  # a default that is newer than the run
    check_trainer_drift(checkpoint, filled)
    assert not recwarn.list
    changes = "trainer.gradient_clip_val 1.0 -> 2.0, trainer.max_steps 10 -> 20, trainer.EMA.decay 0.9 -> 0.5"
    restart = r"step 10: model.optimizer 0.0e\+00 -> 5.0e-04\): a rise is .*; there, --model.init_from"
    with pytest.warns(UserWarning, match=rf"run began with other settings .*: {changes}. Learning rates .* {restart}"):
        check_trainer_drift(checkpoint, config("cosine", 0.5, gradient_clip_val=2.0, max_steps=20))
    single = config("cosine", 0.5)
    (single["trainer"]["callbacks"],) = single["trainer"]["callbacks"]  # YAML may name one without a list
    with pytest.warns(UserWarning, match=r"here\): trainer.EMA.decay 0.9 -> 0.5. For a run"):
        check_trainer_drift(checkpoint, single)
    for damaged in ("[", "trainer: 3", ""):
        (tmp_path / "run/config.yaml").write_text(damaged)
        with pytest.warns(UserWarning, match="config.yaml cannot be read"):
            check_trainer_drift(checkpoint, config("cosine", 0.9))


def test_a_sharded_checkpoint_needs_a_sharding_strategy(tmp_path: Path) -> None:
    sharded, file = tmp_path / "far/fq_dual/checkpoints/last.ckpt", tmp_path / "whole.ckpt"
    sharded.mkdir(parents=True)
    file.touch()
    alone = Trainer(accelerator="cpu", logger=False, devices=1)
    with pytest.raises(UserError, match=r"only ModelParallelStrategy .*fsdp.*make consolidate RUN=.*/far/fq_dual\)"):
        check_shards(str(sharded), alone)
    check_shards(str(file), alone)
    check_shards(None, alone)
    check_shards(str(sharded), Trainer(accelerator="cpu", logger=False, strategy=ModelParallelStrategy(), devices=2))


def test_counters_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    counters = {"total": {"ready": 3, "completed": 3}, "current": {"ready": {}}}
    for loops in ({"fit_loop": {"epoch_loop.batch_progress": counters}}, {"fit_loop": {"ready": "3"}}):
        torch.save({"loops": loops}, tmp_path / "last.ckpt")
        with pytest.raises(UserError, match="last.ckpt is broken: its counter ready is .*name another checkpoint"):
            check_counters(tmp_path / "last.ckpt")
    counters["current"]["ready"] = 3
    torch.save({"loops": {"fit_loop": counters}}, tmp_path / "whole.ckpt")
    check_counters(tmp_path / "whole.ckpt")


def test_a_preset_for_several_gpus_needs_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"devices is 8, and this machine has no GPU: .*DEVICES=1.* for 8 processes"):
        check_devices({"accelerator": "auto", "devices": "8"})
    for fine in (
        {"accelerator": "cpu", "devices": 8},
        {"accelerator": "auto", "devices": 1},
        {"accelerator": "auto", "devices": "auto"},
    ):
        check_devices(fine)
    with monkeypatch.context() as started:  # as one rank of several
        started.setenv("SLURM_PROCID", "0")
        check_devices({"accelerator": "auto", "devices": 8})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_devices({"accelerator": "auto", "devices": 8})
