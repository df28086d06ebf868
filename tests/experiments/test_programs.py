"""Stages that train nothing: probes of a tokenizer, and uniformity of a bounded normal variable."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from artifacts.completion import finish
from commands.fidelity import Fidelities
from commands.preset import training_reference
from experiments import programs
from experiments.__main__ import main
from experiments.specification import load
from experiments.stages import KINDS
from experiments.tasks import runs_of
from polytoken.errors import UserError
from polytoken.specs import TokenSpec
from tests.support.experiments import STAGED, write_experiment
from tests.support.generated import configure, keep, write_runs
from tests.support.recipes import CONFIGS, write_judge
from tests.support.token_store import write_stores

PROBED = """
  - label: probed
    stages:
      - *tokenizer
      - {stage: probe, overrides: {max_train: 9}}
  - label: normal
    stages:
      - {stage: normal, overrides: {alpha: 1.6}}
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.__main__.check", lambda *_: set())


def test_uniformity_of_a_normal_latent_equals_the_documented_values() -> None:
    """KS and RMSE are those of docs/finite_scalar.md; the entropy was summed from the error function."""
    for alpha, ks, rmse, entropy in ((1.6, 0.0173, 0.0172, 0.98280), (2.0, 0.0442, 0.0626, 0.99247)):
        metrics, count = programs.normal(alpha)
        assert count == 500_000
        assert metrics["ks"] == pytest.approx(ks, abs=5e-5)
        assert metrics["rmse_uniform"] == pytest.approx(rmse, abs=5e-5)
        assert metrics["entropy_ratio"] == pytest.approx(entropy, abs=1e-5)


def test_stages_without_training_run_as_programs(capsys: pytest.CaptureFixture) -> None:
    file = str(write_experiment(Path(), text=STAGED + PROBED.removeprefix("\n")))
    assert main(["run", file, "--dry-run"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if "experiments.programs" in line]
    rows = {row.label: runs_of(row, "digits", 0) for row in load(file).rows}
    tokenizer, probe = rows["probed"]
    (normal,) = rows["normal"]
    assert [line[1:] for line in lines] == [
        ["-m", "experiments.programs", "probe", "--run", str(tokenizer.directory), "--max-train", "9"]
        + ["--output", str(probe.directory)],
        ["-m", "experiments.programs", "normal", "--alpha", "1.6", "--output", str(normal.directory)],
    ]
    assert probe.directory.parts[3:5] == ("probe", "probe") and probe.state == normal.state == "missing"

    programs.main(lines[1][3:])
    assert normal.state == "done" and probe.state == "missing"
    assert (normal.metrics() or {})["ks"] == pytest.approx(0.0173, abs=6e-5)
    assert normal.origin()["n"] == 500_000


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.options is not None])
def test_the_options_of_a_kind_are_those_of_its_program(name: str) -> None:
    kind = KINDS[name]
    by_the_runner = {*kind.inputs, "output"} | ({"classes"} if name == "zero_shot" else set())
    given = [text for one in (*by_the_runner, *(kind.options or ())) for text in (f"--{one.replace('_', '-')}", "9")]
    known = vars(programs.parser().parse_args([kind.command, *given]))
    assert known.keys() == {"command", *by_the_runner, *(kind.options or ())}


def test_a_probe_of_another_tokenizer_is_another_run() -> None:
    def digest(*changes: tuple[str, str]) -> str:
        file = str(write_experiment(Path(), *changes, text=STAGED + PROBED.removeprefix("\n")))
        (row,) = (row for row in load(file).rows if row.label == "probed")
        return runs_of(row, "digits", 0)[1].digest

    others = (("recipe: fq_dual", "recipe: fq_triple"), ("max_train: 9", "max_train: 8"))
    assert len({digest(), *map(digest, others)}) == 3


