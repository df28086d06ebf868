from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.check import check
from experiments.specification import Experiment, load, merged, names
from experiments.tasks import nested
from polytoken.errors import UserError
from polytoken.quantizers import VectorQuantizer
from tests.support.experiments import STAGED, write_experiment
from tests.support.slow import slow_but


def refused(file: Path, capsys: pytest.CaptureFixture) -> str:
    assert main(["run", str(file)]) == 2
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


COMPOSED: set[str] = set()  # many tables share stages


@pytest.mark.parametrize("name", slow_but(("ssq/table2", "ifsq/fig2"), names()))
def test_every_shipped_experiment_composes(name: str) -> None:
    experiment = load(name)
    assert experiment.name == name
    for preset in experiment.presets:
        check(load(name, preset), COMPOSED)


def test_the_networks_that_the_stages_read_are_named(tmp_path: Path) -> None:
    """All that the preset's recipes read, except one that an override removes."""
    files = {Path("runs/digits/teacher") / f"{name}.safetensors" for name in ("judge", "mid", "high", "perceptual")}
    assert check(load("ssq/table5", "digits")) == files
    change = ("adversarial: null", "perceptual: null")
    without = check(load(str(write_experiment(tmp_path, change, text=STAGED)), "digits"))
    assert without == files - {Path("runs/digits/teacher/perceptual.safetensors")}


def test_rows_have_the_shared_overrides(tmp_path: Path) -> None:
    experiment = load(str(write_experiment(tmp_path)))
    plain, other = experiment.rows
    assert experiment.name == "paper/table"
    assert plain.paper == {"rFID": 3.5, "gFID": 7} and other.paper == {}
    assert plain.stages[0].overrides["trainer.max_steps"] == 2
    assert other.stages[0].overrides["model.init_args.objective.perceptual"] is None


PRESETS = (
    ("presets: [digits]", "presets: [digits, photos]"),
    ("rows:", "sizes:\n  digits: {tokenizer: {trainer.max_steps: 3, trainer.val_check_interval: 3}}\nrows:"),
    (
        "vq, preset_file: tokenizer}",
        "vq, preset_file: tokenizer, overrides: {trainer.val_check_interval: 4, data.init_args.batch_size: 5}, "
        "sizes: {digits: {data.init_args.batch_size: 6}, photos: {trainer.max_steps: 7}}}",
    ),
    ("direction: up}\npresets", "direction: up, presets: [photos]}\npresets"),
)


def test_sizes_and_columns_depend_on_the_preset(tmp_path: Path) -> None:
    file = str(write_experiment(tmp_path, *PRESETS))
    sizes = ("trainer.max_steps", "trainer.val_check_interval", "data.init_args.batch_size")

    def given(preset: str) -> list[list[int]]:
        rows = load(file, preset).rows
        return [[row.stages[0].overrides[key] for key in sizes] for row in rows]

    # what all share, then what the preset shares, then the stage's own, then its own of the preset
    assert given("digits") == [[3, 4, 6], [3, 3, 4]]
    assert given("photos") == [[7, 4, 5], [2, 2, 4]]
    assert [metric.label for metric in load(file, "digits").metrics] == ["PSNR"]
    assert [metric.label for metric in load(file, "photos").metrics] == ["PSNR", "codes used"]


def test_a_row_names_the_presets_that_run_it(tmp_path: Path) -> None:
    text = write_experiment(tmp_path, *PRESETS).read_text()
    last = text.rindex("- label: ")
    file = tmp_path / "some.yaml"
    file.write_text(f"{text[:last]}- presets: [photos]\n    {text[last + 2 :]}")
    assert [len(load(str(file), preset).rows) for preset in ("digits", "photos")] == [1, 2]
    file.write_text(file.read_text().replace("- presets: [photos]", "- presets: [photo]"))
    with pytest.raises(UserError, match=r"'photo' is not a preset of this experiment[\s\S]*did you mean photos"):
        load(str(file), "digits")


