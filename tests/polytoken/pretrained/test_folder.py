"""Exported models load strictly and without the suite; broken folders are one sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import polytoken
from polytoken import GenerationPipeline, UserError, from_pretrained, load_tokenizer
from polytoken.errors import MissingFileError
from polytoken.fingerprint import fingerprint
from polytoken.pretrained import save_pretrained
from polytoken.tokenizers import Tokenizer
from polytoken.weights import load_state, save_tensors
from tests.support.commands import REPOSITORY
from tests.support.generated import (
    CONTINUOUS,
    SCALAR,
    pixels,
    write_folded_run,
    write_latent_runs,
    write_next_scale_runs,
    write_representation_run,
    write_runs,
)
from tests.test_wheel import WITHOUT

RUNS: dict[str, Callable[[Path], Path]] = {
    "autoregressive": write_runs,
    "first stage": lambda root: write_runs(root, sub_codes=[1], stage="stage1"),
    "codes as latents": lambda root: write_latent_runs(root, SCALAR),
    "latents": lambda root: write_latent_runs(root, CONTINUOUS),
    "next scale": write_next_scale_runs,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    """An exported pipeline."""
    save_pretrained(run, tmp_path / "exported")
    return tmp_path / "exported"


def outputs(tokenizer: Tokenizer) -> tuple[Tensor | None, Tensor]:
    """Codes and reconstructions of fixed images."""
    noise = torch.rand(2, 3, tokenizer.image_size, tokenizer.image_size, generator=torch.Generator().manual_seed(1))
    decoded, encoding = tokenizer(noise * 2 - 1)
    return encoding.codes, decoded.image


@pytest.mark.filterwarnings("ignore:.* is the first stage")
@pytest.mark.parametrize("kind", RUNS)
def test_an_exported_pipeline_draws_the_same_images(kind: str, tmp_path: Path) -> None:
    run = RUNS[kind](tmp_path / "digits")
    own = GenerationPipeline.from_run(run)
    save_pretrained(run, tmp_path / "exported")
    shutil.rmtree(tmp_path / "digits")
    config = tmp_path / "exported/generator/config.json"
    written = json.loads(config.read_text())
    config.write_text(json.dumps({**written, "averaged": True}))
    loaded = from_pretrained(tmp_path / "exported")
    assert isinstance(loaded, GenerationPipeline) and loaded.class_names == own.class_names
    assert (pixels(loaded.sample([3, "4"], seed=1)) == pixels(own.sample([3, "4"], seed=1))).all()
    for pipeline in (own, loaded):
        assert not any(module.training for module in pipeline.modules())
        assert not any(parameter.requires_grad for parameter in pipeline.parameters())
    assert list(loaded.origin["generator"].items()) == [
        ("run", str(tmp_path / "exported")),
        ("sha256", written["weights_sha256"]),
        ("step", own.origin["generator"]["step"]),
        ("averaged", True),
    ]
    expected = [("run", str(tmp_path / "exported/tokenizer")), ("fingerprint", own.origin["tokenizer"]["fingerprint"])]
    assert list(loaded.origin["tokenizer"].items()) == expected


@pytest.mark.parametrize("write", [write_folded_run, write_representation_run])
def test_an_exported_tokenizer_writes_the_same_codes(write: Callable[[Path], Path], tmp_path: Path) -> None:
    own = load_tokenizer(write(tmp_path / "tokenizer/tiny"))
    save_pretrained(tmp_path / "tokenizer/tiny", tmp_path / "exported")
    loaded = from_pretrained(tmp_path / "exported")
    assert isinstance(loaded, Tokenizer) and fingerprint(loaded) == fingerprint(own)
    for found, expected in zip(outputs(loaded), outputs(own), strict=True):
        assert found is not None and torch.equal(found, expected)


def test_the_tokenizer_of_a_pipeline_is_a_model_of_its_own(folder: Path, run: Path) -> None:
    tokenizer = from_pretrained(folder / "tokenizer")
    assert isinstance(tokenizer, Tokenizer)
    assert fingerprint(tokenizer) == fingerprint(load_tokenizer(run.parent.parent / "tokenizer/tiny"))
    with pytest.raises(UserError, match=f"is the generator of a pipeline.*: name the folder that holds both, {folder}"):
        from_pretrained(folder / "generator")


def test_averages_are_exported(run: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(run.parent.parent / "tokenizer/tiny/checkpoints/last.ckpt", weights_only=True)
    average = {
        name: value * 2 if value.is_floating_point() else value for name, value in checkpoint["state_dict"].items()
    }
    torch.save({**checkpoint, "callbacks": {"EMA": {"average": average}}}, tmp_path / "averaged.ckpt")
    save_pretrained(tmp_path / "averaged.ckpt", tmp_path / "exported")
    weights, _ = load_state(tmp_path / "exported/model.safetensors", "")
    assert {f"tokenizer.{name}" for name in weights} == average.keys()
    assert all(torch.equal(value, average[f"tokenizer.{name}"]) for name, value in weights.items())
    assert json.loads((tmp_path / "exported/config.json").read_text())["averaged"]


def test_no_path_of_this_machine_is_exported(folder: Path, tmp_path: Path) -> None:
    for file in folder.rglob("config.json"):
        assert str(tmp_path.parent) not in file.read_text()
    record = json.loads((folder / "generator/config.json").read_text())["record"]
    assert record["tokenizer_run"] == record["lineage"]["tokenizer_run"] == "tokenizer/tiny"


def test_a_process_without_the_suite_loads_it(folder: Path) -> None:
    program = f"import polytoken\npolytoken.from_pretrained({str(folder)!r}).sample([3])[0].save('three.png')\n"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + program], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-800:]
    assert (folder / "three.png").is_file()


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (write_folded_run, r"polytoken\.tokenizers\.FoldedTokenizer, which .*exported names, needs a package"),
        (write_representation_run, "a frozen network of this model needs a package"),
    ],
)
def test_networks_of_timm_ask_for_the_suite(
    write: Callable[[Path], Path], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pretrained(write(tmp_path / "tokenizer/tiny"), tmp_path / "exported")
    for name in ("timm.models", "timm.models.vision_transformer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"{says} that is not installed \(.*timm.*\): .* pip install '\.\[suite\]'"):
        from_pretrained(tmp_path / "exported")


def edit(file: Path, **changes: Any) -> None:
    """Replace entries of a configuration; None removes them."""
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def other_weights(folder: Path) -> None:
    """Weights of another export of the same architecture."""
    weights, metadata = load_state(folder / "model.safetensors", "")
    changed = {name: value + 1 if value.is_floating_point() else value for name, value in weights.items()}
    save_tensors(folder / "model.safetensors", changed, metadata)


def other_tokenizer(folder: Path) -> None:
    """A whole tokenizer of another training in place of the pipeline's."""
    root = folder.parent / "other"
    other = write_runs(root, num_subspaces=3).parent.parent / "tokenizer/tiny"
    save_pretrained(other, folder / "tokenizer")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda at: (at / "config.json").unlink(), "config.json does not exist"),
    "another library": (lambda at: (at / "config.json").write_text('{"model_type": "vit"}'), "no model of polytoken"),
    "no JSON": (lambda at: (at / "config.json").write_text("{"), "config.json is not valid JSON"),
    "a list": (lambda at: (at / "config.json").write_text("[]"), "config.json: .*expected object"),
    "newer": (lambda at: edit(at / "config.json", polytoken_format=2), "has the format 2.*: update polytoken"),
    "older": (lambda at: edit(at / "config.json", polytoken_format=0), "has the format 0.*: export the run again"),
    "unknown kind": (lambda at: edit(at / "config.json", kind="vocoder"), "config.json: .*vocoder"),
    "no network": (lambda at: shutil.rmtree(at / "generator"), "there is no folder .*generator"),
    "no weights": (lambda at: (at / "tokenizer/model.safetensors").unlink(), "no weights at .*model.safetensors"),
    "truncated": (lambda at: cut(at / "generator/model.safetensors"), "is not a readable weights file"),
    "one bit": (lambda at: flip(at / "tokenizer/model.safetensors"), "its SHA-256 is .*, and it was written with"),
    "mixed up": (lambda at: other_weights(at / "generator"), "the files are of two exports"),
    "other tokenizer": (other_tokenizer, "tokens of a tokenizer with the fingerprint"),
    "two tokenizers": (
        lambda at: shutil.copytree(at / "tokenizer", at / "generator", dirs_exist_ok=True),
        "does not hold a tokenizer in tokenizer/ and a generator in generator/",
    ),
    "fingerprint": (lambda at: edit(at / "tokenizer/config.json", fingerprint="f" * 64), "fingerprint ffffffffffff"),
    "frozen": (lambda at: edit(at / "tokenizer/config.json", frozen={"deep": "x"}), "was trained on deep = x"),
    "record": (lambda at: edit(at / "generator/config.json", record={}), r"config.json: \$.record: .*missing"),
    "no model": (lambda at: edit(at / "tokenizer/config.json", model=None), "config.json: .*missing required field"),
    "foreign class": (
        lambda at: edit(at / "tokenizer/config.json", model={"class_path": "evil_module.Evil"}),
        "names the class evil_module.Evil, and only classes of polytoken are loaded",
    ),
    "other arguments": (
        lambda at: edit(at / "generator/config.json", model={"class_path": "polytoken.generators.NoSuch"}),
        "names the class polytoken.generators.NoSuch, which this version of the code does not have",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_folders(kind: str, folder: Path) -> None:
    breaking, says = BROKEN[kind]
    breaking(folder)
    with pytest.raises(UserError, match=says) as error:
        from_pretrained(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    assert "evil_module" not in sys.modules


def test_deeply_nested_configurations(folder: Path) -> None:
    file = folder / "tokenizer/config.json"
    nested: dict[str, Any] = {}
    for _ in range(200):
        nested = {"a": nested}
    edit(file, model=nested)
    with pytest.raises(UserError, match="is nested more than 100 deep"):
        from_pretrained(folder)


def test_other_places(run: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="there is no folder .*: name one that .*snapshot_download"):
        from_pretrained("owner/name")
    with pytest.raises(MissingFileError, match="tiny is a run, and config.json does not exist: name a folder"):
        from_pretrained(run)
    with pytest.raises(MissingFileError, match="holds no exported model"):
        from_pretrained(tmp_path)


def test_a_misspelt_release_gets_the_nearest_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("llamagen/vq_ds16", Path("llamagen/vq_ds16")):
        with pytest.raises(UserError, match="no released checkpoint 'llamagen/vq_ds16': .* llamagen/vq_ds16_c2i"):
            from_pretrained(name)
    write_runs(tmp_path / "digits")
    save_pretrained("digits/tokenizer/tiny", "llamagen/own")  # a folder of this name is loaded
    assert isinstance(from_pretrained("llamagen/own"), Tokenizer)


def test_from_pretrained_is_public() -> None:
    assert polytoken.from_pretrained is from_pretrained
