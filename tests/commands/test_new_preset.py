"""Presets for own images: what is found and chosen, and that they carry the images through all stages."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from commands import new_preset
from commands.new_preset import choose
from commands.preset import Preset
from commands.preset_files import files
from commands.survey import Survey, folder, hub, survey
from polytoken.errors import UserError
from tests.datamodules.test_sources import hub_cache, hub_table
from tests.support.own_images import own_repository, run_make, truncate, write_tree
from tests.support.recipes import PRESETS
from tests.support.working_copy import change

__all__ = ["hub_cache"]  # a fixture


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_repository(tmp_path, monkeypatch)


def settings(place: Path, file: str, name: str = "mine") -> dict:
    return yaml.safe_load((place / f"configs/presets/{name}/{file}.yaml").read_text())


def metrics(place: Path, name: str = "mine") -> dict:
    return json.loads((place / f"runs/{name}/samples/fq_dual/metrics.json").read_text())["evaluate"]


@pytest.mark.slow
def test_a_tree_like_imagenet_goes_through_all_stages(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truncate(write_tree(place / "my images") / "train/n01/more/2024/1.JPEG")
    run_make("preset", "NAME=mine", f"DATA={place}/my images", "ARGS=--steps 2")
    said = capsys.readouterr().out
    assert "3 classes\nsplits: 48 training and 12 validation images\nresolution: 64 px" in said
    assert "1 image(s) cannot be read and are left out, such as" in said and "more/2024/1.JPEG" in said
    assert "next: make demo PRESET=mine" in said
    run_make("demo", "PRESET=mine")
    found = metrics(place)
    assert found["extractor"]["name"] == "judge" and found["metrics"]["samples"]["recognised/judge"]["n"] == 40
    assert found["metrics"]["train"]["fd/judge"]["n"] == 39, "the truncated image is left out"
    assert (place / "runs/mine/report.html").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("hub_cache")
def test_images_of_the_hub_without_labels(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No judge, no guidance; the stand-in for DINOv2, which learns without labels, compares the images."""
    hub_table([0, 1, 2] * 16, 100).remove_columns("label").save_to_disk(str(place / "saved"))
    run_make("preset", "NAME=mine", f"HUB={place}/saved", "ARGS=--steps 1")
    said = capsys.readouterr().out
    assert "no labels: one class, an unconditional generator" in said and "held out" in said
    trunk = {"dim": 32, "depth": 1, "num_heads": 2, "ffn_multiple": 32}
    generator = {"model": {"init_args": {"generator": {"init_args": {"trunk": trunk}}}}}
    change(place / "configs/presets/mine/generator.yaml", generator)  # seconds less
    run_make("demo", "PRESET=mine")
    found = metrics(place)
    assert found["extractor"]["name"] == "stand_in" and "gfd/stand_in" in found["metrics"]["samples"]
    assert found["samples"]["settings"]["sampler"]["guidance"] == 1.0
    assert not (place / "configs/presets/mine/judge.yaml").exists()


@pytest.mark.usefixtures("hub_cache")
def test_columns_and_splits_of_the_hub_are_found(place: Path, tmp_path: Path) -> None:
    from datasets import DatasetDict

    table = hub_table([0, 1, 2] * 4, 0).rename_columns({"image": "picture", "label": "kind"})
    DatasetDict(train=table, test=table.select(range(3))).save_to_disk(str(tmp_path / "named"))
    source = hub(str(tmp_path / "named"))
    assert source["init_args"] == {
        "path": str(tmp_path / "named"),
        "image_column": "picture",
        "label_column": "kind",
        "validation_split": "test",
    }
    assert survey(source).classes == ["cat", "dog", "eel"] and survey(source).count == {"train": 12, "validation": 3}
    new_preset.main(["--name", "mine", "--hub", str(tmp_path / "named"), "--no-flip"])
    (images, labels), *_ = Preset.load("mine").images("validation")
    assert images.shape == (3, 3, 64, 64) and labels.tolist() == [0, 1, 2]
    assert settings(place, "teacher_high")["data"]["init_args"]["horizontal_flip"] is False
    assert settings(place, "tokens")["data"]["init_args"]["views"]["flip"] is False
    assert "label_column" in hub(str(tmp_path / "named"), labelled=False)["init_args"]


def test_folders_without_splits_hold_a_share_out(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", 10) / "train"
    source = folder(str(root))
    assert source["init_args"] == {"root": str(root), "held_out": 0.2}
    found = survey(source)
    assert found.classes == ["n01", "n02", "n03"] and sum(found.count.values()) == 24
    assert survey(folder(str(root), labelled=False)).classes == []


def test_a_name_is_checked_and_nothing_is_overwritten(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(write_tree(place / "tree", 5))
    for name, sentence in (("", "NAME is ''"), ("../x", "NAME is '../x'"), ("digits", "there is a preset digits")):
        with pytest.raises(SystemExit) as stop:
            new_preset.main(["--name", name, "--data", data])
        assert stop.value.code == 2 and sentence in capsys.readouterr().err
    with pytest.raises(SystemExit):
        new_preset.main(["--name", "mine"])
    assert "name the images by one of DATA=/path" in capsys.readouterr().err
    assert sorted(path.name for path in (place / "configs/presets").iterdir()) == PRESETS


def test_a_failed_write_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, text: str) -> None:
        path.parent.mkdir(exist_ok=True)
        raise OSError("the disk is full")

    monkeypatch.setattr(new_preset, "write_text", fail)
    with pytest.raises(OSError):
        new_preset.write("mine", {"tokenizer.yaml": ""})
    assert sorted(path.name for path in (place / "configs/presets").iterdir()) == PRESETS


def own(side: int, train: int = 5000, classes: int = 3) -> Survey:
    source = {"class_path": "datamodules.FolderSource", "init_args": {"root": "/images"}}
    return Survey(
        source, [f"class_{number}" for number in range(classes)], {"train": train, "validation": 9}, side, [], 0
    )


@pytest.mark.parametrize(
    ("side", "memory", "resolution", "batch"),
    [(90, 24, 64, 128), (200, 24, 128, 32), (300, 80, 256, 32), (30, 8, 64, 32)],
)
def test_sizes_follow_images_and_gpu(
    side: int, memory: int, resolution: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda gpu: type("Card", (), {"total_memory": memory * 10**9})
    )
    choice = choose(own(side), None, None, None, True)
    assert (choice.size, choice.resolution, choice.batch) == ("large", resolution, batch)
    written = {name: yaml.safe_load(text) for name, text in files("mine", own(side), choice, "make").items()}
    assert written["tokenizer.yaml"]["trainer"]["devices"] == 1 and "strategy" in written["tokenizer.yaml"]["trainer"]
    assert written["tokenizer.yaml"]["model"]["init_args"]["optimizer"]["learning_rate"] == 2e-4 * batch / 256
    assert "judge.yaml" not in written


def test_a_machine_without_gpu_takes_small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose(own(300), None, None, None, True).resolution == 64
    assert choose(own(300), None, 128, None, True).resolution == 128
    assert choose(own(300, train=10), None, None, None, True).batch == 4


def test_missing_folders_and_mistaken_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a folder: name one of images by DATA=/path"):
        folder("nowhere")
    hub_table([0, 1], 0).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match="is a data set of the Hugging Face library: name it by HUB= instead of DATA="):
        folder(str(tmp_path / "saved"))
