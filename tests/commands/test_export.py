"""Export of runs: the folder, its card, and what stays away when it fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import polytoken.pretrained.folder
from commands import export
from commands.export import main
from polytoken import GenerationPipeline, from_pretrained, load_tokenizer
from polytoken.fingerprint import fingerprint
from polytoken.loading import Checkpoint
from polytoken.weights import save_tensors
from tests.support.commands import PROCESSES
from tests.support.generated import CONTINUOUS, configure, pixels, write_latent_runs, write_runs
from tests.support.released import ADOBE


def killed(*arguments: str) -> None:
    """An export that is killed when both networks are written."""
    export.model_card = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    main([*arguments])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A generator's run, with what training and `make evaluate` leave."""
    monkeypatch.chdir(tmp_path)
    run = configure(write_runs(Path("runs/digits")))
    for place, metrics in ((run, {"val/nll": 1.25}), (Path("runs/digits/tokenizer/tiny"), {"val/psnr": 24.987})):
        section = {"global_step": 7, "n": 355, "metrics": metrics, "versions": {"torch": "2.15"}, "commit": "abc"}
        (place / "metrics.json").write_text(json.dumps({"validate": section}))
    return run


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    def refused(*options: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main([*options])
        assert stop.value.code == 2
        return capsys.readouterr().err

    return refused


def write_samples(run: Path, sha256: str) -> None:
    """An evaluation of samples, which names the checkpoint that drew them."""
    samples = run.parent.parent / "samples" / f"of_{sha256[:4]}"
    samples.mkdir(parents=True)
    settings = {
        **{"num_images": 500, "classes": "balanced", "seed": 0, "sampler": {"guidance": 2.0}},
        "generator": {"run": str(run), "step": 7, "sha256": sha256},
    }
    (samples / "samples.json").write_text(json.dumps({"settings": settings}))
    evaluated = {
        **{"metrics": {"samples": {"gfd/judge": {"value": 0.1234, "n": 500, "reference_n": 355}}}, "notes": []},
        **{"samples": {}, "extractor": {"name": "judge", "sha256": None}, "reference": {"reference": "digits images"}},
    }
    (samples / "metrics.json").write_text(json.dumps({"evaluate": evaluated}))


def test_a_pipeline_draws_the_same_images(run: Path, capsys: pytest.CaptureFixture) -> None:
    main([str(run), "--to", "mine/digits"])
    assert 'polytoken.from_pretrained("mine/digits") loads it' in capsys.readouterr().out
    loaded = from_pretrained("mine/digits")
    assert isinstance(loaded, GenerationPipeline)
    assert (
        pixels(loaded.sample([3, 1], seed=2)) == pixels(GenerationPipeline.from_run(run).sample([3, 1], seed=2))
    ).all()
    files = {str(file.relative_to("mine/digits")) for file in Path("mine").rglob("*") if file.is_file()}
    parts = {f"{part}/{file}" for part in ("generator", "tokenizer") for file in ("config.json", "model.safetensors")}
    assert files == {"README.md", "config.json", *parts}


def test_the_card_of_a_pipeline(run: Path) -> None:
    write_samples(run, Checkpoint.open(run).sha256)
    write_samples(run, "0" * 64)
    main([str(run), "--to", "mine/digits", "--license", "cc-by-4.0"])
    card = Path("mine/digits/README.md").read_text()
    _, front_matter, body = card.split("---\n", 2)
    metadata = yaml.safe_load(front_matter)
    assert metadata["license"] == "cc-by-4.0" and metadata["library_name"] == "polytoken"
    assert {"polytoken", "image-generation", "AutoregressiveGenerator"} <= {*metadata["tags"]}
    for line in (
        "# stage2/tiny on digits",
        'pipeline = polytoken.from_pretrained("digits")',
        "- classes: 10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
        f"- tokenizer: tokenizer/tiny, fingerprint {fingerprint(load_tokenizer('runs/digits/tokenizer/tiny'))}",
        "| nats a sub-code ↓ | 1.250 |",
        "| samples | 500 | 0.1234 (to 355) |",
        "- codes of an image: 8 (4 positions × 2)",
        "- bits of an image: 32",
        "- data: DigitsSource",
        "| PSNR, dB ↑ | 24.99 |",
        "- images measured: 355",
        "- commit: abc",
    ):
        assert f"{line}\n" in body, line
    assert "of_0000" not in body and str(Path.cwd()) not in card


@pytest.mark.parametrize("part", ["tokenizer", "generator"])
def test_weights_trained_from_released_ones_keep_their_licence(part: str, run: Path) -> None:
    start: dict[str, Any] = {"path": "runs/digits/tokenizer/imported", "sha256": "1" * 64, "step": 0, "released": ADOBE}
    file = (run if part == "generator" else Path("runs/digits/tokenizer/tiny")) / "checkpoints/last.ckpt"
    content = torch.load(file, weights_only=True)
    if part == "generator":
        handover = {"tokenizer_fingerprint": "", "sub_codes": [0, 1], "sub_code": "all"}
        content["generator"]["lineage"]["init_from"] = {
            **start,
            **handover,
            "carried": [],
            "fresh": [],
            "left_behind": [],
        }
    else:
        content["init_from"] = start
    torch.save(content, file)
    main([str(run), "--to", "mine"])
    card = Path("mine/README.md").read_text()
    assert "license: other\n" in card and "trained by Polytoken" in card
    assert (
        "- weights: step 7, trained from imagefolder/VP2-4096 (ImageFolder, lxa9867/ImageFolder), licence Adobe" in card
    )
    assert "- initial weights: tokenizer/imported, step 0" in card


def test_the_example_of_the_card_runs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main([str(run), "--to", "mine/digits"])
    card = Path("mine/digits/README.md").read_text()
    monkeypatch.chdir("mine")
    code = card.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) == 3
    exec(code, {})
    assert Path("sample.png").is_file()


