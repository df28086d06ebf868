"""A generator of latents trains on stored latents, on the vectors of stored codes, and on images encoded online."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from artifacts.lineage import check_same_tokens, record_of
from datamodules import DigitsSource, OnlineTokenDataModule, TokenDataModule
from lightning_modules import GeneratorModule
from polytoken.building import build
from polytoken.fingerprint import fingerprint
from polytoken.generators import DiffusionTransformer, Generator
from polytoken.loading import load_generator, load_tokenizer
from polytoken.specs import TokenSpec
from tests.support.commands import exit_code
from tests.support.generated import CONTINUOUS, DIFFUSION, SCALAR, write_latent_runs, write_runs
from tests.support.generator_recipes import write_digit_codes
from tests.support.host_sync import host_syncs
from tests.support.token_store import seal
from tests.support.toy_generator import ToyGenerator

RECIPE = """
run: {preset: digits, stage: dit}
model:
  class_path: lightning_modules.GeneratorModule
  init_args:
    generator:
      class_path: polytoken.generators.DiffusionTransformer
      init_args: {trunk: {dim: 16, depth: 2, num_heads: 2}}
    optimizer: {learning_rate: 0.01}
data:
  class_path: datamodules.TokenDataModule
  init_args: {store: tokens, batch_size: 8, num_workers: 0}
trainer:
  max_steps: 4
  val_check_interval: 2
  check_val_every_n_epoch: null
  enable_progress_bar: false
"""
ONLINE = """
data:
  class_path: datamodules.OnlineTokenDataModule
  init_args:
    source: {class_path: datamodules.DigitsSource, init_args: {size: 16}}
    store: tokens
    image_size: 16
    batch_size: 8
    num_workers: 0
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    Path("dit.yaml").write_text(RECIPE)
    Path("online.yaml").write_text(ONLINE)
    return tmp_path


def write_tokens(quantizer: dict[str, Any], root: str = "tokens", **changes: Any) -> Path:
    """A store of random tokens of a tokenizer's run, which is returned."""
    run = write_latent_runs(Path(f"{root}_given"), quantizer).parent.parent / "tokenizer/tiny"
    tokenizer = load_tokenizer(run)
    origin = {"tokenizer_run": str(run), "tokenizer_fingerprint": fingerprint(tokenizer)}
    shape = {"train": 1442, "validation": 355, "images_per_shard": 1442}  # of the digits
    settings = {**shape, "latent_shape": tokenizer.latent_shape, "image_size": 16, **origin, **changes}
    write_digit_codes(Path(root), tokenizer.spec, **settings)
    return run


def fit(*overrides: str) -> int:
    return exit_code("fit", "--config", "dit.yaml", *overrides)


def module_on(data: TokenDataModule | OnlineTokenDataModule, generator: Generator | None = None) -> GeneratorModule:
    """A module whose parameters are created, without a run."""
    module = GeneratorModule(generator or build(DIFFUSION, Generator, "the test", ()))
    module._trainer = SimpleNamespace(
        datamodule=data, precision="32-true", strategy=None, state=SimpleNamespace(fn="fit")
    )
    module.configure_model()
    return module


def test_stored_latents_train_without_the_tokenizer(place: Path) -> None:
    write_digit_codes(place / "tokens", None, tokenizer_run="runs/nowhere")
    assert fit() == 0
    measured = json.loads(Path("runs/digits/dit/metrics.json").read_text())["validate"]["metrics"]
    assert {"val/loss", "val/loss/velocity"} <= measured.keys()
    assert not any("nll" in name or "bits" in name for name in measured)
    record = torch.load("runs/digits/dit/checkpoints/last.ckpt", weights_only=True)["generator"]
    assert record["spec"] is None and record["full_spec"] is None and record["sub_codes"] == []
    assert record["latents"]["grid"] == [2, 3]
    generator = load_generator("runs/digits/dit")
    data = TokenDataModule("tokens", batch_size=4, num_workers=0)
    assert isinstance(generator, DiffusionTransformer) and generator.spec == data.latents
    module = module_on(data)
    batch = next(iter(data.val_dataloader()))
    assert module.tokens_of(batch).latents is batch["latents"]


