"""A new family of generators is one class: training, handover, loading and sampling need no further code."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from polytoken.fingerprint import fingerprint
from polytoken.loading import load_generator
from polytoken.pipeline import GenerationPipeline
from polytoken.sampling import CategoricalSampler
from tests.support.commands import exit_code
from tests.support.generated import write_runs
from tests.support.generator_recipes import write_digit_codes
from tests.support.toy_generator import ToyGenerator

RECIPE = """
run: {preset: digits, stage: toy}
model:
  class_path: lightning_modules.GeneratorModule
  init_args:
    generator: {class_path: tests.support.toy_generator.ToyGenerator, init_args: {scale: 2.0}}
    optimizer: {learning_rate: 0.1}
data:
  class_path: datamodules.TokenDataModule
  init_args: {store: codes, batch_size: 8, num_workers: 0}
trainer:
  max_steps: 30
  val_check_interval: 10
  check_val_every_n_epoch: null
  enable_progress_bar: false
  callbacks+:
    - class_path: callbacks.EMA
      init_args: {modules: [generator], decay: 0.5}
"""


def test_a_second_family_is_trained_handed_over_loaded_and_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    tokenizer = write_runs(tmp_path / "given").parent.parent / "tokenizer/tiny"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = GenerationPipeline.from_run(tmp_path / "given/stage2/tiny")
    origin = {"tokenizer_run": str(tokenizer), "tokenizer_fingerprint": fingerprint(pipeline.tokenizer)}
    write_digit_codes(tmp_path / "codes", pipeline.network.spec, **origin)
    Path("toy.yaml").write_text(RECIPE)
    assert exit_code("fit", "--config", "toy.yaml") == 0

    metrics = json.loads(Path("runs/digits/toy/metrics.json").read_text())
    validated = metrics["validate"]["metrics"]
    assert {"val/nll_bound", "val/nll_bound/0", "val/nll_bound/1", "val/bits_per_image_bound"} <= validated.keys()
    assert "val/bits_per_image" not in validated
    assert "train/nll_bound/0" in metrics["fit"]["metrics"]
    assert validated["val/nll_bound"] < 1.5, "ln 16 is 2.77"

    with pytest.raises(ValueError, match=r"names the class tests\.support\.toy_generator\.ToyGenerator, .*trust"):
        load_generator("runs/digits/toy")
    generator = load_generator("runs/digits/toy", trust=("tests",))
    assert isinstance(generator, ToyGenerator) and generator.scale == 2.0 and generator.tables[0].abs().max() > 0
    pipeline = GenerationPipeline.from_run("runs/digits/toy", trust=("tests",))
    assert len(pipeline.sample([3, "4"])) == 2
    images = pipeline.images(torch.tensor([3]), CategoricalSampler())
    assert images.shape == (1, 16, 16, 3)

    begin = ("--model.init_args.init_from", "runs/digits/toy", "--run.stage", "toy2")
    assert exit_code("fit", "--config", "toy.yaml", *begin) == 0
    source = json.loads(Path("runs/digits/toy2/lineage.json").read_text())["init_from"]
    assert source["carried"] == ["tables.0", "tables.1"] and source["sub_code"] == "all"
