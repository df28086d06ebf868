"""Check of a curriculum before its first step."""

import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from commands import check, estimates
from commands.cli.composed import compose
from commands.preset import Preset
from polytoken.teachers.efficientnet import EFFICIENTNETS, InstalledWeights
from tests.support.commands import REPOSITORY
from tests.support.recipes import CONFIGS, preset_files

PRESETS = "configs/presets"
IMAGES = 1_281_167  # of ImageNet's training split


def stages(preset: str, *data: str) -> list[str]:
    files = {"fq_dual": "tokenizer", "tokens": "tokens", "stage2": "generator", "sample": "sample"}
    words = ["--preset", preset]
    for recipe, file in files.items():
        command = "predict" if recipe in ("tokens", "sample") else "fit"
        words += ["--", command, "--config", f"configs/{recipe}.yaml", "--config", f"{PRESETS}/{preset}/{file}.yaml"]
        words += data if recipe == "fq_dual" else ()
        words += ["--model.init_args.tokenizer_run", "t"] if recipe == "tokens" else ()
        words += ["--model.init_args.generator_run", "g"] if recipe == "sample" else ()
    return words


def tokens_of(recipe: str, preset: str, **views: object) -> estimates.Estimate:
    """The estimate of the token store of a recipe, with changes of the views."""
    files = [str(CONFIGS / f"{recipe}.yaml"), *preset_files(recipe, preset)]
    tokenizer = compose(["fit", *(word for file in files for word in ("--config", file))])
    tokens, *later = (compose(words.split()) for words in " ".join(stages(preset)).split(" -- ")[2:])
    tokens["data"]["init_args"]["views"] |= views
    return [*estimates.estimates(tokenizer, tokens, *later, IMAGES)][1]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    return tmp_path


def folder(root: Path) -> None:
    for place in ("train/a", "train/b", "val/a", "val/b"):
        (root / place).mkdir(parents=True)
        Image.new("RGB", (30, 28)).save(root / place / "0.jpg")


def test_what_imagenet_lacks_is_listed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(here / "images")
    with pytest.raises(SystemExit) as stop:
        check.main(stages("imagenet", "--data.source.root", "images"))
    assert stop.value.code == 1
    said = capsys.readouterr().out
    missing = said.splitlines()[-1]
    for file in (
        "weights/vgg16.pth",
        "weights/clip_large_14.safetensors",
        "weights/inception.pth",
        "reference of gFID",
    ):
        assert file in missing
    assert "images" not in missing and "2, such as" in said and "51,200,000 images" in said
    for name, lacks in (("a", False), ("b", True)):  # training skips a few unreadable images, and so does this
        (here / f"images/val/{name}/0.jpg").write_bytes(b"no image")
        with pytest.raises(SystemExit):
            check.main(stages("imagenet", "--data.source.root", "images"))
        said = capsys.readouterr().out
        assert "images/val/a/0.jpg cannot be read" in said and ("missing: validation images" in said) == lacks


def test_the_work_is_shared_by_the_processes_of_all_nodes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each machine needs the GPUs of its own processes, and a step has as many more images as there are processes."""
    folder(here / "images")
    times = {}
    for nodes in ("1", "2"):
        with pytest.raises(SystemExit):
            check.main(stages("imagenet", "--data.source.root", "images", "--trainer.num_nodes", nodes))
        said = capsys.readouterr().out
        assert "8 GPU(s)" in said and f"here as if {8 * int(nodes)} shared" in said
        (times[nodes],) = re.findall(r"tokenizer.* images .*?(\d[^│]*) at least", said)
    assert times["1"] == times["2"]
    with pytest.raises(SystemExit):
        check.main(["--in-job", *stages("imagenet", "--data.source.root", "images", "--trainer.num_nodes", "2")])
    assert "16 GPU(s)" in capsys.readouterr().out


def test_nothing_is_missing_of_an_embedded_preset(capsys: pytest.CaptureFixture[str]) -> None:
    check.main(stages("digits"))
    said = capsys.readouterr().out
    assert said.endswith("nothing is missing\n") and "made first" in said
    assert "not measured" in said and "the log of a run has its time left" in said and "H200" not in said


def test_without_stages_it_names_the_target_of_make(capsys: pytest.CaptureFixture[str]) -> None:
    for words, count in (([], 0), (["--", "fit", "--", "predict"], 2)):
        with pytest.raises(SystemExit) as stop:
            check.main(words)
        assert stop.value.code == 2
        assert f"and got {count} of them: make check PRESET=name gives all" in capsys.readouterr().err


def test_an_unknown_size_is_not_counted_as_none(tmp_path: Path) -> None:
    known, unknown = estimates.Estimate("samples", "", None, 2e9), estimates.Estimate("tokens", "", None, None)
    assert check.disk(tmp_path, [known]).what == f"2.0 GB in {tmp_path}, and checkpoints"
    assert check.disk(tmp_path, [known, unknown]).what == f"2.0 GB in {tmp_path}, and checkpoints; tokens: unknown"
    assert [estimate.row(1)[-1] for estimate in (known, unknown)] == ["2.0 GB", "unknown"]


@pytest.mark.parametrize(
    ("recipe", "bytes_of_a_crop"),
    [
        ("ae", 4 * 256 * 2),
        ("ifsq", 256 * 4),
        ("var", 680 * 2),
        ("fq_dual", 2 * 256 * 2),
        ("lfq", 2 * 256 * 2),
        ("imagefolder", 2 * 286 * 2),
        ("ideal", 576 * 2),
    ],
)
def test_the_size_of_a_token_store_is_that_of_its_tokens(recipe: str, bytes_of_a_crop: int) -> None:
    """Latents have channels, scales add up, and codes of more than 65,536 entries are wide."""
    assert tokens_of(recipe, "imagenet").size == IMAGES * 10 * bytes_of_a_crop


@pytest.mark.parametrize(
    ("changes", "crops"),
    [({}, 10), ({"flip": False}, 5), ({"enlargements": [1.1, 1.05]}, 20), ({"crops": "centre"}, 2)],
)
def test_all_crops_are_counted(changes: dict[str, object], crops: int) -> None:
    tokens = tokens_of("vq", "imagenet", **changes)
    assert tokens.work == f"{IMAGES * crops:,} crops" and tokens.size == IMAGES * crops * 512


def test_a_store_is_unknown_before_the_network_of_its_tokenizer_is_made() -> None:
    assert tokens_of("ideal", "digits").size is None


def test_the_speeds_are_those_of_the_results() -> None:
    text = (REPOSITORY / "docs/results.md").read_text().partition("## On a GPU")[2]
    for speed in (estimates.TOKENIZER_STEP, estimates.TOKENIZER_FORWARD):
        assert f"{speed:,} " in text


def test_networks_of_packages_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    perceptual = {"perceptual": {"class_path": "polytoken.losses.EfficientNetFeatures", "init_args": {"weight": 1.0}}}
    teacher = {"teachers": {"high": {"name": "efficientnet_lite0", "weights": None, "final_norm": False}}}
    preset = Preset.load("photos")

    def found() -> list[check.Finding]:
        return [*check.weights([perceptual, teacher], Path("teacher")), *check.evaluation(preset, Path("runs"))]

    assert [finding.state for finding in found()] == [check.GOOD] * 3
    missing = InstalledWeights("no_such_package", "none.pth", "none", 224)
    monkeypatch.setattr(check, "EFFICIENTNETS", dict.fromkeys(EFFICIENTNETS, missing))
    assert [finding.state for finding in found()] == [check.MISSING] * 3
    assert all("install the extra `vision`" in finding.remedy for finding in found())
