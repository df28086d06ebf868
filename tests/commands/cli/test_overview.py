"""Names that a user looks for: the classes in `fit --help`, and options under the field's names."""

import sys
from collections.abc import Iterator

import pytest

import cli
from commands.cli.composed import compose
from commands.cli.field_names import NAMES, of_the_field
from commands.cli.overview import CLASSES, WIDTH, names, overview

PRESET = "configs/presets/digits"


def test_help_of_a_command_ends_with_our_classes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    with pytest.raises(SystemExit):
        cli.main(["fit", "--help"])
    said = capsys.readouterr().out
    assert said.endswith(overview())
    for option in CLASSES:
        assert f"\n  {option}\n" in said
    for name in (
        "TokenizerModule",
        "FiniteScalarQuantizer",
        "NextScaleGenerator",
        "MaskedBitHead",
        "FolderSource",
        "EMA",
    ):
        assert f"\n    {name} " in said
    assert "Quantizer " not in names() and "LossTerm" not in names()
    assert all(len(line) <= WIDTH for line in overview().splitlines())


def test_options_under_the_names_of_the_field_exist() -> None:
    recipes = (
        ["fit", "vq", "tokenizer"],
        ["fit", "fq_dual", "tokenizer"],
        ["predict", "sample", "sample", "--model.generator_run", "g"],
    )
    found: set[str] = {"data.source.root", "data.store"}
    for command, recipe, preset, *more in recipes:
        files = [f"configs/{recipe}.yaml", f"{PRESET}/{preset}.yaml"]
        config = compose([command, *(word for file in files for word in ("--config", file)), *more])
        found |= set(_keys(config, ""))
    assert {ours for ours in NAMES.values() if ours not in found} == set()
    assert of_the_field("batch-size") == "--data.batch_size" and of_the_field("nonsense") is None


def _keys(value: object, key: str) -> Iterator[str]:
    """Keys with dots, without `init_args`."""
    yield key
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _keys(below, key if name == "init_args" else f"{key}.{name}".strip("."))


def test_accumulation_and_clipping_have_one_name() -> None:
    files = ["--config", "configs/fq_dual.yaml", "--config", f"{PRESET}/tokenizer.yaml"]
    asked = ["--trainer.accumulate_grad_batches", "2", "--trainer.gradient_clip_val", "0.5"]
    config = compose(["fit", *files, *asked])
    model, trainer = config["model"]["init_args"], config["trainer"]
    assert (model["accumulate_steps"], model["gradient_clip"]) == (2, 0.5)
    assert (trainer["accumulate_grad_batches"], trainer["gradient_clip_val"]) == (1, None)
    files = ["--config", "configs/far_base.yaml", "--config", f"{PRESET}/generator.yaml"]
    trainer = compose(["fit", *files, *asked])["trainer"]
    assert (trainer["accumulate_grad_batches"], trainer["gradient_clip_val"]) == (2, 0.5)
    assert of_the_field("accumulate_steps") == "--trainer.accumulate_grad_batches"
    assert of_the_field("max-grad-norm") == "--trainer.gradient_clip_val"