def test_a_tokenizer_without_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_latent_runs(Path("runs/digits"), CONTINUOUS)
    main(["runs/digits/tokenizer/tiny", "--to", "mine"])
    card = Path("mine/README.md").read_text()
    assert "- latents of an image: 3 × 2 × 2\n" in card and ".quantized\n" in card
    assert fingerprint(from_pretrained("mine")) == fingerprint(load_tokenizer("runs/digits/tokenizer/tiny"))


def test_an_evaluation_of_earlier_samples_is_not_on_the_card(run: Path) -> None:
    write_samples(run, Checkpoint.open(run).sha256)
    (samples,) = Path("runs/digits/samples").iterdir()
    for name, place in (("samples.json", ()), ("metrics.json", ("evaluate", "samples"))):
        record = part = json.loads((samples / name).read_text())
        for key in place:
            part = part[key]
        part["sha256"] = f"the file that {name} is about"
        (samples / name).write_text(json.dumps(record))
    main([str(run), "--to", "mine"])
    assert "0.1234" not in Path("mine/README.md").read_text()


def test_an_earlier_checkpoint(run: Path) -> None:
    """Its weights are exported, and the card says that the metrics are of another step."""
    file = Path("runs/digits/tokenizer/tiny/checkpoints/last.ckpt")
    torch.save({**torch.load(file, weights_only=True), "global_step": 3}, file.with_name("step_3.ckpt"))
    probe = {"probe": "linear", "feature": "after/all", "value": 0.5, "standard_error": 0.01}
    probes = {"probes": [probe], "n_validation": 355, "chance": 0.1, "checkpoint": {"step": 7}}
    (file.parents[1] / "probes.json").write_text(json.dumps(probes))
    main([str(file.with_name("step_3.ckpt")), "--to", "mine"])
    card = Path("mine/README.md").read_text()
    assert "# tokenizer/tiny" in card and "that step is 7, and these weights are of step 3\n" in card
    assert "is one standard error; measured at step 7\n" in card
    main(["runs/digits/tokenizer/tiny", "--to", "last"])
    assert "is one standard error\n" in Path("last/README.md").read_text()
    shutil.copy(file, "alone.ckpt")
    main(["alone.ckpt", "--to", "alone"])
    assert "metric | value" not in Path("alone/README.md").read_text()


