"""Rows of several stages: shared stages, inputs, states."""

import csv
import json
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from experiments import tasks
from experiments.__main__ import main
from experiments.specification import load
from experiments.stages import KINDS
from experiments.tasks import Run, runs_of
from tests.support.commands import REPOSITORY
from tests.support.experiments import PROGRAM, STAGED, write_experiment

GENERATOR = "      - {stage: generator, recipe: far_base}\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run experiments in an empty directory with a program that takes no time."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "PROGRAM", program)
    monkeypatch.setattr(tasks, "EVALUATION", (str(program),))
    monkeypatch.setattr("experiments.__main__.check", lambda *_: set())


def rows(file: Path) -> dict[str, dict[str, Run]]:
    """The runs of the rows, by label and kind of stage."""
    made = load(str(file)).rows
    return {row.label: {run.stage.kind: run for run in runs_of(row, "digits", seed=0)} for row in made}


def digests(*changes: tuple[str, str]) -> dict[tuple[str, str], str]:
    made = rows(write_experiment(Path(), *changes, text=STAGED))
    return {(label, kind): run.digest for label, stages in made.items() for kind, run in stages.items()}


def test_equal_stages_are_shared_between_rows() -> None:
    shared = Counter(kind for kind, _ in {(kind, digest) for (_, kind), digest in digests().items()})
    assert shared == {"tokenizer": 1, "tokens": 1, "generator": 1, "stage1": 1, "stage2": 2, "samples": 3}


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("recipe: fq_dual", "recipe: fq_triple", {"tokenizer", "tokens", "generator", "stage1", "stage2", "samples"}),
        ("stage: tokens\n", "{stage: tokens, overrides: {a.b: 1}}\n", {"tokens", "generator", "samples"}),
        ("recipe: far_base", "recipe: far_large", {"generator", "samples"}),
        ("stage: stage1\n", "{stage: stage1, overrides: {a.b: 1}}\n", {"stage1", "stage2", "samples"}),
        ("noise: null", "noise: 1", {"stage2", "samples"}),
        ("- {stage: generator", "- stage: stage1\n      - {stage: generator", set()),  # between, and not built upon
        ("- stage: stage1", "- {stage: generator, recipe: far_large}\n      - stage: stage1", set()),  # the last counts
    ],
)
def test_a_digest_covers_a_stage_and_its_inputs_only(old: str, new: str, changed: set[str]) -> None:
    before, after = digests(), digests((old, new))
    assert {kind for (label, kind), digest in before.items() if after[label, kind] != digest} == changed


