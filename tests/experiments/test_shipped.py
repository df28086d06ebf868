"""The shipped experiments against the papers, the recipes and each other."""

import re
from functools import cache
from itertools import groupby
from pathlib import Path

import msgspec
import pytest

from artifacts import yaml_files
from experiments.specification import DIRECTORY, Metric, Stage, Written, load, names
from experiments.tasks import nested, runs_of

NAMES = names()
IMAGES = 1_281_167  # of ImageNet's training split
RECIPES = {"VAR", "ImageFolder", "LlamaGen", "FQGAN", "SSQ", "iFSQ", "Ideal"}  # systems that the suite implements
HEADS = {  # SSQ's names and FQGAN's
    "Multi-Linear": "k linear classifiers",
    "Multi-MLP": "k MLP classifiers",
    "AR Head": "factorized AR head",
}


@cache
def written(name: str) -> Written:
    return msgspec.convert(yaml_files.read(DIRECTORY / f"{name}.yaml"), Written)


def head(name: str) -> str:
    """The comments above the title, as one line."""
    comments = (DIRECTORY / f"{name}.yaml").read_text(encoding="utf-8").partition("\ntitle:")[0]
    return re.sub(r"\s*\n# ?", " ", comments)


def epochs(stage: Stage, steps: int) -> float:
    """Epochs of ImageNet by the images per device and the devices of a stage's configuration."""
    found = [yaml_files.read(Path(file)) for file in stage.configs("imagenet")]
    batch = [size for config in found if (size := config.get("data", {}).get("init_args", {}).get("batch_size"))]
    devices = [count for config in found if (count := config.get("trainer", {}).get("devices"))]
    return steps * batch[-1] * devices[-1] / IMAGES


@cache
def runs(name: str, row: str, preset: str) -> dict[str, str]:
    """The runs of a row by kind of stage."""
    (found,) = [one for one in load(name, preset).rows if one.label == row]
    return {run.stage.kind: run.name for run in runs_of(found, preset, seed=0)}


@pytest.mark.parametrize("name", [name for name in NAMES if "max_steps" in (DIRECTORY / f"{name}.yaml").read_text()])
def test_a_length_on_imagenet_is_whole_epochs_of_its_batch(name: str) -> None:
    """iFSQ's tokenizers see 128 images a step, FQGAN's 256: the same steps are not the same epochs."""
    made = written(name)
    for row in made.rows if "imagenet" in made.presets else ():
        for stage in row.stages if "imagenet" in (row.presets or made.presets) else ():
            applied = made.apply(stage, "imagenet")
            if steps := nested(applied.overrides).get("trainer", {}).get("max_steps"):
                length = epochs(applied, steps)
                assert length == pytest.approx(round(length), rel=2e-3), f"{row.label}: {length:.2f} epochs"


@pytest.mark.parametrize("name", NAMES)
def test_like_measures_of_a_table_have_one_unit(name: str) -> None:
    def family(metric: Metric) -> str:
        first, *rest = metric.name.split("/")
        return f"val/{rest[0]}" if first == "val" else first

    for key, metrics in groupby(sorted(written(name).metrics, key=family), key=family):
        units = {metric.name: metric.percent for metric in metrics}
        assert len({*units.values()}) == 1, f"{key}: {units}"
    assert all("(%)" in metric.label for metric in written(name).metrics if metric.percent)


def test_a_column_of_the_paper_is_measured_or_the_head_says_why_not() -> None:
    """Columns that no table measures are settings, such as compression ratios, or differences of others."""
    measured = {name: {metric.paper for metric in written(name).metrics if metric.paper} for name in NAMES}
    known = {column for columns in measured.values() for column in columns}
    for name in NAMES:
        for column in known & {*written(name).paper.columns} - measured[name]:
            assert re.search(rf"\b{re.escape(column)}\b", head(name)), f"{name} shows {column} of the paper alone"


@pytest.mark.parametrize("name", NAMES)
def test_no_system_with_a_recipe_is_left_out_for_lack_of_one(name: str) -> None:
    for sentence in re.split(r"\.\s", head(name)):
        if "mitted" in sentence and "recipe" in sentence:
            items = re.split(r", (?:and )?", sentence.rpartition(": ")[2])
            assert not [item for item in items if re.sub(r" at \d+ px$", "", item) in RECIPES]


@pytest.mark.parametrize(("ours", "theirs"), HEADS.items())
def test_the_heads_of_ssq_are_those_of_fqgan_on_imagenet(ours: str, theirs: str) -> None:
    """Both papers print the same gFIDs; on digits, SSQ's table keeps the smaller generator that was measured."""
    ssq = runs("ssq/table4", f"{ours}, FAR-Large", "imagenet")
    assert ssq == runs("fqgan/table4", f"{theirs}, top-k 4096", "imagenet")
    assert runs("ssq/table4", ours, "digits")["generator"].startswith("generator/far_base/")