def test_numbers_of_a_tokenizer_that_was_trained_again_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("commands.probe.probe", lambda *_, **__: {"probes": [], "n_validation": 1})
    file = str(write_experiment(Path(), text=STAGED + PROBED.removeprefix("\n")))
    (row,) = (row for row in load(file).rows if row.label == "probed")
    tokenizer, probe = runs_of(row, "digits", 0)

    def train(weights: str) -> None:
        tokenizer.directory.mkdir(parents=True, exist_ok=True)
        made = tokenizer.directory / "weights"
        made.write_text(weights)
        finish(tokenizer.directory, "fit", "", [made])

    train("first")
    programs.main(["probe", "--run", str(tokenizer.directory), "--output", str(probe.directory)])
    assert main(["status", file]) == 0 and "again" not in capsys.readouterr().err
    train("second")
    assert main(["status", file]) == 0
    said = f"warning: {tokenizer.directory} was made again since {probe.directory} was made from it: delete the latter"
    assert said in capsys.readouterr().err


def test_probes_are_named_and_saved_with_the_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked: dict[str, object] = {}

    def probe(run: Path, **given: object) -> dict[str, object]:
        asked.update(run=run, **given)
        found = {"probe": "linear", "feature": "after/all", "value": 0.75}
        return {"probes": [found], "n_validation": 355}

    monkeypatch.setattr("commands.probe.probe", probe)
    Path("tokenizer").mkdir()
    programs.main(["probe", "--run", "tokenizer", "--max-train", "9", "--output", "there"])
    assert asked["run"] == Path("tokenizer") and asked["max_train"] == 9
    section = json.loads(Path("there/metrics.json").read_text())["validate"]
    assert section["metrics"] == {"probe/linear/after/all": 0.75} and section["n"] == 355
    assert json.loads(Path("tokenizer/probes.json").read_text())["probes"][0]["value"] == 0.75

    monkeypatch.setattr("commands.probe.probe", lambda *_, **__: {"probes": [one], "n_validation": 1})
    one = {"probe": "linear", "feature": "before/0", "value": 0.5}
    assert programs.probe(Path("tokenizer"))[0] == {"probe/linear/before/0": 0.5, "probe/linear/before/all": 0.5}

    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        programs.main(["probe", "--run", "nowhere", "--output", "there"])
    assert "error: " in capsys.readouterr().err


def test_codes_of_a_tokenizer_are_columns(capsys: pytest.CaptureFixture) -> None:
    write_judge(Path("runs/digits/teacher/judge.safetensors"))
    write_runs(Path("runs/digits"), image_size=32)
    data = yaml.safe_load((CONFIGS / "presets/digits/tokenizer.yaml").read_text())["data"]
    tokenizer = Path("runs/digits/tokenizer/tiny")
    (tokenizer / "config.yaml").write_text(yaml.safe_dump({"data": data, "run": {"preset": "digits"}}))

    column = "  - {name: val/pfd/judge, label: pFD, direction: down}\npresets:"
    stages = "      - {stage: codes, overrides: {delta: 4, max_images: 30}}\n"
    text = STAGED[: STAGED.index("      - stage: tokens")] + stages
    file = write_experiment(Path(), ("presets:", column), text=text)
    (row,) = load(str(file)).rows
    first, run = runs_of(row, "digits", 0)
    (command,) = run.commands()
    assert command[3:] == [
        *("codes", "--run", str(first.directory), "--delta", "4", "--max-images", "30"),
        *("--output", str(run.directory)),
    ]
    first.directory.parent.mkdir(parents=True)
    tokenizer.rename(first.directory)
    (first.directory / "metrics.json").write_text(json.dumps({"validate": {"metrics": {"val/psnr": 9.0}}}))
    marker = {"command": "", "config": "", "files": {"metrics.json": "0f"}}
    (first.directory / "done.json").write_text(json.dumps(marker))
    programs.main(command[3:])
    found = json.loads((first.directory / "codes.json").read_text())
    assert run.origin()["n"] == found["n"] == 30 and found["neighbours"] == [4, 4]
    value = found["metrics"]["perturbed"]["pfd/judge"]["value"]
    metrics = run.metrics()
    assert metrics["val/pfd/judge"] == value and metrics["val/code_bits"] == 2 * 16 * 4
    assert {"val/position_usage/0", "val/position_perplexity/1", "val/pis/judge"} < metrics.keys()
    capsys.readouterr()
    assert main(["show", str(file), "--markdown"]) == 0
    assert f"| {value:.4g} |" in capsys.readouterr().out


