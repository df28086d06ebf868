"""Own images through `make preset` and one `make curriculum`, from the check to the report, at sizes of seconds.

A small preset trains the networks that compare images. A large one reads published networks, whose files hold random
weights here, and measures its training images first.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from polytoken.classifier import SmallClassifier
from polytoken.files import file_sha256
from polytoken.metrics.judge import Judge
from tests.datamodules.test_sources import hub_cache
from tests.support.own_images import own_repository, run_make, truncate, write_saved, write_tree
from tests.support.recipes import write_judge
from tests.support.vgg import random_vgg
from tests.support.working_copy import change

__all__ = ["hub_cache"]  # a fixture

NAMES = ["n01", "n02", "n03"]
STAGES = ("tokenizer", "tokens", "stage1", "stage2", "samples")
SAMPLES = 12
TINY = {"base_channels": 32, "channel_multipliers": [1, 1, 1, 1], "num_res_blocks": 1, "adapter_depth": 1}
TRUNK = {"dim": 32, "depth": 1, "num_heads": 2, "ffn_multiple": 32}


def tree(place: Path) -> str:
    """As ImageNet, with an image that is cut short."""
    truncate(write_tree(place / "my images") / "train/n01/more/2024/1.JPEG")
    return f"DATA={place}/my images"


def saved(place: Path) -> str:
    """The same images in a data set of the Hugging Face library."""
    write_saved(place / "saved", write_tree(place / "tree"))
    return f"HUB={place}/saved"


def flat(place: Path) -> str:
    """The same images in one folder, without labels."""
    (place / "flat").mkdir()
    for number, file in enumerate(sorted(write_tree(place / "tree").rglob("*.JPEG"))):
        file.rename(place / f"flat/{number}.JPEG")
    return f"DATA={place}/flat"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_repository(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of VGG-16, a teacher and, as Inception, a small classifier."""
    weights = tmp_path_factory.mktemp("weights")
    random_vgg(weights / "vgg16.pth")
    write_judge(weights / "judge.safetensors", num_classes=3, side=64)
    (weights / "inception.pth").symlink_to("judge.safetensors")
    return weights


def shrink(preset: Path) -> None:
    """Edit the files of a preset, as a user may: tiny networks, few samples, nothing that only a GPU does fast."""
    large = not (preset / "teacher_mid.yaml").exists()
    alone, exact = {"num_workers": 0}, {"precision": "32-true"}
    teacher = {"teachers": {"high": {"name": "stand_in", "weights": "weights/high.safetensors"}}}
    codes = {"branch": {"init_args": {"codebook_size": 64}}}
    recipe = {"tokenizer": {"init_args": {"quantizer": {"init_args": codes}}}}
    tokenizer = {"tokenizer": {"init_args": TINY}, **({"objective": teacher} if large else {})}
    generator = {"generator": {"init_args": {"trunk": TRUNK}}}
    edits: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # arguments of the model and of the data
        "tokenizer": (tokenizer, {"batch_size": 4}),
        "tokens": ({}, {"views": {"crops": "centre"}}),
        "generator": (generator, {}),
        "sample": ({}, {"num_images": SAMPLES, "batch_size": 6}),
    }
    for name, (model, data) in edits.items():
        loader = {} if name == "sample" else alone
        sections = {"model": {"init_args": model}, "data": {"init_args": data | loader}, "trainer": exact}
        change(preset / f"{name}.yaml", sections)
    (preset / "fq_dual.yaml").write_text(yaml.safe_dump({"model": {"init_args": recipe}}))


@pytest.mark.slow
@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(("source", "size"), [(tree, "large"), (saved, "small"), (flat, "small"), (flat, "large")])
def test_own_images_go_through_all_stages(
    source: Callable[[Path], str],
    size: str,
    place: Path,
    published: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (place / "weights").symlink_to(published)
    monkeypatch.setattr(
        "polytoken.metrics.extractors.Inception",
        lambda weights, device: Judge(SmallClassifier.load(weights.resolve()), weights, "inception"),
    )
    labelled = source is not flat

    run_make("preset", "NAME=mine", source(place), f"ARGS=--size {size} --steps 1")
    said = capsys.readouterr().out
    assert ("3 classes" if labelled else "no labels: one class, an unconditional generator") in said
    train, validation = map(int, re.findall(r"splits: (\d+) training and (\d+) validation images", said)[0])
    assert train + validation == 60 and (train == 48 if labelled else ", a share of 0.2 held out\n" in said)
    assert "resolution: 64 px" in said
    assert ("1 image(s) cannot be read and are left out, such as" in said) == (source is tree)
    assert f"next: make {'demo' if size == 'small' else 'weights TEACHERS=clip_large_14 && make curriculum'}" in said

    shrink(place / "configs/presets/mine")
    run_make("curriculum", "PRESET=mine")
    said = capsys.readouterr().out
    assert said.index("nothing is missing") < said.index("trainable parameters"), "checked before anything is trained"
    assert ("reference of gFID" in said) == (size == "large")

    runs = place / "runs/mine"
    assert all((runs / stage / "fq_dual/done.json").exists() for stage in STAGES)
    made = runs / "samples/fq_dual"
    with np.load(made / "samples.npz", allow_pickle=False) as samples:
        assert samples["arr_0"].shape == (SAMPLES, 64, 64, 3) and samples["arr_0"].dtype == np.uint8
        assert samples["arr_1"].shape == (SAMPLES,) and samples["arr_1"].max() < (3 if labelled else 1)
    record = json.loads((made / "samples.json").read_text())
    assert record["class_names"] == (NAMES if labelled else ["all"])
    assert record["settings"]["sampler"]["guidance"] == (2.0 if labelled else 1.0)

    found = json.loads((made / "metrics.json").read_text())["evaluate"]
    metrics = [metric for group in found["metrics"].values() for metric in group.values()]
    assert all(math.isfinite(metric["value"]) for metric in metrics)
    assert found["samples"]["n"] == SAMPLES and found["samples"]["sha256"] == file_sha256(made / "samples.npz")
    if size == "large":
        reference = runs.relative_to(place) / "reference/train_inception.npz"
        compared = {"reference": str(reference), "reference_sha256": file_sha256(reference)}
        readable = train - (source is tree)
        assert found["reference"] == compared | {"reference_kind": "train", "reference_n": readable, "forced": False}
        assert {"gfid/inception", "precision/inception", "recall/inception"} <= {*found["metrics"]["samples"]}
    else:
        compared = {"reference": "mine validation images", "reference_kind": "validation", "reference_n": validation}
        assert found["reference"] == compared and found["extractor"]["name"] == "efficientnet_lite2"
        assert found["extractor"]["sha256"].startswith("9656183e")
        assert {"validation", "train", "reconstructions", "samples"} == {*found["metrics"]}
        assert (runs / "teacher/mid").exists() and (runs / "teacher/high").exists() == labelled
    assert "mine" in (runs / "report.md").read_text() and (runs / "report.html").exists()
