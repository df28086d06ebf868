"""Overlays for several devices, parsed with a recipe; not instantiated, since most need a cluster."""

from pathlib import Path
from typing import Any

import pytest

import cli
from tests.support.commands import exit_code
from tests.support.recipes import CONFIGS

OVERLAYS = ("ddp", "fsdp", "slurm")
DDP = "ddp_find_unused_parameters_true"


def test_every_overlay_is_tested() -> None:
    assert sorted(path.stem for path in CONFIGS.glob("cluster/*.yaml")) == list(OVERLAYS)


def parsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *files: str, command: str = "fit") -> Any:
    """The parsed configuration of a command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    monkeypatch.setattr(cli, "check_devices", lambda trainer: None)  # as on a machine with GPUs
    configs: list[Any] = []

    def stop(self: cli.CommandLine) -> None:
        configs.append(self.config[command])
        raise SystemExit(0)

    monkeypatch.setattr(cli.CommandLine, "instantiate_classes", stop)
    assert exit_code(command, *(part for file in files for part in ("--config", str(CONFIGS / file)))) == 0
    return configs[0]


@pytest.mark.parametrize(
    ("recipe", "preset", "command"),
    [("fq_dual", "tokenizer", "fit"), ("stage2", "generator", "fit"), ("tokens", "tokens", "predict")],
)
def test_overlays_parse_with_recipes(
    recipe: str, preset: str, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = [f"{recipe}.yaml", f"presets/imagenet/{preset}.yaml"]
    plain = parsed(monkeypatch, tmp_path, *files, command=command)
    laid = parsed(monkeypatch, tmp_path, *files, "cluster/ddp.yaml", "cluster/slurm.yaml", command=command)
    assert laid.trainer.strategy == DDP and laid.trainer.devices == 8
    assert laid.trainer.plugins.init_args.auto_requeue is False
    assert laid.model == plain.model and laid.data == plain.data
    assert [c.class_path for c in laid.trainer.callbacks if "Progress" not in c.class_path] == [
        c.class_path for c in plain.trainer.callbacks if "Progress" not in c.class_path
    ]


def test_the_fsdp_overlay_shards_a_generator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = parsed(
        monkeypatch,
        tmp_path,
        "far_large.yaml",
        "presets/imagenet/generator.yaml",
        "cluster/fsdp.yaml",
        "cluster/slurm.yaml",
    )
    strategy = config.trainer.strategy
    assert strategy.class_path == "lightning.pytorch.strategies.ModelParallelStrategy"
    assert strategy.init_args.tensor_parallel_size == 1
    assert strategy.init_args.data_parallel_size == config.trainer.devices * config.trainer.num_nodes
    assert strategy.init_args.save_distributed_checkpoint is True
    trunk = config.model.init_args.generator.init_args.trunk
    assert trunk.checkpointing and trunk.compile and trunk.dim == 1280