def test_zero_shot_reads_the_class_vectors_of_its_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def zero_shot(*given: object) -> dict[str, object]:
        asked.extend(given)
        names = ("foundation model", "its block 8", "decoded")
        rows = [{"features": name, "top1": i / 4, "top5": i / 2} for i, name in enumerate(names)]
        return {"rows": rows, "n": 355}

    monkeypatch.setattr("commands.zero_shot.zero_shot", zero_shot)
    Path("tokenizer").mkdir()
    stages = "      - {stage: zero_shot, overrides: {max_images: 50}}\n"
    text = STAGED.replace("      - stage: samples\n", stages).replace("[digits]", "[digits, imagenet]")
    file = str(write_experiment(Path(), text=text))
    for preset, classes in (("digits", "runs/digits/teacher/classes"), ("imagenet", "weights/siglip2_large_classes")):
        *_, run = runs_of(load(file, preset).rows[0], preset, 0)
        (command,) = run.commands()
        assert command[3:] == [
            *("zero_shot", "--run", str(run.inputs["run"]), "--max-images", "50"),
            *("--output", str(run.directory), "--classes", f"{classes}.safetensors"),
        ]
    programs.main(["zero_shot", "--run", "tokenizer", "--classes", "c", "--max-images", "50", "--output", "there"])
    assert asked[:3] == [Path("tokenizer"), Path("c"), 50]
    section = json.loads(Path("there/metrics.json").read_text())["validate"]
    assert section["n"] == 355 and section["metrics"] == {
        **{"zero_shot/top1/foundation": 0.0, "zero_shot/top1/block": 0.25, "zero_shot/top1/decoded": 0.5},
        **{"zero_shot/top5/foundation": 0.0, "zero_shot/top5/block": 0.5, "zero_shot/top5/decoded": 1.0},
    }
    assert json.loads(Path("tokenizer/zero_shot.json").read_text())["n"] == 355


def test_fidelity_is_named_by_measure_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    names = ("original_accuracy", "original_similarity", "accuracy", "similarity")

    def measure(*given: object, **_: object) -> Fidelities:
        asked.extend(given)
        text = [{"pixels": size, "n": 9, **dict.fromkeys(names, size / 16)} for size in (8, 16)]
        return Fidelities({"text": text, "faces": [], "image_size": 64}, {}, {})  # type: ignore[typeddict-item]

    monkeypatch.setattr("commands.fidelity.measure", measure)
    monkeypatch.setattr("polytoken.metrics.extractors.load_extractor", lambda *_: None)
    Path("tokenizer").mkdir()
    programs.main(["fidelity", "--run", "tokenizer", "--words", "9", "--output", "there"])
    assert asked == [Path("tokenizer"), 9]
    section = json.loads(Path("there/metrics.json").read_text())["validate"]
    assert section["n"] == 9 and section["metrics"] == {
        f"fidelity/text/{name}{size}": value for name in names for size, value in (("", 0.75), ("/8", 0.5), ("/16", 1))
    }
    assert Path("tokenizer/fidelity.json").is_file()
    text = STAGED.replace("      - stage: samples\n", "      - {stage: fidelity, overrides: {words: 9}}\n")
    *_, run = runs_of(load(str(write_experiment(Path(), text=text)), "digits").rows[0], "digits", 0)
    assert run.commands()[0][3:7] == ["fidelity", "--run", str(run.inputs["run"]), "--words"]


