"""The Makefile finds recipes and their overlays by their files."""

import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.support.commands import REPOSITORY, make
from tests.support.recipes import CONFIGS, PRESETS, TOKENIZERS, preset_files, recipes_of
from tests.support.working_copy import link_repository

GENERATORS = recipes_of("lightning_modules.GeneratorModule")


def configs_of(line: str) -> list[str]:
    return re.findall(r"--config (\S+)", line)


def test_help_has_sections_and_lists_every_recipe() -> None:
    said = make("help")
    assert (
        f"TOKENIZER=fq_dual {' '.join(TOKENIZERS)}\n" in said and f"GENERATOR=stage2 {' '.join(GENERATORS)}\n" in said
    )
    (presets,) = re.findall(r"PRESET=digits    (.*)", said)
    assert {*PRESETS} <= {*presets.split()} and len(said.splitlines()) <= 60
    heads = re.findall(r"^([A-Z]+)$", said, re.MULTILINE)
    assert heads == ["START", "STAGES", "MEASURE", "EXPERIMENTS", "CLUSTER", "DEVELOPMENT"]
    targets = re.findall(r"^  ([a-z0-9-]+) ", said, re.MULTILINE)
    assert len(targets) == len({*targets}), "a target twice"
    examples = re.findall(r"^    make (.*?) +a ", said, re.MULTILINE)
    assert len(examples) == 2
    for example in examples:
        assert "cli.py" in make("-n", "-B", *shlex.split(example))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", GENERATORS)
def test_a_generator_gets_its_overlay(recipe: str, preset: str) -> None:
    said = make("-n", "-B", "generator", f"GENERATOR={recipe}", f"PRESET={preset}", "TOKENIZER=var")
    (line,) = (line for line in said.splitlines() if f"--run.stage {recipe}/var" in line)
    expected = [CONFIGS / f"{recipe}.yaml", *map(Path, preset_files(recipe, preset, "generator"))]
    assert [REPOSITORY / file for file in configs_of(line)] == expected
    assert f"--data.store runs/{preset}/tokens/var" in line


