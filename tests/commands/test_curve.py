"""Distance over training FLOPs: kept checkpoints, their compute, and the two files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from commands import compute, curve
from polytoken.errors import UserError
from polytoken.loading import Checkpoint
from polytoken.metrics.compute import image_compute
from polytoken.pipeline import GenerationPipeline
from tests.support.generated import SCALAR, keep, write_latent_runs, write_runs
from tests.support.recipes import write_judge


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_judge(Path("runs/digits/teacher/judge.safetensors"))


@pytest.fixture
def coded() -> Path:
    return keep(write_runs(Path("runs/digits"), image_size=32), (2, 10, 12))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps of the checkpoints that images were drawn from."""
    seen: list[int] = []
    images = GenerationPipeline.images

    def record(self: GenerationPipeline, *given: object) -> torch.Tensor:
        seen.append(self.origin["generator"]["step"])
        return images(self, *given)

    monkeypatch.setattr(GenerationPipeline, "images", record)
    return seen


def measured(*options: str, place: Path) -> list[dict]:
    curve.main([*options, "--num-images", "20", "--batch-size", "20", "--output", str(place)])
    return json.loads((place / "curve.json").read_text())["runs"]


def test_every_kept_checkpoint_is_a_point(coded: Path, drawn: list[int], capsys: pytest.CaptureFixture) -> None:
    (run,) = measured("--curve", "AR", str(coded), place=Path())
    assert [point["step"] for point in run["points"]] == [2, 10, 12] == drawn
    found = image_compute(GenerationPipeline.from_run(coded).network.requires_grad_(True))
    assert (run["forward_flops"], run["training_flops"]) == (found.forward, found.training)
    assert [point["training_flops"] for point in run["points"]] == [found.training * step * 4 for step in (2, 10, 12)]
    assert all(point["metrics"]["gfd/judge"]["n"] == 20 for point in run["points"])
    assert Path("curve.png").read_bytes().startswith(b"\x89PNG")
    assert "half of full attention" in json.loads(Path("curve.json").read_text())["attention"]
    assert "Distance over training FLOPs" in capsys.readouterr().out
    drawn.clear()
    again = measured("--curve", "AR", str(coded), place=Path())
    assert drawn == [] and again == [run]


@pytest.mark.slow
def test_one_plot_shows_both_families_and_their_seeds(coded: Path, drawn: list[int]) -> None:
    flow = keep(write_latent_runs(Path("other/digits"), SCALAR, image_size=32), (6,))
    options = ("--curve", "AR", str(coded), str(coded), "--curve", "DiT", str(flow), "--steps", "2", "--top-k", "3")
    runs = measured(*options, place=Path("both"))
    assert [run["name"] for run in runs] == ["AR", "AR", "DiT"]
    assert drawn == [2, 10, 12, 6]  # the second run of AR is the first one
    settings = [json.loads((run / "kept.json").read_text())["scales"][0]["settings"] for run in (coded, flow)]
    assert settings[0]["sampler"]["top_k"] == 3 and settings[1]["sampler"]["steps"] == 2


def test_every_name_is_in_the_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean of runs that were measured at the same FLOPs, otherwise the runs alone."""

    def run_of(name: str, *flops: float) -> dict:
        metrics = {"gfd/judge": {"value": 3.0, "n": 20}}
        points = [{"step": 1, "images": 4, "training_flops": one, "metrics": metrics} for one in flops]
        return {"name": name, "run": name, "forward_flops": 1.0, "training_flops": 3.0, "points": points}

    legends: list[list[str]] = []
    render = curve.render

    def record(plot: Figure) -> np.ndarray:
        legends.append([text.get_text() for text in plot.axes[0].get_legend().get_texts()])
        return render(plot)

    monkeypatch.setattr(curve, "render", record)
    runs = [run_of("same", 1.0, 2.0), run_of("same", 1.0, 2.0), run_of("other", 1.0, 2.0), run_of("other", 1.0)]
    curve.draw(runs, tmp_path / "curve.png")
    assert legends == [["same", "other"]]


def test_compute_of_runs(coded: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    compute.main(["--run", str(coded)])
    half = capsys.readouterr().out
    compute.main(["--run", str(coded), "--full-attention"])
    full = capsys.readouterr().out
    assert "48" in half  # images trained: 12 steps of 4
    assert "half of full attention" in half and "note: attention: full attention" in full and half != full
    found = compute.compute_of(Checkpoint.open(coded))
    assert f"{found.forward / 1e9:.5g}" in half


def test_the_recorded_number_of_images_counts() -> None:
    position = {"batches_trained": 410, "offset": 0, "seed": 0, "global_batch_size": 100, "length": 1000}
    for recorded, images in (({"images_trained": 5000}, 5000), ({}, 41_000)):
        checkpoint = Checkpoint(Path("x.ckpt"), {"TokenDataModule": {**position, "class_to_idx": {}, **recorded}})
        assert compute.images_trained(checkpoint) == images


def test_invalid_input_is_rejected(coded: Path, capsys: pytest.CaptureFixture) -> None:
    def refusal(*options: str) -> str:
        with pytest.raises(SystemExit) as stop:
            curve.main(list(options))
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "--curve AR names no run" in refusal("--curve", "AR")
    assert "there is no checkpoint" in refusal("--curve", "AR", "nowhere")
    assert "not the checkpoint of a generator" in refusal("--curve", "AR", "runs/digits/tokenizer/tiny")
    checkpoint = Checkpoint(Path("x.ckpt"), {"state_dict": {}})
    with pytest.raises(UserError, match="x.ckpt does not say how many images it was trained on"):
        compute.images_trained(checkpoint)
