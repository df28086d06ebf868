"""Experiments that compare generators at equal compute: FLOPs of training, counted on the meta device."""

import json
from pathlib import Path

import pytest

from experiments.specification import load
from experiments.tasks import Run, runs_of
from polytoken.metrics.compute import image_compute
from polytoken.specs import TokenSpec
from tests.support.generator_recipes import built, write_digit_codes

# The codes that the experiment counts with; those of other sizes change the tables of the head alone.
FLAT = TokenSpec((64, 64), ((4, 4),))
FOLDED = TokenSpec((128, 128), ((1, 1), (2, 2), (3, 3)))


def generators(experiment: str) -> dict[str, Run]:
    """The different generators of an experiment on digits, by the label of the first row; tokenizers do not count."""
    found: dict[str, tuple[str, Run]] = {}
    for row in load(experiment, "digits").rows:
        (run,) = (run for run in runs_of(row, "digits", 0) if run.stage.kind == "generator")
        found.setdefault(json.dumps([run.stage.recipe, run.stage.overrides], sort_keys=True), (row.label, run))
    return dict(found.values())


@pytest.mark.slow
def test_heads_have_equal_training_flops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    flat = write_digit_codes(tmp_path / "flat", FLAT, latent_shape=(16, 4, 4))
    folded = write_digit_codes(tmp_path / "folded", FOLDED, latent_shape=(64, 3, 3))
    found: dict[str, float] = {}
    for label, run in generators("polytoken/heads").items():
        run.write_overrides(overrides := tmp_path / f"{run.digest}.yaml")
        store = folded if run.stage.recipe == "next_scale" else flat
        command, generator = built(run.stage.recipe, "digits", store, monkeypatch, overrides)
        images = command.trainer.max_steps * command.datamodule.batch_size
        found[label] = image_compute(generator).training * images
    assert len(found) == 8
    mean = sum(found.values()) / len(found)
    assert found == {label: pytest.approx(mean, rel=0.01) for label in found}
