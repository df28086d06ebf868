"""Programs on runs with broken files or impossible options: one sentence that names the place, and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from commands import compute, curve, layers, sweep, tokens_check
from polytoken.errors import UserError
from tests.support.generated import SCALAR, configure, keep, write_latent_runs
from tests.support.recipes import write_judge

Program = Callable[[list[str]], None]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_judge(Path("runs/digits/teacher/judge.safetensors"))
    return keep(configure(write_latent_runs(Path("runs/digits"), SCALAR, image_size=32)), (4,))


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    def refused(program: Program, *options: str) -> str:
        with pytest.raises(SystemExit) as stop:
            program([*options])
        assert stop.value.code == 2
        return capsys.readouterr().err

    return refused


def change(run: Path, keys: Sequence[str], value: Any) -> None:
    """Replace an entry of a checkpoint; the place is given by its keys."""
    file = run / "checkpoints/last.ckpt"
    content = part = torch.load(file, weights_only=True)
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    torch.save(content, file)


@pytest.mark.parametrize("text", [b"", b"[1]", b"a: [1", b"run: {preset: \xff}", b"run: 5", b"data: 7", b"{}"])
def test_broken_configurations(text: bytes, run: Path, refusal: Callable[..., str]) -> None:
    tokenizer = run.parent.parent / "tokenizer/tiny"
    for place in (run, tokenizer):
        whole = (place / "config.yaml").read_bytes()
        (place / "config.yaml").write_bytes(text)
        assert f"error: {place}/config.yaml" in refusal(layers.main, "--run", str(run), "--max-images", "12")
        (place / "config.yaml").write_bytes(whole)
    assert not (run / "layers.json").exists()


def test_a_configuration_cannot_import_a_module(run: Path, refusal: Callable[..., str]) -> None:
    """A run's configuration is a record, also where it gives a class as a plain string, embedded YAML or a path."""
    Path("evil_module.py").write_text("open('ran', 'w').close()\n")
    config = run.parent.parent / "tokenizer/tiny/config.yaml"
    data = yaml.safe_load(config.read_text())["data"]
    foreign = {"class_path": "evil_module.Evil"}
    Path("foreign.yaml").write_text(yaml.safe_dump(foreign))
    for source in (foreign, "evil_module.Evil", '{"class_path": "evil_module.Evil"}', "foreign.yaml"):
        changed = {**data, "init_args": {**data["init_args"], "source": source}}
        for section in (changed, foreign, {"class_path": "datamodules.images.os.system"}):
            config.write_text(yaml.safe_dump({"data": section}))
            assert f"{config}" in refusal(layers.main, "--run", str(run), "--max-images", "12")
    assert not Path("ran").exists() and "evil_module" not in sys.modules


def test_options_out_of_range(run: Path, refusal: Callable[..., str]) -> None:
    for size in ("0", "-1"):
        said = refusal(layers.main, "--run", str(run), "--source", "generated", "--batch-size", size)
        assert f"--batch-size is {size}: it must be at least 1" in said
        assert f"at least 1, got '{size}'" in refusal(tokens_check.main, "runs/digits/tokens/x", "--images", size)


@pytest.mark.parametrize(
    ("key", "value"),
    [("batches_trained", value) for value in ("a", [1], float("nan"), -3)] + [("offset", None), ("images_trained", -1)],
)
def test_a_broken_position_of_training(key: str, value: Any, run: Path, refusal: Callable[..., str]) -> None:
    change(run, ("TokenDataModule", key), value)
    said = refusal(compute.main, "--run", str(run))
    assert "the data module in " in said and "last.ckpt" in said and key in said


def test_a_broken_depth_of_alignment(run: Path, refusal: Callable[..., str]) -> None:
    change(run, ("model_config", "init_args", "alignment"), {"depth": "x"})
    assert "records alignment.depth as 'x'" in refusal(layers.main, "--run", str(run), "--max-images", "12")
    assert not (run / "layers.json").exists()


def test_weights_that_are_not_finite(run: Path, refusal: Callable[..., str]) -> None:
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    change(run, ("state_dict",), {name: torch.full_like(value, torch.nan) for name, value in state.items()})
    assert "last.ckpt is not finite: training failed" in refusal(layers.main, "--run", str(run), "--max-images", "12")
    assert not (run / "layers.json").exists()


def test_weights_with_names_that_are_none(run: Path, refusal: Callable[..., str]) -> None:
    change(run, ("state_dict", 5), torch.zeros(1))
    assert "last.ckpt holds no weights" in refusal(layers.main, "--run", str(run), "--max-images", "12")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("num_classes",), 10**12),
        (("num_classes",), 5),
        (("sub_codes",), []),
        (("sub_codes",), [7]),
        (("spec", "codebook_sizes"), [-1]),
        (("full_spec", "scales"), [[0, 4]]),
        (("latents", "grid"), [0, 0]),
    ],
)
def test_records_that_contradict_themselves(
    keys: tuple[str, ...], value: Any, run: Path, refusal: Callable[..., str]
) -> None:
    change(run, ("generator", *keys), value)
    for program in (compute.main, layers.main):
        assert "last.ckpt: generator: $" in refusal(program, "--run", str(run))


def test_metrics_without_a_value_are_no_distance() -> None:
    entries = [{"guidance": scale, "metrics": {"gfd/judge": {"value": None, "n": 4}}} for scale in (1.0, 2.0)]
    assert sweep.best(entries) == (None, None)


def test_a_kept_checkpoint_of_another_model(run: Path) -> None:
    file = run / "checkpoints/last.ckpt"
    file.with_name("step_1.ckpt").write_bytes(file.read_bytes())
    change(run, ("model_config", "init_args", "alignment"), {"depth": 1})
    change(run, ("global_step",), 9)
    with pytest.raises(UserError, match="step_1.ckpt is of another model than .*last.ckpt: move it out of the run"):
        list(curve.kept_checkpoints(run))
