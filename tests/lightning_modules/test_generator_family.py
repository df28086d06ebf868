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
from tests.support.toy_generator import ToyGenerator, ToyGeneratorOfVectors

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


def write_codes(directory: Path) -> Path:
    """A store of codes of a tokenizer's run, which is returned."""
    tokenizer = write_runs(directory / "given").parent.parent / "tokenizer/tiny"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = GenerationPipeline.from_run(directory / "given/stage2/tiny")
    origin = {"tokenizer_run": str(tokenizer), "tokenizer_fingerprint": fingerprint(pipeline.tokenizer)}
    write_digit_codes(directory / "codes", pipeline.network.spec, **origin)
    return tokenizer


def test_a_second_family_is_trained_handed_over_loaded_and_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    write_codes(tmp_path)
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


def test_a_frozen_codec_reaches_training_and_pipeline_but_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    tokenizer = write_codes(tmp_path)
    Path("toy.yaml").write_text(RECIPE.replace("ToyGenerator,", "ToyGeneratorOfVectors,").replace("30", "2"))
    arguments = ("fit", "--config", "toy.yaml", "--trainer.val_check_interval", "2")
    assert exit_code(*arguments) == 0
    assert json.loads(Path("runs/digits/toy/metrics.json").read_text())["fit"]["metrics"]["train/vector_norm"] > 0
    content = torch.load("runs/digits/toy/checkpoints/last.ckpt", weights_only=True)
    names = {"generator.tables.0", "generator.tables.1"}
    assert content["state_dict"].keys() == content["callbacks"]["EMA"]["average"].keys() == names
    assert len(content["optimizer_states"][0]["state"]) == 2

    pipeline = GenerationPipeline.from_run("runs/digits/toy", trust=("tests",))
    assert isinstance(pipeline.network, ToyGeneratorOfVectors) and len(pipeline.sample([3])) == 1
    codes = torch.zeros(1, 2, 4, dtype=torch.int64)
    expected = pipeline.tokenizer.embed_codes(codes)
    assert torch.equal(pipeline.network.codec.embed_codes(codes), expected)
    generator = load_generator("runs/digits/toy", trust=("tests",))
    assert isinstance(generator, ToyGeneratorOfVectors)
    assert torch.equal(generator.codec.embed_codes(codes), expected)
    assert torch.equal(generator.tables[0], pipeline.network.tables[0])

    file = tokenizer / "checkpoints/last.ckpt"
    changed = torch.load(file, weights_only=True)
    next(iter(changed["state_dict"].values())).add_(1)
    torch.save(changed, file)
    assert exit_code(*arguments, "--run.stage", "other") == 2
    assert "codes holds tokens of a tokenizer with the fingerprint" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"last\.ckpt writes tokens of a tokenizer with the fingerprint"):
        load_generator("runs/digits/toy", trust=("tests",))