@pytest.mark.parametrize("preset", ["digits", "imagenet"])
@pytest.mark.parametrize(
    ("row", "name", "other"),
    [
        ("LlamaGen-L", "ssq/table2", "LlamaGen-L"),
        ("LlamaGen-XL", "ssq/table2", "LlamaGen-XL"),
        ("FAR-Base", "fqgan/fig8", "FAR-Base, dual"),
        ("FAR-Large", "fqgan/fig8", "FAR-Large, dual"),
    ],
)
def test_the_systems_of_fqgan_are_those_of_other_tables(row: str, name: str, other: str, preset: str) -> None:
    assert runs("fqgan/table2", row, preset) == runs(name, other, preset)


@pytest.mark.parametrize("size", ["B", "L", "XXL", "3B"])
def test_llamagen_and_ideal_differ_in_codes_and_guidance_only(size: str) -> None:
    rows = {row.label: row for row in load("ideal/table5", "imagenet").rows}
    theirs, ours = rows[f"LlamaGen-{size}"].stages, rows[f"Ideal-{size}"].stages
    assert theirs[1:3] == ours[1:3]
    tokenizer = runs("ideal/table5", f"LlamaGen-{size}", "imagenet")["tokenizer"]
    assert tokenizer == runs("ideal/table2", "LlamaGen, 384 px", "imagenet")["tokenizer"]


@pytest.mark.parametrize(("name", "blocks"), [("ifsq/table3", {3, 4, 8, 12, 16, 20}), ("ifsq/fig7", {1, 4, 8, 12})])
def test_the_aligned_blocks_of_ifsq(name: str, blocks: set[int]) -> None:
    """iFSQ section 4.2: all of them at the paper's 24 blocks; the last block is ours."""
    generators = [row.stages[2] for row in load(name, "imagenet").rows]
    assert {stage.overrides.get("model.init_args.alignment.depth") for stage in generators} == {None, 24, *blocks}


def test_the_differences_of_ssq_are_those_of_its_gfids() -> None:
    """Table 5 subtracts the row from the baseline, Table 6 the dual row from the triple one."""
    baseline, *others = [row.paper for row in written("ssq/table5").rows if row.paper]
    assert all(row["ΔgFID"] == pytest.approx(baseline["gFID"] - row["gFID"]) for row in others) and len(others) == 3
    by_label = {row.label: row.paper for row in written("ssq/table6").rows}
    for triple in [label for label in by_label if label.endswith(", triple")]:
        difference = by_label[triple]["gFID"] - by_label[triple.replace("triple", "dual")]["gFID"]
        assert by_label[triple]["ΔgFID"] == pytest.approx(difference)


def test_the_untouched_model_is_compared_as_the_decoded_feature() -> None:
    compared = {metric.name for metric in written("ideal/table3").metrics if metric.paper}
    for top in ("top1", "top5"):
        assert {f"zero_shot/{top}/decoded", f"zero_shot/{top}/foundation"} <= compared


@pytest.mark.parametrize("name", ["ifsq/fig3", "ifsq/fig5", "ifsq/fig10", "ifsq/table4"])
def test_the_reconstructions_of_ifsq_are_measured_by_lpips(name: str) -> None:
    assert "val/lpips/vgg" in {metric.name for metric in load(name, "imagenet").metrics}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("imagefolder/")])
def test_next_scale_generators_are_sampled_as_released_on_imagenet(name: str) -> None:
    """50 images of each class, top-k and top-p; VAR's own are 900 and 0.96."""
    for row in load(name, "imagenet").rows if "imagenet" in written(name).presets else ():
        if any(stage.recipe == "next_scale" for stage in row.stages):
            for given in (stage.overrides for stage in row.stages if stage.kind == "samples"):
                assert given["data.init_args.classes"] == "balanced"
                assert given["model.init_args.sampler.guidance_schedule"] == "linear"
                cut = given["model.init_args.sampler.top_k"], given["model.init_args.sampler.top_p"]
                assert cut == ((900, 0.96) if row.label == "VAR" else (750, 0.95)), row.label


def test_the_generator_of_imagefolder_is_the_released_one() -> None:
    """Depth 17: 350 epochs of 5,004 steps, a fiftieth of them warm-up; the two tables share its runs."""
    row = "7. + DINO discriminator"
    found = runs("imagefolder/table3", row, "imagenet")
    theirs = runs("imagefolder/table4", "ImageFolder", "imagenet")
    assert found == {kind: theirs[kind] for kind in found}
    (generator,) = [
        stage for stage in load("imagefolder/table3", "imagenet").rows[-1].stages if stage.kind == "generator"
    ]
    given = generator.overrides
    assert given["trainer.max_steps"] == 350 * 5004 == 50 * given["model.init_args.optimizer.warmup_steps"]
    assert given["model.init_args.optimizer.learning_rate"] == pytest.approx(2.4e-4 * 256 / 768)
    assert given["model.init_args.optimizer.final_fraction"] == 0.01
