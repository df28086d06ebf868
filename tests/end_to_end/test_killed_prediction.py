"""A prediction that is killed and resumed computes only the missing parts, and equals an uninterrupted one."""

import signal
from pathlib import Path

import pytest
from lightning.pytorch import LightningModule

from artifacts.samples import SamplesFile
from artifacts.token_store import TokenStore
from lightning_modules import ExtractionModule, SamplingModule
from tests.support.commands import exit_code, forked
from tests.support.generated import write_runs
from tests.support.recipes import CONFIGS

QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu")
KILL = "trainer: {callbacks+: [{class_path: tests.support.interrupt.KillInPrediction, init_args: {batches: 3}}]}"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    Path("kill.yaml").write_text(KILL)


def files(stage: str) -> list[str]:
    return ["--config", str(CONFIGS / f"{stage}.yaml"), "--config", str(CONFIGS / f"presets/digits/{stage}.yaml")]


def killed(*arguments: str) -> None:
    result = forked("predict", *arguments, "--config", "kill.yaml", cwd=Path.cwd())
    assert result.returncode == -signal.SIGKILL, result.stderr


def predicted(module: type[LightningModule], *arguments: str) -> list[int]:
    """Files of an uninterrupted prediction."""
    indices: list[int] = []
    step = module.predict_step

    def counted(self: LightningModule, batch: dict, *more: int) -> object:
        indices.extend(batch["index"].tolist())
        return step(self, batch, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "predict_step", counted)
        assert exit_code("predict", *arguments) == 0
    return indices


@pytest.mark.slow
def test_samples() -> None:
    run = write_runs(Path("runs/digits"), image_size=32)
    few = ("--data.num_images", "50", "--data.batch_size", "10", "--data.part_size", "20")
    arguments = [*files("sample"), "--model.generator_run", str(run), *few, *QUIET]
    killed(*arguments)
    directory = Path("runs/digits/samples/fq_dual")
    assert {str(path.relative_to(directory)) for path in directory.rglob("*")} >= {"parts", "parts/00000.npy"}
    assert not (directory / "parts/00001.npy").exists() and not (directory / "samples.npz").exists()
    assert predicted(SamplingModule, *arguments) == [*range(20, 50)]
    assert predicted(SamplingModule, *arguments, "--run.stage", "samples/whole") == [*range(50)]
    samples, whole = (SamplesFile(directory.parent / name / "samples.npz") for name in ("fq_dual", "whole"))
    assert samples.digest() == whole.digest()
    assert not (directory / "parts").exists()


@pytest.mark.slow
def test_tokens() -> None:
    write_runs(Path("runs/digits"), image_size=32)
    shards = ("--trainer.callbacks.images_per_shard", "128")
    arguments = [*files("tokens"), *shards, "--model.tokenizer_run", "runs/digits/tokenizer/tiny", *QUIET]
    killed(*arguments)
    partial = Path("runs/digits/tokens/fq_dual/train.partial")
    assert [path.name for path in partial.glob("*.arrow")] == ["shard_00000.arrow"]
    assert not partial.with_name("train").exists()
    rest = predicted(ExtractionModule, *arguments)
    whole = predicted(ExtractionModule, *arguments, "--run.stage", "tokens/whole")
    assert whole[128:] == rest and whole[:128] == [*range(128)]
    for split in ("train", "validation"):
        resumed, expected = (TokenStore.open(partial.parents[1] / name / split) for name in ("fq_dual", "whole"))
        assert [shard.sha256 for shard in resumed.shards] == [shard.sha256 for shard in expected.shards]