def test_a_stage_gets_its_inputs_from_the_stages_before_it(capsys: pytest.CaptureFixture) -> None:
    file = write_experiment(Path(), text=STAGED)
    assert main(["run", str(file), "--seeds", "2", "--dry-run"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    given = {words[words.index("--run.stage") + 1]: words for words in lines if "--run.stage" in words}
    evaluations = [words[words.index("--samples") :] for words in lines if "--run.stage" not in words]
    assert len(given) == 18 and len(evaluations) == 6

    for row in load(str(file)).rows:
        made = {run.stage.kind: run for run in runs_of(row, "digits", seed=1)}
        tokens = ("--data.init_args.store", "tokens")
        wires = {
            "tokenizer": (),
            "tokens": (("--model.init_args.tokenizer_run", "tokenizer"),),
            "generator": (tokens,),
            "stage1": (tokens,),
            "stage2": (tokens, ("--model.init_args.init_from", "stage1")),
            "samples": (("--model.init_args.generator_run", "stage2" if "stage2" in made else "generator"),),
        }
        for kind, run in made.items():
            words = given[run.name]
            assert words[2] == ("predict" if kind in ("tokens", "samples") else "fit")
            for argument, value in [*((name, str(made[other].directory)) for name, other in wires[kind])]:
                assert words[words.index(argument) + 1] == value
            assert sum(str(other.directory) in words for other in made.values()) == len(wires[kind])
        words = given[made["samples"].name]
        assert words[words.index("--model.init_args.seed") + 1] == "1"
        assert ["--samples", f"{made['samples'].directory}/samples.npz", "--preset", "digits"] in evaluations


def test_rows_run_to_their_samples_and_a_failure_stops_one_row_only(capfd: pytest.CaptureFixture) -> None:
    file = write_experiment(Path(), ("batch_size: 8", "batch_size: 13"), text=STAGED)
    assert main(["run", str(file)]) == 1
    printed = capfd.readouterr().out
    assert printed.count("tokens: done in") == 1
    assert "[2/3] staged, seed 0, samples: done in" in printed
    assert "[3/3] noisy, seed 0, stage2: FAILED (exit code 3)" in printed and "noisy, seed 0, samples" not in printed
    assert set(Counter(Path("starts.txt").read_text().split()).values()) == {1}

    assert main(["status", str(file)]) == 0
    assert "stage1 done, stage2 missing, samples missing" in capfd.readouterr().out
    assert main(["show", str(file), "--markdown"]) == 0
    assert capfd.readouterr().out.splitlines()[2:] == [
        "| from scratch | 7.5 | — | — | 20 | 1 |",  # its NLL is not finite
        "| staged | 7.5 | 3.5 | 2 | 20 | 1 |",
        "| noisy | — | — | — | — | 0 |",  # its stage 1 says nothing of it
    ]
    with Path("runs/experiments/results/paper/table_digits.csv").open() as content:
        records = {(record["row"], record["metric"]): record for record in csv.DictReader(content)}
    assert records["staged", "gfd/judge"]["n"] == "40" and records["staged", "val/nll"]["n"] == "30"
    assert records["staged", "val/psnr"]["n"] == ""
    expected = "guidance 2.0, by judge 01234567, to 30 validation images"
    assert records["staged", "gfd/judge"]["protocol"] == expected
    assert [records["staged", name]["run"].split("/")[3] for name in ("gfd/judge", "val/nll", "val/psnr")] == [
        "samples",
        "stage2",
        "tokenizer",
    ]


EVALUATED = {
    **{"metrics": {"samples": {}}, "samples": {"sha256": "0f"}, "extractor": {"name": "judge", "sha256": None}},
    **{"reference": {"reference": "validation images"}, "notes": []},
}


def marker(*files: str) -> dict[str, object]:
    return {"command": "", "config": "", "files": dict.fromkeys(files, "0f")}


def test_samples_without_guidance_are_a_column_of_their_own(capsys: pytest.CaptureFixture) -> None:
    """Those of the last stage have the plain name, and all have one with their guidance."""
    column = "  - {name: guidance_1/gfd/judge, label: gFD without guidance, direction: down}\n"
    unguided = "      - {stage: samples, overrides: {model.init_args.sampler.guidance: 1.0}}\n"
    text = STAGED[: STAGED.index("  - label: staged")]
    changes = (("presets:", f"{column}presets:"), ("      - stage: samples", f"{unguided}      - stage: samples"))
    file = write_experiment(Path(), *changes, text=text)
    (task,) = tasks.expand(load(str(file)))
    for run in task.runs:
        run.directory.mkdir(parents=True)
        (run.directory / "samples.npz").touch()
        (run.directory / "done.json").write_text(json.dumps(marker("samples.npz")))
        (run.directory / "metrics.json").write_text(json.dumps({"validate": {"metrics": {}}}))
    for run, guidance, value in zip(task.runs[-2:], (1.0, 2.0), (11.5, 7.5), strict=True):
        about = {"sha256": "0f", "settings": {"sampler": {"guidance": guidance, "top_k": None}}}
        found = {**EVALUATED, "metrics": {"samples": {"gfd/judge": {"value": value, "n": 40}}}, "samples": about}
        (run.directory / "metrics.json").write_text(json.dumps({"evaluate": found}))
        assert run.metrics() == {"gfd/judge": value, f"guidance_{guidance:g}/gfd/judge": value}
    assert main(["show", str(file), "--markdown"]) == 0
    head, _, line = capsys.readouterr().out.splitlines()
    cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    assert (cells["gFD ↓"], cells["gFD without guidance ↓"]) == ("7.5", "11.5")


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        (
            "tokens",
            [
                ("config_predict.yaml", "", "missing"),
                ("train.partial/plan.json", "", "unfinished"),
                ("train/manifest.json", "", "unfinished"),
                ("validation/manifest.json", "", "unfinished"),
                ("done.json", marker("train/manifest.json", "validation/manifest.json"), "done"),
            ],
        ),
        (
            "samples",
            [
                ("log.txt", "", "missing"),
                ("parts/00000.npy", "", "unfinished"),
                ("samples.npz", "", "unfinished"),
                ("done.json", marker("samples.npz"), "unfinished"),
                ("metrics.json", {"evaluate": {**EVALUATED, "samples": {"sha256": "other"}}}, "unfinished"),
                ("metrics.json", {"evaluate": EVALUATED}, "done"),
            ],
        ),
        (
            "stage2",
            [
                ("lineage.json", "", "missing"),
                ("checkpoints/last.ckpt", "", "unfinished"),
                ("metrics.json", {"fit": {"metrics": {}}}, "unfinished"),
                ("metrics.json", {"validate": {"metrics": {}}}, "unfinished"),
                ("done.json", marker("checkpoints/previous.ckpt"), "unfinished"),
                ("done.json", marker("checkpoints/last.ckpt"), "done"),
            ],
        ),
    ],
)
def test_a_stage_is_done_with_its_marker(kind: str, steps: list[tuple[str, object, str]]) -> None:
    run = rows(write_experiment(Path(), text=STAGED))["staged"][kind]
    assert run.state == "missing"
    for name, content, state in steps:
        file = run.directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
        assert run.state == state, name


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("      - stage: stage1\n", "", ["row 'staged'", "'stage2' needs 'stage1'", "line 23"]),
        (GENERATOR, "", ["row 'from scratch'", "'stage2' or 'generator'", "line 16"]),
        ("recipe: far_base", "recipe: far_base, overrides: {data.init_args.store: x}", ["line 16", "not to be set"]),
        (
            "stage: stage1",
            "stage: stage3",
            ["'stage3' is not a kind of stage", "row 'staged'", "line 23"],
        ),
        ("stage2: {", "stage3: {", ["'stage3' is not a kind of stage", "line 10"]),
        (", recipe: far_base}", "}", ["row 'from scratch'", "'recipe' is missing", "line 16"]),
    ],
)
def test_errors_in_stages_name_file_line_and_row(
    old: str, new: str, expected: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert main(["run", str(write_experiment(Path(), (old, new), text=STAGED))]) == 2
    text = capsys.readouterr().err
    for part in expected:
        assert part in text, text


def test_the_docs_name_every_kind_its_inputs_and_its_options() -> None:
    _, text = (REPOSITORY / "docs/experiments.md").read_text(encoding="utf-8").split("## Rows of several stages")
    lines = [re.findall(r"^\| `(\w+)` \|(.*)\|(.*)\|$", table, re.M) for table in text.split("\n\n")]
    kinds, options = [table for table in lines if table][:2]
    assert {kind for kind, _, _ in kinds} == KINDS.keys()
    for kind, _, needed in kinds:
        fitting = {name for names in KINDS[kind].inputs.values() for name in names}
        assert KINDS.keys() & re.findall(r"`(\w+)`", needed) == fitting, kind
    listed = {kind: tuple(re.findall(r"`(\w+)`", names)) for kind, names, _ in options}
    assert listed == {name: kind.options for name, kind in KINDS.items() if kind.options is not None}