def test_the_later_of_two_contradicting_overrides_counts() -> None:
    assert nested(merged({"a": None, "a.b": 1}, {"a": None})) == {"a": None}
    assert nested(merged({"a.b": 1, "a": None}, {"a.b": 2})) == {"a": {"b": 2}}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("recipe: vq", "recipe: fq_duel", ["row 'plain'", "'fq_duel' is not a recipe", "line 17", "fq_dual?"]),
        ("preset_file: tokenizer", "preset_file: tokeniser", ["not a file of the preset digits", "tokenizer?"]),
        ("direction: up", "direction: higher", ["invalid enum value 'higher'", "line 4"]),
        ("label: PSNR, ", "", ["missing required field `label`", "line 4"]),
        ("presets: [digits]", "presets: [digit]", ["'digit' is not a preset", "line 6", "digits?"]),
        ("gFID: 7", "gFDI: 7", ["row 'plain'", "'gFDI' is not a column of the paper", "line 15", "gFID?"]),
        ("gFID: 7", "gFID: 7 %", ["row 'plain'", "expected `float`, got `str`", "line 15"]),
        ("paper: rFID}", "paper: rFDI}", ["'rFDI' is not a column", "line 4"]),
        ("overrides:", "override:", ["row 'without pictures'", "'override' is not a key here", "overrides?"]),
        ("title:", "titel:", ["'titel' is not a key here", "line 1", "title?"]),
        ("label: without pictures", "label: plain", ["two rows have the same label"]),
        ("presets: [digits]", "presets: digits", ["expected `array`, got `str`", "line 6"]),
        ("shared:", "shared: [", ["this is not YAML", "paper/table.yaml, line"]),
        ("rows:", "sizes: {photos: {}}\nrows:", ["'photos' is not a preset of this experiment", "line 13", "digits"]),
        ("rows:", "sizes: {digits: {tokeniser: {}}}\nrows:", ["not a kind of stage", "line 13", "tokenizer?"]),
        ("tokenizer}\n", "tokenizer, sizes: {photos: {}}}\n", ["row 'plain'", "'photos' is not a preset", "line 17"]),
        ("label: PSNR", "presets: [photos], label: PSNR", ["'photos' is not a preset of this experiment", "line 4"]),
        ("label: PSNR", "presets: digits, label: PSNR", ["expected `array`, got `str`", "line 4"]),
        ("{stage: tokenizer,", "{stage: normal,", ["'normal' trains nothing and has no recipe", "line 17"]),
        (
            "tokenizer}\n",
            "tokenizer}\n      - {stage: probe, overrides: {pool: 1}}\n",
            ["not an option of 'probe'", "line 18"],
        ),
        (
            "tokenizer}\n",
            "tokenizer}\n      - {stage: probe, overrides: {max_train: all}}\n",
            ["max_train is 'all', expected a number", "line 18"],
        ),
        (
            "tokenizer}\n",
            "tokenizer}\n      - {stage: codes, overrides: {alpha: 0.5, delta: 8.5}}\n",
            ["row 'plain'", "'codes' refuses its options: argument --delta: invalid int value: '8.5'", "line 18"],
        ),
        (
            "rows:",
            "sizes: {digits: {codes: {alpha: 3, max_images: 9}}}\nrows:\n"
            "  - {label: coded, stages: [{stage: tokenizer, recipe: vq, preset_file: tokenizer}, {stage: codes}]}",
            ["row 'coded'", "'codes' refuses", "alpha is 3.0; it must be from 0 to 1", "line 13"],
        ),
        (
            "tokenizer}\n",
            "tokenizer}\n      - {stage: recovery, overrides: {factor: 0.5}}\n",
            [
                "row 'plain'",
                "'recovery' refuses",
                "--factor is 0.5: the wrong scales are it and its inverse",
                "line 18",
            ],
        ),
        (
            "tokenizer}\n",
            "tokenizer}\n      - {stage: probe, overrides: {max_train: 1}}\n",
            ["row 'plain'", "argument --max-train: expected a whole number of at least 2, got '1'", "line 18"],
        ),
        (
            "rows:",
            "rows:\n  - {label: normal, stages: [{stage: normal}]}",
            ["row 'normal'", "'normal' refuses", "the following arguments are required: --alpha", "line 14"],
        ),
    ],
)
def test_errors_name_file_line_and_row(
    old: str, new: str, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    text = refused(write_experiment(tmp_path, (old, new)), capsys)
    for part in expected:
        assert part in text, text


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("trainer.max_steps", "trainer.max_stepz", ["row 'plain'", "trainer.max_stepz", "line 9", "max_steps?"]),
        ("objective.adversarial", "objective.adversary", ["row 'without pictures'", "line 25", "adversarial?"]),
        (
            "perceptual: null",
            "perceptual: {class_path: polytoken.losses.LPIP}",
            ["polytoken.losses.LPIP", "line 24", "polytoken.losses.LPIPS?"],
        ),
        (
            "preset_file: tokenizer",
            "preset_file: judge",
            ["row 'plain'", "digits/judge.yaml, line", "table.yaml, line 17"],
        ),
        ("trainer.max_steps: 2", "trainer: {max_stepz: 2}", ["trainer.max_stepz is no", "line 9", "max_steps?"]),
        (
            "vq, preset_file",
            "vq, overrides: {trainer.max_stepz: 1}, preset_file",
            ["row 'plain'", "line 17", "max_steps?"],
        ),
        ("batch_size: 4", "batch_size: four", ["expected int, got 'four'", "line 12"]),
        (
            "perceptual: null",
            "perceptual: {class_path: polytoken.losses.LPIPS}",
            ["becomes LPIPS and would keep weight: 1.0, weights: runs/", "line 24", "state weight and weights in"],
        ),
        ("rows:", "sizes: {digits: {tokenizer: {trainer.max_stepz: 1}}}\nrows:", ["line 13", "max_steps?"]),
        (
            "tokenizer}\n",
            "tokenizer, sizes: {digits: {trainer.max_stepz: 1}}}\n",
            ["row 'plain'", "trainer.max_stepz", "line 17", "max_steps?"],
        ),
    ],
)
def test_a_wrong_override_is_reported_before_anything_runs(
    old: str, new: str, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    text = refused(write_experiment(tmp_path, (old, new)), capsys)
    for part in expected:
        assert part in text, text
    assert "overrides.yaml" not in text
    assert not Path("runs").exists()


HEAD = "model.init_args.generator.init_args.head"
MLP = "polytoken.generators.MultiMLPHead"


SPELLINGS = (
    f"{HEAD}.class_path: {MLP}",
    f"model.init_args.generator: {{init_args: {{head: {{class_path: {MLP}}}}}}}",
    f"{HEAD}: {{class_path: {MLP}}}",
    f"{HEAD}: {{class_path: MultiMLPHead}}",
    f"{HEAD}: {MLP}",
    f"model.init_args: {{generator.init_args.head.class_path: {MLP}}}",
    f"model.generator.head: {MLP}",
    f"model.init_args.generator.head.class_path: {MLP}",
)


def staged(folder: Path, overrides: str) -> Experiment:
    """An experiment on far_base, whose head has a depth of 3, and MultiMLPHead by itself one of 2."""
    change = ("recipe: far_base}", f"recipe: far_base, overrides: {{data.init_args.batch_size: 8, {overrides}}}}}")
    return load(str(write_experiment(folder, change, text=STAGED[: STAGED.index("      - stage: samples")])))


@pytest.mark.parametrize("override", slow_but(SPELLINGS[:2], SPELLINGS))
def test_a_class_does_not_keep_the_settings_of_the_one_that_it_replaces(override: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        check(staged(tmp_path, override), COMPOSED)
    said = str(refusal.value)
    assert f"{HEAD} becomes MultiMLPHead and would keep depth: 3 of the class that it replaces" in said, said
    assert "row 'from scratch'" in said and "line 16" in said and "state depth in its init_args" in said


@pytest.mark.parametrize(
    "override",
    [
        f"{HEAD}: {{class_path: {MLP}, init_args: {{depth: 2}}}}",
        f"{HEAD}.class_path: {MLP}, {HEAD}.init_args.depth: 2",
        f"model.generator.head: {{class_path: {MLP}, init_args: {{depth: 2}}}}",
    ],
)
def test_a_class_with_stated_settings_replaces_another(override: str, tmp_path: Path) -> None:
    check(staged(tmp_path, override), COMPOSED)


@pytest.mark.parametrize("name", ["ifsq/table2", "ifsq/table4", "ifsq/fig5", "ifsq/fig10"])
def test_vq_rows_have_the_released_quantizer_on_imagenet(name: str) -> None:
    """iFSQ's code neither normalises nor weighs the codebook loss by 1; small presets keep the rows as measured."""
    for preset in load(name).presets:
        rows = [row for row in load(name, preset).rows if row.label.startswith("VQ")]
        assert rows
        for row in rows:
            quantizer = nested(row.stages[0].overrides)["model"]["init_args"]["tokenizer"]["init_args"]["quantizer"]
            made = VectorQuantizer(**quantizer["init_args"])
            found = made.normalize, made.commitment_weight, made.codebook_weight
            assert found == ((False, 1.0, 0.5) if preset == "imagenet" else (True, 0.25, 1.0)), row.label


def test_grouped_rows_clip_the_mean_over_sub_codes_on_imagenet() -> None:
    """Two sub-codes halve the clip and λ."""
    for row in load("ifsq/table2", "imagenet").rows:
        (overrides,) = (stage.overrides for stage in row.stages if stage.kind == "generator")
        grouped = overrides.get("model.init_args.alignment.weight") == 1.0
        assert overrides.get("trainer.gradient_clip_val") == (0.5 if grouped else None), row.label


def test_unknown_names_suggest_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match="did you mean ssq/table3"):
        load("ssq/tabel3")
    with pytest.raises(UserError, match="there is no experiment 'zzzz'\n  `python -m experiments list` names all"):
        load("zzzz")
    assert main(["run", str(write_experiment(tmp_path)), "--preset", "photos"]) == 2
    assert "only for digits" in capsys.readouterr().err


def test_titles_are_a_column_of_the_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    listed = ["fqgan/disentanglement", "ifsq/fig2"]
    monkeypatch.setattr("experiments.__main__.names", lambda: listed)
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.index(load(name).title) for name, line in zip(listed, lines, strict=True)] == [len(listed[0]) + 2] * 2