def test_stored_codes_reach_it_as_vectors(place: Path) -> None:
    run = write_tokens(SCALAR)
    assert fit() == 0
    content = torch.load("runs/digits/dit/checkpoints/last.ckpt", weights_only=True)
    assert content["generator"]["spec"] == {"codebook_sizes": [75], "scales": [[2, 2]]}
    assert not any("tokenizer" in name or "codec" in name or "quantizer" in name for name in content["state_dict"])
    data = TokenDataModule("tokens", batch_size=4, num_workers=0)
    module = module_on(data)
    batch = next(iter(data.val_dataloader()))
    expected = load_tokenizer(run).embed_codes(batch["codes"])
    with torch.autocast("cpu", torch.bfloat16):
        tokens = module.tokens_of(batch)
    assert tokens.codes is None and torch.equal(tokens.latents, expected)
    assert not any("codec" in name for name, _ in module.named_modules())


@pytest.mark.parametrize("quantizer", [SCALAR, pytest.param(CONTINUOUS, marks=pytest.mark.slow)])
def test_images_are_encoded_online_as_the_store_holds_them(quantizer: dict[str, Any], place: Path) -> None:
    run = write_tokens(quantizer)
    assert fit("--config", "online.yaml") == 0
    content = torch.load("runs/digits/dit/checkpoints/last.ckpt", weights_only=True)
    assert not any("tokenizer" in name or "codec" in name for name in content["state_dict"])
    data = OnlineTokenDataModule(DigitsSource(16), "tokens", image_size=16, batch_size=4, num_workers=0)
    module = module_on(data)
    images = next(iter(data.val_dataloader()))["image"]
    with torch.no_grad():
        encoding = load_tokenizer(run).encode(images)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = module.tokens_of({"image": images})
    assert tokens.codes is None and torch.equal(tokens.latents, encoding.quantized)
    assert not tokens.latents.requires_grad
    if quantizer is SCALAR:
        tokens = module_on(data, ToyGenerator()).tokens_of({"image": images})
        assert tokens.latents is None and torch.equal(tokens.codes, encoding.codes)


def test_tokens_come_without_waiting_for_the_device(place: Path) -> None:
    write_tokens(SCALAR)
    stored = TokenDataModule("tokens", batch_size=4, num_workers=0)
    online = OnlineTokenDataModule(DigitsSource(16), "tokens", image_size=16, batch_size=4, num_workers=0)
    for data in (stored, online):
        for generator in (None, ToyGenerator()):
            module, batch = module_on(data, generator), next(iter(data.val_dataloader()))
            module.tokens_of(batch)  # loads
            with host_syncs() as counts:
                module.tokens_of(batch)
            assert not counts


