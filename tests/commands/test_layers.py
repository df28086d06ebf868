"""Layer analysis of finished runs: its numbers, its sources, and validation of the input."""

import json
from pathlib import Path

import pytest
import torch

from commands import layers
from commands.preset import Preset
from polytoken.metrics import cknna
from polytoken.pipeline import GenerationPipeline
from polytoken.specs import Tokens
from polytoken.teachers import Teacher
from tests.support.generated import CONTINUOUS, SCALAR, configure, write_latent_runs, write_runs
from tests.support.recipes import write_judge

SMALL = ("--max-images", "24", "--k", "3")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_judge(Path("runs/digits/teacher/judge.safetensors"))


def measured(run: Path, *options: str, file: str = "layers.json") -> dict:
    layers.main(["--run", str(run), *SMALL, *options])
    return json.loads((run / file).read_text())


def test_an_autoregressive_run_is_teacher_forced_on_validation_images(capsys: pytest.CaptureFixture) -> None:
    run = configure(write_runs(Path("runs/digits"), image_size=32))
    record = measured(run)
    pipeline, teacher = GenerationPipeline.from_run(run), Teacher("stand_in", "runs/digits/teacher/high.safetensors")
    (batch,) = Preset.load("digits").images("validation", at_most=24)
    images, labels = batch
    with torch.no_grad():
        codes = pipeline.tokenizer.encode(images).codes
        hidden = pipeline.network.loss(Tokens(codes=codes), labels, taps=(1,)).hidden[1]
    guide = teacher.features(images)[0].patches.mean((1, 2))
    assert record["cknna"] == [pytest.approx(cknna(hidden.mean(1), guide, 3).item(), rel=1e-4)]
    assert record["sts"] == [pytest.approx(1)] and record["correlation"] is None  # of a single block
    assert (record["n"], record["k"], record["positions"]) == (24, 3, 16)
    assert record["teacher"].startswith("stand_in ") and record["time"] is None
    assert (run / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert "24 validation images, k = 3" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("quantizer", [SCALAR, CONTINUOUS])
def test_states_of_a_flow_are_those_at_one_time(quantizer: dict) -> None:
    run = configure(write_latent_runs(Path("runs/digits"), quantizer, image_size=32))
    first, second, later = measured(run), measured(run), measured(run, "--time", "0.9")
    assert first == second and first["time"] == 0.5 and later["time"] == 0.9
    assert first["nts"] != later["nts"] and len(first["cknna"]) == 2
    assert abs(first["correlation"]) == pytest.approx(1)  # of two points


def test_states_on_generated_tokens_and_the_plot_of_several_runs() -> None:
    coded = configure(write_runs(Path("runs/digits"), image_size=32))
    flow = configure(write_latent_runs(Path("other/digits"), SCALAR, image_size=32))
    options = ["--source", "generated", "--picture", "both.png", "--probe"]
    layers.main(["--run", str(coded), str(flow), *SMALL, *options])
    for run in (coded, flow):
        record = json.loads((run / "generated_layers.json").read_text())
        assert record["source"] == "generated" and record["n"] == 24 and len(record["probe"]) == len(record["sts"])
        assert not (run / "layers.json").exists()
    assert Path("both.png").read_bytes().startswith(b"\x89PNG")


def test_the_aligned_block_is_read_from_the_run() -> None:
    run = configure(write_runs(Path("runs/digits"), image_size=32))
    file = run / "checkpoints/last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["model_config"]["init_args"]["alignment"] = {"teacher": {"name": "stand_in"}, "depth": None}
    torch.save(checkpoint, file)
    assert measured(run)["aligned"] == 1


def test_invalid_input_is_rejected(capsys: pytest.CaptureFixture) -> None:
    run = configure(write_runs(Path("runs/digits"), image_size=32))

    def refusal(*options: str) -> str:
        with pytest.raises(SystemExit) as stop:
            layers.main(["--run", str(run), *options])
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "--time is 0.0: it must lie between 0, noise, and 1, data" in refusal("--time", "0")
    assert "--k is 1 and --max-images 2048: CKNNA needs a k of 2" in refusal("--k", "1")
    assert "no teacher is called 'dino'" in refusal("--teacher", "dino")
    (run / "config.yaml").unlink()
    assert "config.yaml, which names the preset" in refusal()