def test_class_vectors_are_needed_before_anything_runs(capsys: pytest.CaptureFixture) -> None:
    text = STAGED.replace("      - stage: samples\n", "      - stage: zero_shot\n")
    assert main(["run", str(write_experiment(Path(), text=text))]) == 2
    missing = "runs/digits/teacher/classes.safetensors is missing, the class vectors of zero-shot classification: make "
    assert missing in capsys.readouterr().err
    assert not Path("runs").exists()


def test_teachers_are_needed_before_anything_runs(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Path("runs/digits/teacher/high.safetensors")
    monkeypatch.setattr("experiments.__main__.check", lambda *_: {teacher})
    assert main(["run", str(write_experiment(Path()))]) == 2
    assert f"{teacher} is missing: `make teacher PRESET=digits`" in capsys.readouterr().err
    assert not Path("runs").exists()
    assert main(["run", str(write_experiment(Path())), "--dry-run"]) == 0


def test_dependency_of_a_store_is_named_by_its_sub_codes() -> None:
    root = write_stores(Path("tokens"), spec=TokenSpec((16, 12), ((1, 1), (2, 2))))
    programs.main(["dependency", "--store", str(root), "--output", "there"])
    section = json.loads(Path("there/metrics.json").read_text())["validate"]
    record = json.loads((root / "dependency.json").read_text())
    entries = {(tuple(one["sub_codes"]), one["scale"]): one["bits"] for one in record["entries"]}
    neighbours = [entries[(index, index), None] for index in (0, 1)]
    assert section["n"] == 22 and section["metrics"] == pytest.approx(
        {
            "dependency/neighbours": sum(neighbours) / 2,
            "dependency/neighbours/0": neighbours[0],
            "dependency/neighbours/1": neighbours[1],
            "dependency/branches": entries[(0, 1), None],
            "dependency/branches/0_1": entries[(0, 1), None],
        }
    )
    stages = "      - {stage: dependency, overrides: {groups: 9}}\n"
    file = write_experiment(Path(), ("      - stage: samples\n", stages), text=STAGED)
    made = {row.label: runs_of(row, "digits", 0) for row in load(str(file)).rows}
    runs = next(runs for runs in made.values() if any(run.stage.kind == "dependency" for run in runs))
    tokens = next(run for run in runs if run.stage.kind == "tokens")
    (command,) = runs[-1].commands()
    assert command[3:7] == ["dependency", "--store", str(tokens.directory), "--groups"]


def test_samples_without_a_judge_need_a_reference_before_anything_runs(capsys: pytest.CaptureFixture) -> None:
    text = STAGED.replace("[digits]", "[imagenet]")
    file = str(write_experiment(Path(), text=text))
    assert main(["run", file]) == 2
    assert "weights/VIRTUAL_imagenet256_labeled.npz is missing" in capsys.readouterr().err
    assert not Path("runs").exists()

    assert main(["run", file, "--dry-run"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "commands.evaluate" in line]
    assert len(lines) == 3 and all("--reference weights/VIRTUAL_imagenet256_labeled.npz" in line for line in lines)
    assert main(["run", str(write_experiment(Path(), text=STAGED)), "--dry-run"]) == 0
    assert "--reference" not in capsys.readouterr().out


def test_a_preset_without_a_network_is_compared_with_its_own_images_and_imagenet_with_adms() -> None:
    adm, own = Path("weights/VIRTUAL_imagenet256_labeled.npz"), Path("runs/flowers/reference/train_inception.npz")
    assert training_reference("imagenet") == adm and training_reference("flowers") == own
    text = STAGED.replace("[digits]", "[imagenet]")
    changed = ("      - stage: samples\n", "      - stage: sweep\n")
    for made in (write_experiment(Path(), text=text), write_experiment(Path(), changed, text=text)):
        *_, run = runs_of(load(str(made), "imagenet").rows[0], "imagenet", 0)
        assert run.reference == adm and replace(run, preset="digits").reference is None
        assert replace(run, preset="flowers").reference == own and replace(run, preset="photos").reference is None


def test_layers_and_the_curve_of_a_generator() -> None:
    write_judge(Path("runs/digits/teacher/judge.safetensors"))
    run = configure(keep(write_runs(Path("runs/digits"), image_size=32), (2, 4)))
    programs.main(["layers", "--run", str(run), "--max-images", "24", "--k", "3", "--output", "layers"])
    section = json.loads(Path("layers/metrics.json").read_text())["validate"]
    assert section["n"] == 24 and section["metrics"]["layers/peak"] == 1  # of one block
    record = json.loads((run / "layers.json").read_text())
    assert section["metrics"]["layers/cknna/1"] == record["cknna"][0] and record["k"] == 3
    programs.main(["curve", "--run", str(run), "--num-images", "20", "--output", "curve"])
    section = json.loads(Path("curve/metrics.json").read_text())["validate"]
    (found,) = json.loads((run / "curve.json").read_text())["runs"]
    for number, point in enumerate(found["points"], 1):
        assert section["metrics"][f"curve/{number}/gfd/judge"] == point["metrics"]["gfd/judge"]["value"]
    assert section["metrics"]["compute/forward"] == found["forward_flops"] / 1e9
    assert section["metrics"]["compute/total"] == found["training_flops"] * 4 * 4 / 1e15
    assert section["n"] == 20


def test_points_of_unequal_parts_are_no_curve() -> None:
    """Their numbers would average other parts of the training over the seeds."""
    run = configure(keep(write_runs(Path("runs/digits"), image_size=32), (2, 5)))
    with pytest.raises(UserError, match=f"^{run} has checkpoints of the steps 2, 5, and a curve's numbers stand"):
        programs.curve(run, 20, 1.0, None)


def test_a_sweep_chooses_the_scale_of_the_least_distance() -> None:
    write_judge(Path("runs/digits/teacher/judge.safetensors"))
    run = configure(keep(write_runs(Path("runs/digits"), image_size=32), (2,)))
    programs.main(["sweep", "--run", str(run), "--num-images", "20", "--output", "sweep"])
    section = json.loads(Path("sweep/metrics.json").read_text())["validate"]
    scales = {one["guidance"]: one["metrics"] for one in json.loads((run / "sweep.json").read_text())["scales"]}
    distances = {scale: metrics["gfd/judge"]["value"] for scale, metrics in scales.items()}
    chosen = min(distances, key=distances.__getitem__)
    assert [*distances] == [1, 1.5, 2, 3, 5] and section["n"] == 20
    assert section["metrics"]["sweep/guidance"] == chosen
    assert section["metrics"]["sweep/gfd/judge"] == distances[chosen]
    assert section["metrics"]["sweep/recall/judge"] == scales[chosen]["recall/judge"]["value"]
    assert section["metrics"]["guidance_1/gfd/judge"] == distances[1]


def test_analyses_build_on_the_last_generator_of_their_row() -> None:
    stages = "      - {stage: layers, overrides: {k: 5}}\n      - {stage: curve, overrides: {steps: 9}}\n"
    file = write_experiment(Path(), ("      - stage: samples\n", stages), text=STAGED)
    made = {row.label: runs_of(row, "digits", 0) for row in load(str(file)).rows}
    runs = next(runs for runs in made.values() if any(run.stage.kind == "layers" for run in runs))
    generator = next(run for run in reversed(runs) if run.stage.kind in ("generator", "stage2"))
    for run, option in zip(runs[-2:], (["--k", "5"], ["--steps", "9"]), strict=True):
        (command,) = run.commands()
        assert command[2:] == [
            "experiments.programs",
            run.stage.kind,
            *("--run", str(generator.directory), *option, "--output", str(run.directory)),
        ]