def test_a_trained_run_keeps_the_scale_of_its_latents(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Another set of views has other means and deviations; the network was trained with the first ones."""
    write_digit_codes(place / "tokens", None)
    assert fit() == 0
    before = TokenDataModule("tokens").latents
    write_digit_codes(place / "tokens", None, views=("centre of 1",))
    assert TokenDataModule("tokens").latents != before
    connected = []
    connect = DiffusionTransformer.connect
    monkeypatch.setattr(
        DiffusionTransformer, "connect", lambda self, spec, *more: (connected.append(spec), connect(self, spec, *more))
    )
    assert exit_code("validate", "--config", "dit.yaml") == 0
    assert connected == [before]
    capsys.readouterr()
    assert fit("--trainer.max_steps", "6") == 2
    assert "data.store (views) was [" in capsys.readouterr().err


def test_unsuitable_tokens_are_one_sentence(place: Path, capsys: pytest.CaptureFixture) -> None:
    def error(*overrides: str) -> str:
        capsys.readouterr()
        assert fit("--run.stage", "refused", *overrides) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said and not Path("runs/digits/refused/checkpoints/last.ckpt").exists()
        return said

    write_digit_codes(place / "tokens", None)
    toy = ("--model.init_args.generator", "tests.support.toy_generator.ToyGenerator")
    assert "ToyGenerator models codes, and the token store tokens has latents of a tokenizer without" in error(*toy)
    assert "data.sub_codes=[0]: tokens holds latents" in error("--data.init_args.sub_codes", "[0]")
    write_digit_codes(place / "two", TokenSpec((8, 8), ((2, 3),)))
    two = ("--data.init_args.store", "two")
    said = error(*two, "--data.init_args.sub_codes", "[1]")
    assert "the latents of all 2 sub-codes, and the data are the sub-codes [1]: set data.sub_codes" in said
    assert "there is no checkpoint runs/digits/tokenizer/fq_dual" in error(*two)
    manifest = place / "two/train/manifest.json"
    seal(manifest, {**json.loads(manifest.read_text()), "latents": None})
    assert "the token store two has codes without the mean and deviation of their vectors" in error(*two)
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 1}))
    assert "two/train is a token store of format 1, and this code reads 3: delete two and write it again" in error(*two)


def test_a_run_does_not_resume_on_tokens_of_another_kind(place: Path, capsys: pytest.CaptureFixture) -> None:
    write_digit_codes(place / "tokens", None)
    assert fit() == 0
    write_tokens(SCALAR, "codes")
    capsys.readouterr()
    assert fit("--data.init_args.store", "codes", "--trainer.max_steps", "6") == 2
    said = "last.ckpt was trained on latents, and codes holds codes: read the store it was trained on"
    assert said in capsys.readouterr().err
    now = record_of(TokenDataModule("tokens"))
    write_digit_codes(place / "wide", None, latent_shape=(4, 2, 4))
    wide = record_of(TokenDataModule("wide"))
    with pytest.raises(ValueError, match="writes latents of 4 channels on a grid of 2 × 4, and .* 2 × 3: read the sto"):
        check_same_tokens(wide, now, Path("last.ckpt"), None)


def test_a_second_run_starts_from_the_weights_of_the_first(place: Path) -> None:
    write_digit_codes(place / "tokens", None)
    assert fit() == 0
    assert (
        fit("--model.init_args.init_from", "runs/digits/dit", "--run.stage", "again", "--trainer.max_steps", "1") == 0
    )
    source = json.loads(Path("runs/digits/again/lineage.json").read_text())["init_from"]
    assert source["sub_code"] == "all" and source["sub_codes"] == [] and not source["fresh"]


def test_a_run_does_not_resume_with_batches_of_another_class(place: Path, capsys: pytest.CaptureFixture) -> None:
    write_tokens(SCALAR)
    assert fit() == 0
    capsys.readouterr()
    assert fit("--config", "online.yaml", "--trainer.max_steps", "6") == 2
    said = "last.ckpt was trained on the batches of TokenDataModule, and data.class_path is a OnlineTokenDataModule"
    assert said in capsys.readouterr().err
    assert torch.load("runs/digits/dit/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.parametrize("sub_codes", [[0], None])
def test_weights_do_not_pass_between_families(
    sub_codes: list[int] | None, place: Path, capsys: pytest.CaptureFixture
) -> None:
    write_digit_codes(place / "tokens", None)
    earlier = write_runs(place / "earlier", sub_codes=sub_codes)
    assert fit("--model.init_args.init_from", str(earlier)) == 2
    said = "is a AutoregressiveGenerator, of codes, and this run trains a DiffusionTransformer, of latents: set init_"
    assert said in capsys.readouterr().err
    assert not [*Path("runs/digits/dit").glob("checkpoints/*")] and not Path("runs/digits/dit/lineage.json").exists()