def test_the_card_names_the_files_of_the_recipe(run: Path) -> None:
    origin = {"arguments": [], "configs": {"configs/vq.yaml": "", f"{Path.cwd()}/own.yaml": ""}, "inputs": {}}
    done = {"command": "fit", "config": "", "files": {"checkpoints/last.ckpt": ""}, "origin": origin}
    Path("runs/digits/tokenizer/tiny/done.json").write_text(json.dumps(done))
    main(["runs/digits/tokenizer/tiny", "--to", "mine"])
    assert "- configuration: configs/vq.yaml, own.yaml\n" in Path("mine/README.md").read_text()


def test_a_tokenizer_that_has_moved(run: Path, refusal: Callable[..., str]) -> None:
    shutil.move("runs/digits/tokenizer", "elsewhere")
    assert "there is no checkpoint" in refusal(str(run), "--to", "mine")
    main([str(run), "--to", "mine", "--tokenizer-run", "elsewhere/tiny"])
    assert isinstance(from_pretrained("mine"), GenerationPipeline)


@pytest.mark.parametrize("kind", ["full", "file", "link"])
def test_an_existing_place_stays_as_it_is(kind: str, run: Path, refusal: Callable[..., str]) -> None:
    place = Path("mine")
    if kind == "full":
        place.mkdir()
        (place / "notes.txt").write_text("mine")
    elif kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to("nowhere")
    assert "mine exists and is no empty folder" in refusal(str(run), "--to", "mine")
    assert not Path(".mine.partial").exists() and (kind != "full" or {*place.iterdir()} == {place / "notes.txt"})


def test_an_empty_folder_is_filled(run: Path) -> None:
    Path("mine").mkdir()
    main([str(run), "--to", "mine"])
    assert isinstance(from_pretrained("mine"), GenerationPipeline)


def test_an_interrupted_export_leaves_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path, *rest: Any) -> None:
        if path.parent.name == "generator":  # the tokenizer is written already
            raise KeyboardInterrupt
        save_tensors(path, *rest)

    monkeypatch.setattr(polytoken.pretrained.folder, "save_tensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main([str(run), "--to", "mine"])
    assert {file.name for file in Path().iterdir()} == {"runs"}


@pytest.mark.slow
def test_a_killed_export_is_no_folder(run: Path) -> None:
    process = PROCESSES.Process(target=killed, args=(str(run), "--to", "mine"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert {file.name for file in Path().iterdir()} == {"runs", ".mine.partial"}
    main([str(run), "--to", "mine"])
    assert {file.name for file in Path().iterdir()} == {"runs", "mine"}


def test_runs_that_cannot_be_exported(run: Path, refusal: Callable[..., str]) -> None:
    assert "there is no checkpoint" in refusal("runs/digits/none", "--to", "mine")
    file = Path("runs/digits/tokenizer/tiny/checkpoints/last.ckpt")
    content = torch.load(file, weights_only=True)
    torch.save({**content, "model_config": {"init_args": {"judge": {}}}}, file)
    assert "is not the checkpoint of a tokenizer" in refusal(str(file), "--to", "mine")
    section = {"class_path": "evil_module.Evil"}
    torch.save({**content, "model_config": {"init_args": {"tokenizer": section}}}, file)
    assert "only classes of polytoken are loaded" in refusal(str(file), "--to", "mine")
    assert {place.name for place in Path().iterdir()} == {"runs"}


@pytest.mark.slow
def test_programs_come_with_the_folder(run: Path) -> None:
    main([str(run), "--to", "mine", "--format", "pt2"])
    assert {"encode.pt2", "decode.pt2", "start.pt2", "step.pt2", "programs.json"} < {*os.listdir("mine")}
    assert isinstance(from_pretrained("mine"), GenerationPipeline)
