"""A guidance sweep: its metrics, reuse of measured scales, and validation of the input."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from commands import sweep
from commands.preset import Preset
from polytoken.metrics.extractors import load_extractor
from polytoken.metrics.image_metrics import Target, image_metrics
from polytoken.metrics.image_set import ImageSet
from polytoken.metrics.images import to_uint8
from polytoken.pipeline import GenerationPipeline
from polytoken.sampling import CategoricalSampler
from tests.support.generated import SCALAR, write_latent_runs, write_runs
from tests.support.recipes import write_judge


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_judge(Path("runs/digits/teacher/judge.safetensors"))
    return write_runs(Path("runs/digits"), image_size=32)


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Scales at which images were sampled."""
    seen: list[float] = []
    draw = GenerationPipeline.images

    def images(self: GenerationPipeline, labels: torch.Tensor, sampler: CategoricalSampler, *more: int) -> torch.Tensor:
        if not seen or seen[-1] != sampler.guidance:
            seen.append(sampler.guidance)
        if sampler.guidance == 9:
            raise KeyboardInterrupt
        return draw(self, labels, sampler, *more)

    monkeypatch.setattr(GenerationPipeline, "images", images)
    return seen


def swept(run: Path, *scales: float, more: tuple[str, ...] = ()) -> list[dict]:
    few = ("--num-images", "40", "--batch-size", "20")
    sweep.main(["--run", str(run), "--guidance", *map(str, scales), *few, *more])
    return json.loads((run / "sweep.json").read_text())["scales"]


def test_each_scale_has_the_metrics_of_its_images(run: Path, capsys: pytest.CaptureFixture) -> None:
    entries = swept(run, 3, 1)
    assert [entry["guidance"] for entry in entries] == [1, 3]
    generator, preset = GenerationPipeline.from_run(run), Preset.load("digits")
    judge = load_extractor("judge", preset.network_file("judge", Path("runs")), torch.device("cpu"))
    real = ImageSet.for_use(judge, 355, keep_rows=True)
    for images, labels in preset.images("validation"):
        real.add(to_uint8(images), labels)
    target = Target.of_images(real.compute(), "digits validation images")
    for entry in entries:
        images = ImageSet.for_use(judge, 40, keep_rows=True)
        for start in (0, 20):
            labels = torch.arange(start, start + 20) % 10
            drawn = generator.images(labels, CategoricalSampler(guidance=entry["guidance"]), 0, start)
            images.add(drawn.permute(0, 3, 1, 2), labels)
        for name, figure in image_metrics(images.compute(), target).items():
            assert entry["metrics"][name]["value"] == pytest.approx(figure["value"]), name
        assert entry["metrics"]["gfd/judge"]["reference"] == "digits validation images"
        assert entry["metrics"]["gfd/judge"]["n"] == 40
        assert entry["settings"]["generator_sha256"] == generator.origin["generator"]["sha256"]
        assert entry["settings"]["extractor_sha256"] == judge.sha256
        assert entry["versions"].keys() == {"python", "torch", "lightning", "torchmetrics", "torch-fidelity"}
    assert entries[0]["metrics"] != entries[1]["metrics"]
    assert (run / "sweep.png").read_bytes().startswith(b"\x89PNG") and not list(run.glob("*.partial"))
    assert "40 samples per scale by judge" in capsys.readouterr().out


def test_measured_scales_are_not_sampled_again(run: Path, sampled: list[float], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt):
        swept(run, 1, 2, 9)
    assert sampled == [1, 2, 9]
    sampled.clear()
    first = swept(run, 2, 1, 3)
    assert sampled == [3]
    assert [entry["guidance"] for entry in first] == [1, 2, 3]
    sampled.clear()
    capsys.readouterr()
    again = swept(run, 1)
    assert sampled == [] and again == first
    assert "│        3 │" in capsys.readouterr().out  # known scales are shown as well
    other = swept(run, 1, more=("--seed", "1"))
    assert sampled == [1] and len(other) == 4 and other[:3] == first
    sampled.clear()
    file = run / "checkpoints/last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["global_step"] += 1
    torch.save(checkpoint, file)
    swept(run, 1)
    assert sampled == [1]


def test_the_best_scales_are_found() -> None:
    def entry(guidance: float, distance: float, score: float) -> dict:
        figures = {"gis/inception": {"value": score}, "gsfid/inception": {"value": -1}}
        return {"guidance": guidance, "metrics": figures | {"gfid/inception": {"value": distance}}}

    entries = [entry(1.0, 5.0, 50.0), entry(1.5, 2.5, 90.0), entry(2.0, 3.0, 120.0)]
    assert sweep.best(entries) == (1.5, 2.0)
    assert sweep.best([{"guidance": 1.0, "metrics": {}}]) == (None, None)


def test_invalid_input_is_rejected(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def refusal(place: Path, *more: str) -> str:
        with pytest.raises(SystemExit) as stop:
            sweep.main(["--run", str(place), "--num-images", "10", "--guidance", *more])
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "guidance is -1" in refusal(run, "2", "-1")
    assert "not the checkpoint of a generator" in refusal(run.parent.parent / "tokenizer/tiny", "2")
    small = write_runs(tmp_path / "small/digits")
    assert "16 × 16 px, and the images of digits have 32 × 32" in refusal(small, "2")
    assert "--reference" in refusal(run, "2", "--extractor", "inception")
    assert not (small / "sweep.json").exists()


def test_a_broken_file_is_set_aside(run: Path) -> None:
    (run / "sweep.json").write_text("[]")
    assert [entry["guidance"] for entry in swept(run, 2)] == [2]
    assert (run / "sweep.json.broken").read_text() == "[]"


def test_the_plan_keeps_all_settings_but_guidance(run: Path) -> None:
    entry = swept(run, 2, more=("--temperature", "0.9", "--top-k", "4"))[0]
    expected = {**vars(replace(CategoricalSampler(), temperature=0.9, top_k=4))}
    expected.pop("guidance")
    assert {**entry["settings"]["sampler"], "interval": tuple(entry["settings"]["sampler"]["interval"])} == expected


def test_a_generator_of_latents_is_swept_by_its_own_rules(run: Path, capsys: pytest.CaptureFixture) -> None:
    dit = write_latent_runs(Path("runs/digits/latents"), SCALAR, image_size=32)
    steps = ("--steps", "3", "--method", "heun", "--shift", "0.5", "--snap")
    (entry,) = swept(dit, 2, more=steps)
    rules = entry["settings"]["sampler"]
    assert {name: rules[name] for name in ("steps", "method", "shift", "snap")} == {
        "steps": 3,
        "method": "heun",
        "shift": 0.5,
        "snap": True,
    }
    for place, rule, family in ((dit, "temperature", "FlowSampler"), (run, "steps", "CategoricalSampler")):
        with pytest.raises(SystemExit) as stop:
            swept(place, 2, more=(f"--{rule}", "3"))
        assert stop.value.code == 2
        assert f"sampler.{rule} is no rule of {family}, by which this generator samples" in capsys.readouterr().err