def test_a_new_recipe_and_its_overlay_need_no_change_of_the_makefile(tmp_path: Path) -> None:
    """DATA reaches recipes that read the images, which the recipe or its overlay says."""
    (tmp_path / "Makefile").write_text((REPOSITORY / "Makefile").read_text())
    (tmp_path / "configs/presets/mine").mkdir(parents=True)
    for name in ("vq", "tokens", "sample"):
        (tmp_path / f"configs/{name}.yaml").write_text("")
    for name in ("tokenizer", "tokens", "sample", "generator", "online"):
        (tmp_path / f"configs/presets/mine/{name}.yaml").write_text("")
    model = {"model": {"class_path": "lightning_modules.GeneratorModule"}}
    for name in ("new", "online"):
        (tmp_path / f"configs/{name}.yaml").write_text(yaml.safe_dump(model))
    online = {"data": {"class_path": "datamodules.OnlineTokenDataModule"}}
    (tmp_path / "configs/presets/mine/online.yaml").write_text(yaml.safe_dump(online))
    assert "GENERATOR=stage2 new online\n" in make("help", cwd=tmp_path)
    settings = ("PRESET=mine", "TOKENIZER=vq", "DATA=/images")
    for recipe, files in (("new", []), ("online", ["configs/presets/mine/online.yaml"])):
        said = make("-n", "sample", f"GENERATOR={recipe}", *settings, cwd=tmp_path)
        (line,) = (line for line in said.splitlines() if f"--run.stage {recipe}/vq" in line)
        assert configs_of(line) == [f"configs/{recipe}.yaml", "configs/presets/mine/generator.yaml", *files]
        assert ("source.root='/images'" in line) == (recipe == "online")
        assert f"--model.generator_run runs/mine/{recipe}/vq" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("tokenizer", "TOKENIZER=imagefoldr"), "TOKENIZER is imagefoldr, and there is no configs/imagefoldr.yaml"),
        (("sample", "GENERATOR=next_scal"), "GENERATOR is next_scal, and there is no configs/next_scal.yaml"),
        (("demo", "PRESET=photo"), "PRESET is 'photo': take one of "),
        (("demo", "LAUNCH=slrm"), "LAUNCH is slrm: take here or slurm"),
        (("demo", "STEPS=many"), "STEPS is many: expected a number"),
        (("tokenizer", "RUN=a/b"), "RUN is a/b: give a variant a plain name"),
        (("evaluate", "RUN=nowhere"), "RUN is nowhere, and no stage of runs/digits has this name yet"),
        (("demo", "TOKENIZER=ae"), "GENERATOR stage2 learns codes, and TOKENIZER ae has none: take GENERATOR=dit"),
        (("stage1", "TOKENIZER=vae"), "GENERATOR stage1 learns codes, and TOKENIZER vae has none"),
        (("clean", "YES=1", "PRESET="), "PRESET is '': take one of "),
        (("clean", "YES=1", "PRESET=*"), "PRESET is '*': take one of "),
        (("clean", "YES=1", "PRESET=../configs"), "PRESET is '../configs': take one of "),
        (("clean", "YES=1", "PRESET=digits photos"), "PRESET is 'digits photos': take one of "),
        (("zero-shot", "TOKENIZER=vq"), "TOKENIZER is vq, and zero-shot classification reads features of a foundation"),
        (("caption",), "PRESET is digits, whose images have no captions: take one of imagenet photos"),
        (
            ("caption", "PRESET=photos", "FEATURE=decoded/deep"),
            "FEATURE is decoded/deep, and TOKENIZER fq_dual has before",
        ),
        (("experiment", "DATA=/images"), "DATA does not reach experiments, which read images where the preset has"),
        (("condition",), "GENERATOR is stage2, and references condition a next-scale one: make condition GENERATOR="),
    ],
)
def test_a_wrong_name_is_refused_before_anything_is_trained(arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as stop:
        make("-n", "-B", *arguments)
    assert stop.value.returncode == 2 and not stop.value.stdout and sentence in stop.value.stderr


@pytest.mark.parametrize(("tokenizer", "needed"), [("ideal", True), ("fq_dual", False)])
def test_only_recipes_on_the_dual_encoder_train_it(tokenizer: str, needed: bool) -> None:
    said = make("-n", "-B", "tokenizer", f"TOKENIZER={tokenizer}", "PRESET=photos")
    assert ("--config configs/teacher_dual.yaml" in said) == needed
    assert "teacher_dual.yaml" in make("-n", "-B", "teacher")


def test_a_preset_may_encode_by_one_tokenizer_in_another_way() -> None:
    overlay = "--config configs/presets/imagenet/tokens_ideal.yaml"
    assert overlay in make("-n", "-B", "tokens", "PRESET=imagenet", "TOKENIZER=ideal")
    assert overlay not in make("-n", "-B", "tokens", "PRESET=imagenet", "TOKENIZER=ideal_256")


def test_a_preset_may_sample_one_generator_in_another_way() -> None:
    overlay = "--config configs/presets/imagenet/sample_llamagen_ideal.yaml"
    assert overlay in make("-n", "-B", "sample", "PRESET=imagenet", "TOKENIZER=ideal")
    assert overlay not in make("-n", "-B", "sample", "PRESET=imagenet")


def test_a_slip_in_the_name_of_a_variable_is_refused() -> None:
    with pytest.raises(subprocess.CalledProcessError) as stop:
        make("-n", "sample", "TOKENIZR=vq")
    assert "TOKENIZR is no variable of this Makefile: take one of ARGS CAPTIONS" in stop.value.stderr


def test_args_without_a_stage_are_refused() -> None:
    for goal in ("demo", "curriculum", "report"):
        with pytest.raises(subprocess.CalledProcessError) as stop:
            make("-n", goal, "ARGS=--trainer.max_steps 7")
        assert f"ARGS go to the stages on the command line, and {goal} is none: take STEPS" in stop.value.stderr
    assert "--trainer.max_steps 7" in make("-n", "-B", "tokenizer", "report", "ARGS=--trainer.max_steps 7")


def test_variables_with_common_names_count_on_the_command_line_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOST", "PORT", "YES", "NAME", "STEPS", "RUN", "TEACHERS", "NODES"):
        monkeypatch.setenv(name, "7")
    assert make("-n", "tensorboard").split("--port ")[1] == "6006 --host localhost\n"
    assert 'test -n "" ||' in make("-n", "clean")
    for goal in ("consolidate", "profile", "experiment-stage", "weights", "sample LAUNCH=slurm"):
        assert not re.search(r"\b7\b", make("-n", *goal.split())), goal
    assert "--port 7 --host 7" in make("-n", "tensorboard", "HOST=7", "PORT=7")
    assert 'test -n "1" ||' in make("-n", "clean", "YES=1")


@pytest.mark.parametrize("target", ["demo", "curriculum"])
def test_the_generator_follows_from_the_recipe_of_the_tokenizer(target: str, here: Path) -> None:
    assert places(make("-n", target, "TOKENIZER=ideal", cwd=here))[-2:] == [
        *("samples/ideal_llamagen_ideal", "samples/ideal_llamagen_ideal")
    ]
    submitted = make("-n", target, "TOKENIZER=ideal", "LAUNCH=slurm", cwd=here)
    assert "digits-generator" in submitted and "digits-stage" not in submitted


def test_captioning_is_submitted_with_its_feature_and_captions() -> None:
    said = make("-n", "caption", "LAUNCH=slurm", "PRESET=imagenet", "FEATURE=before/all", "CAPTIONS=/data/flickr")
    assert {"caption", "'FEATURE=before/all'", "'CAPTIONS=/data/flickr'"} <= {*said.split()}


def test_zero_shot_reads_the_class_vectors_of_the_preset() -> None:
    said = make("-n", "-B", "zero-shot", "TOKENIZER=ideal")
    assert "commands.class_vectors --text runs/digits/teacher/text.safetensors" in said
    assert (
        "commands.zero_shot --run runs/digits/tokenizer/ideal --classes 'runs/digits/teacher/classes.safetensors'"
        in said
    )
    said = make(
        "-n",
        "-B",
        "zero-shot",
        "TOKENIZER=ideal_256",
        "PRESET=imagenet",
        "CLASSES=weights/siglip2_large_256_classes.safetensors",
    )
    assert "commands.class_vectors --text siglip2_large_256 " in said


def test_arguments_may_make_a_pair_fit() -> None:
    one = "--data.sub_codes [0]"
    assert one in make("-n", "-B", "generator", "GENERATOR=llamagen", "TOKENIZER=fq_dual", f"ARGS={one}")
    assert "--run.stage tokens/ae" in make("-n", "-B", "tokens", "TOKENIZER=ae")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory to run make in, without runs."""
    for name in ("Makefile", "configs", "scripts"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    return tmp_path


def test_only_its_marker_finishes_a_stage(here: Path) -> None:
    runs = here / "runs/digits"
    places = [runs / place for place in ("teacher/judge", "teacher/perceptual", "teacher/mid", "teacher/high")]
    places += [runs / f"{stage}/fq_dual" for stage in ("tokenizer", "tokens", "stage1", "stage2", "samples")]
    for place in places:
        place.mkdir(parents=True)
        for file in ("metrics.json", "samples.npz", "samples.json", f"../{place.name}.safetensors"):
            (place / file).touch()
    assert make("-n", "evaluate", cwd=here).count("cli.py") == len(places)
    for place in places:
        (place / "done.json").touch()
    assert "cli.py" not in make("-n", "evaluate", cwd=here)
    (places[4] / "done.json").unlink()
    assert make("-n", "evaluate", cwd=here).count("cli.py") == 5, "the tokenizer, and all that is built upon it"


def test_the_report_is_written_again_after_any_measurement(here: Path) -> None:
    """A measurement of any run counts. Files that every start may touch do not, and no old measurement is repeated."""
    runs, now = here / "runs/digits", time.time()
    stages = [f"teacher/{name}" for name in ("judge", "perceptual", "mid", "high")]
    stages += [f"{stage}/fq_dual" for stage in ("tokenizer", "tokens", "stage1", "stage2", "samples")]

    def write(place: str, age: float) -> None:
        (runs / place).parent.mkdir(parents=True, exist_ok=True)
        (runs / place).touch()
        os.utime(runs / place, (now - age,) * 2)

    def programs(*goals: str) -> list[str]:
        return re.findall(r"-m (commands\.\w+)", make("-n", *goals, cwd=here))

    for place in stages:
        write(f"{place}/done.json", 30)
    for file, age in (("tokenizer/fq_dual/probes.json", 40), ("samples/fq_dual/metrics.json", 20), ("report.html", 10)):
        write(file, age)
    assert programs("report") == []
    assert programs("sweep", "report") == programs("report", "sweep") == ["commands.sweep", "commands.report"]
    for file in (
        *("tokenizer/fq_dual/probes.json", "tokenizer/vq/codes.json", "tokens/vq/dependency.json"),
        *("dit/vq/sweep.json", "caption_stage2/vq/captions.json", "far_base/a copy: 1/metrics.json"),
    ):
        write(file, 5)
        assert programs("report") == ["commands.report"], file
        write(file, 15)
    for file in ("done.json", "compared.json"):
        write(f"far_base/vq/{file}", 5)
    assert programs("report") == []


def test_paths_may_hold_spaces_and_quotes(here: Path) -> None:
    place = "my  spaced 'dir'"
    for directory in (place, *(f"runs/digits/teacher/{name}" for name in ("judge", "perceptual", "mid", "high"))):
        (here / directory).mkdir(parents=True)
        for name in ("done.json", "theirs.npz", "samples.npz", "classes.safetensors"):
            (here / directory / name).touch()
    for goal, given, option in (
        ("tokenizer", f"DATA={place}", f"--data.source.root={place}"),
        ("reference", f"DATA={place}", place),
        ("caption PRESET=photos", f"CAPTIONS={place}", f"--data.source.root={place}"),
        ("stage2", f"STAGE1={place}", place),
        ("evaluate", f"SAMPLES={place}/theirs.npz", f"{place}/theirs.npz"),
        ("evaluate", f"SAMPLES={place}/samples.npz", f"{place}/samples.npz"),
        ("zero-shot TOKENIZER=ideal", f"CLASSES={place}/classes.safetensors", f"{place}/classes.safetensors"),
        ("consolidate", f"RUN={place}", place),
        ("profile", f"RUN={place}", place),
        ("experiment-stage", f"RUN={place}", place),
    ):
        commands = [line for line in make("-n", *goal.split(), given, cwd=here).splitlines() if "/python " in line]
        assert any(option in shlex.split(command) for command in commands), (goal, given)
    (here / place / "theirs_metrics.json").touch()
    assert "commands.evaluate" not in make("-n", "evaluate", f"SAMPLES={place}/theirs.npz", cwd=here)


def test_own_images_are_checked_first_and_measured_once(tmp_path: Path) -> None:
    """Without a network of its own, a preset is compared with its training images; ImageNet with ADM's file."""
    here = link_repository(tmp_path / "here")
    shutil.copytree(here / "configs/presets/imagenet", here / "configs/presets/large")
    shutil.copytree(here / "configs/presets/photos", here / "configs/presets/small")

    def programs(*goals: str) -> list[str]:
        return re.findall(r"python -m commands\.(check|reference|evaluate|sweep)\b", make("-n", *goals, cwd=here))

    assert programs("curriculum", "PRESET=large") == ["check", "reference", "evaluate"]
    assert programs("sweep", "PRESET=large") == ["reference", "sweep"]
    assert programs("curriculum", "PRESET=small") == programs("demo", "PRESET=imagenet") == ["check", "evaluate"]
    assert programs("demo") == programs("demo", "PRESET=photos") == ["evaluate"]
    assert programs("evaluate", "PRESET=large", "ARGS=--reference theirs.npz") == ["evaluate"]
    reference = here / "runs/large/reference/train_inception.npz"
    reference.parent.mkdir(parents=True)
    reference.touch()
    assert programs("curriculum", "PRESET=large") == ["check", "evaluate"]
    samples = ("SAMPLES=theirs.npz", "PRESET=large")
    for file, age in (("theirs.npz", 2), ("theirs_metrics.json", 0)):
        (here / file).touch()
        os.utime(here / file, (time.time() - age,) * 2)
    reference.unlink()
    assert programs("evaluate", *samples) == [], "metrics by another network stay"
    reference.touch()
    os.utime(reference, (time.time() + 9,) * 2)
    assert programs("evaluate", *samples) == ["evaluate"], "the reference is a new one"


def test_the_status_begins_with_the_teachers_and_ends_with_a_command() -> None:
    said = make("-n", "status", "TOKENIZER=vq", "STEPS=20")
    assert '--next "next: make curriculum TOKENIZER=vq STEPS=20"' in said
    assert re.search(r"teacher/judge .*tokenizer/vq_20_steps .*samples/vq_20_steps", said, re.DOTALL)


def test_hints_keep_what_was_chosen() -> None:
    chosen = ("PRESET=photos", "TOKENIZER=ifsq", "GENERATOR=dit")
    said = re.findall(r'next: make (.*)"', make("-n", "-B", "evaluate", *chosen, "DATA=a b"))
    goals = ("tokens", "generator", "sample", "evaluate", "report")
    assert said == [f"{goal} {' '.join(chosen)} DATA='a b'" for goal in goals]
    said = re.findall(r'next: make (.*)"', make("-n", "-B", "evaluate"))
    assert said == ["tokens", "stage1", "stage2", "sample", "evaluate", "report"]


def places(said: str) -> list[str]:
    """Directories of the stages that make would run, without the teachers."""
    named = [re.search(r"--run.stage (\S+)", line) for line in said.splitlines() if "cli.py" in line]
    return [match[1] for match in named if match] + re.findall(r"--samples 'runs/digits/(\S+)/samples.npz'", said)


def test_a_variant_branches_off_where_it_begins(here: Path) -> None:
    """Stages before the first of this name are those of the recipe."""
    assert places(make("-n", "evaluate", "demo", "RUN=low", cwd=here)) == [
        *("tokenizer/low", "tokens/low", "stage1/low", "stage2/low", "samples/low", "samples/low")
    ]
    later = [f"{stage}/fq_dual" for stage in ("tokens", "stage1", "stage2")]
    assert places(make("-n", "sample", "RUN=low", cwd=here)) == [*later, "samples/low"]
    (here / "runs/digits/tokens/low").mkdir(parents=True)
    assert places(make("-n", "evaluate", "RUN=low", cwd=here)) == [
        *("tokens/low", "stage1/low", "stage2/low", "samples/low", "samples/low")
    ]
    said = make("-n", "sample", "RUN=low", "GENERATOR=llamagen", "TOKENIZER=vq", cwd=here)
    assert places(said) == ["tokens/low", "llamagen/low", "samples/low_llamagen"]
    assert "--data.store runs/digits/tokens/low" in said and "next: make evaluate TOKENIZER=vq" in said


def test_a_quick_look_has_places_of_its_own(here: Path) -> None:
    said = make("-n", "demo", "STEPS=20", cwd=here)
    trained = ("tokenizer", "stage1", "stage2")
    assert places(said)[:4] == [f"{stage}/fq_dual_20_steps" for stage in ("tokenizer", "tokens", "stage1", "stage2")]
    lines = [line for line in said.splitlines() if "--trainer.max_steps 20" in line]
    assert [re.search(r"--run.stage (\w+)", line)[1] for line in lines] == [*trained], "the teachers train in full"  # type: ignore[index]
    assert "next: make tokens STEPS=20" in said


@pytest.mark.parametrize("target", ["demo", "curriculum", "sample"])
def test_devices_reach_every_stage_of_several_processes(target: str, here: Path) -> None:
    lines = [
        line
        for line in make("-n", target, "DEVICES=2", "NODES=3", cwd=here).splitlines()
        if "--run.stage" in line or "fq_dual.yaml" in line
    ]
    assert len(lines) == 5 and all("--trainer.devices 2 --trainer.num_nodes 3" in line for line in lines)
    assert ["--trainer.strategy ddp_find_unused_parameters_true" in line for line in lines] == [True] + [False] * 4
    one = make("-n", "tokenizer", "PRESET=imagenet", "DEVICES=1", cwd=here)
    assert "--trainer.devices 1 --trainer.strategy auto" in " ".join(one.split())


def test_devices_reach_the_analysis(here: Path) -> None:
    """The analysis is a validation under the preset, whose devices the machine may not have."""
    for given, expected in (
        (("DEVICES=1",), "--trainer.devices 1 --trainer.strategy auto"),
        (
            ("DEVICES=2", "NODES=3"),
            "--trainer.devices 2 --trainer.num_nodes 3 --trainer.strategy ddp_find_unused_parameters_true",
        ),
    ):
        said = " ".join(make("-n", "analysis", "PRESET=imagenet", *given, "ARGS=--x 1", cwd=here).split())
        assert f"imagenet/analysis.yaml {expected} --x 1" in said.replace("\\ ", "")


# a stage takes seconds, which its marker shows
STUB = """#!/bin/sh
echo "$@" >> log
test "$2" = commands.stage && { test -e "$3/done.json" || { mkdir -p "$3" && touch -d '2 seconds' "$3/done.json"; }; }
test "$2" = commands.evaluate && echo > runs/digits/samples/fq_dual/metrics.json
test "$2" = commands.report && echo > runs/digits/report.html
true
"""


def test_make_asks_about_each_stage_and_repeats_nothing(here: Path) -> None:
    """Neither times of files nor a stage that had nothing to do starts the stages after it."""
    (here / "stub/bin").mkdir(parents=True)
    (here / "stub/bin/python").write_text(STUB)
    (here / "stub/bin/python").chmod(0o755)

    def programs(*goals: str) -> list[list[str]]:
        (here / "log").write_text("")
        make(*goals, "VENV=stub", "-o", "stub/.ready", cwd=here)
        return [line.split() for line in (here / "log").read_text().splitlines()]

    stages = [f"teacher/{name}" for name in ("judge", "perceptual", "mid", "high")]
    stages += [f"{stage}/fq_dual" for stage in ("tokenizer", "tokens", "stage1", "stage2", "samples")]
    first = programs("report")
    assert [words[2] for words in first if words[1] == "commands.stage"] == [f"runs/digits/{place}" for place in stages]
    assert [words[1] for words in first].count("commands.summary") == 7
    for place in stages:  # copied, or restored from a backup: the earlier, the newer
        os.utime(here / "runs/digits" / place / "done.json", (2e9 - stages.index(place), 2e9 - stages.index(place)))
    for file in ("samples/fq_dual/metrics.json", "report.html"):
        os.utime(here / "runs/digits" / file, (2e9 + 10, 2e9 + 10))
    assert {words[1] for words in programs("report")} <= {"commands.stage", "commands.summary"}
    asked = [words for words in programs("stage1", "ARGS=--model.x 1") if words[1] == "commands.stage"]
    assert ["--named" in words for words in asked] == [False] * 6 + [True]
    assert asked[-1][-2:] == ["--model.x", "1"]
