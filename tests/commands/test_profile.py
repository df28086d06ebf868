"""Profile of a fit and of a prediction: the run stays as it was."""

from pathlib import Path

import pytest
import yaml

from commands import profile
from commands.trace import Figures, Operator
from tests.support.commands import TOY, exit_code
from tests.support.generated import write_runs
from tests.support.recipes import CONFIGS


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])


def files(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def profiled(run: Path, capsys: pytest.CaptureFixture, *more: str) -> str:
    """Output of a profile, which changed nothing but its trace."""
    before = files(Path())
    capsys.readouterr()
    profile.main([str(run), *more])
    (trace,) = files(Path()).keys() - before.keys()
    assert Path(trace).parent == run / "profile" and before == {name: files(Path())[name] for name in before}
    return capsys.readouterr().out


def test_a_finished_fit_goes_on_from_its_last_step(
    capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    assert exit_code("fit", "--config", TOY) == 0
    run = Path("runs/default/toy")
    output = profiled(run, capsys, "--steps", "2")
    assert f"a step of {run}, mean of 2:" in output and "operators, by" in output and "aten::" in output
    assert f"Restored all states from the checkpoint at {run}/checkpoints/last.ckpt" in caplog.text


def test_a_prediction_is_repeated_and_not_completed(capsys: pytest.CaptureFixture) -> None:
    generator = write_runs(Path("runs/digits"), image_size=32)
    arguments = ("--config", str(CONFIGS / "sample.yaml"), "--config", str(CONFIGS / "presets/digits/sample.yaml"))
    arguments += ("--model.generator_run", str(generator), "--trainer.accelerator", "cpu")
    arguments += ("--trainer.enable_progress_bar", "false", "--data.num_images", "3", "--data.batch_size", "1")
    assert exit_code("predict", *arguments) == 0
    run = Path("runs/digits/samples/fq_dual")
    assert "a batch of runs/digits/samples/fq_dual, mean of 1:" in profiled(run, capsys)
    with pytest.raises(SystemExit):
        profile.main([str(run), "--steps", "2"])
    assert "ends before 6 batches" in capsys.readouterr().err


def test_what_is_no_run_is_named(capsys: pytest.CaptureFixture) -> None:
    Path("runs/digits").mkdir(parents=True)
    for arguments, message in {
        ("runs/nothing",): "there is no runs/nothing",
        ("runs/digits",): "runs/digits is no run: it has neither config.yaml nor config_predict.yaml",
    }.items():
        with pytest.raises(SystemExit) as stop:
            profile.main([*arguments])
        assert stop.value.code == 2 and message in capsys.readouterr().err
    Path("runs/digits/config.yaml").write_text("model: {}\n")
    for more, message in {
        "0": "--steps: expected a whole number of at least 1",
        "1": "has no sections `trainer` and `run`",
    }.items():
        with pytest.raises(SystemExit):
            profile.main(["runs/digits", "--steps", more])
        assert message in capsys.readouterr().err


def test_a_repetition_uses_one_device_and_no_remote_logger(tmp_path: Path) -> None:
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "codes"}}
    trainer = {"devices": 8, "strategy": "ddp", "logger": [logger], "callbacks": [], "max_steps": 100}
    Path("config.yaml").write_text(yaml.safe_dump({"trainer": trainer, "run": {"root": "runs", "stage": "a"}}))
    config = profile.repetition(tmp_path, "fit")
    assert config["trainer"]["devices"] == 1 and config["trainer"]["strategy"] == "auto"
    assert config["trainer"]["logger"]["class_path"].endswith("TensorBoardLogger")
    assert config["ckpt_path"] is None and not Path(config["run"]["root"]).is_relative_to(tmp_path)


def test_the_lines_of_a_gpu() -> None:
    found = Figures(
        40.0, 0.5, 900, 20, 800, {"cudaStreamSynchronize": 1.5}, 1, 0.25, [Operator("aten::mm", 9, 0.5, 100)]
    )
    text = "\n".join(profile.lines(found, 30.0))
    for part in ("30.00 ms  40.00 ms while", "25.0%", "1.5  cudaStreamSynchronize 1.5", "20  of 800 kernels"):
        assert part in text
    assert "9.000 ms  50.0%    100 kernels  aten::mm" in text
