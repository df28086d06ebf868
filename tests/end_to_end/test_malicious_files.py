"""Files that run code when they are unpickled are rejected in one sentence by every command that reads files."""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as sharded

from callbacks.predict.sample_writer import SampleWriter
from commands import consolidate, evaluate
from polytoken import records
from polytoken.errors import UserError
from polytoken.files import file_sha256
from polytoken.pipeline import GenerationPipeline
from tests.support.commands import REPOSITORY, TOY, exit_code
from tests.support.generated import write_runs
from tests.support.generator_recipes import tiny, write_digit_codes
from tests.support.recipes import CONFIGS, digits, write_judge

LAST = Path("runs/default/toy/checkpoints/last.ckpt")
REFUSED = "it names posix.mkdir, and to read it could run code"


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])


def checkpoint(path: str | Path = "evil.ckpt") -> str:
    """A checkpoint in torch's format."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": RunsCode(), "global_step": 1}, path)
    return str(path)


def predict(stage: str, *arguments: str) -> list[str]:
    files = (CONFIGS / f"{stage}.yaml", CONFIGS / f"presets/digits/{stage}.yaml")
    return ["predict", *(part for file in files for part in ("--config", str(file))), *arguments]


def own_last(command: str) -> tuple[list[str], str]:
    checkpoint(LAST)
    return [command, "--config", TOY], f"{LAST} cannot be read: .*{REFUSED}"


def named(command: str, *more: str) -> tuple[list[str], str]:
    arguments = [command, "--config", TOY, "--ckpt_path", checkpoint(), *more]
    return arguments, f"evil.ckpt cannot be read: .*{REFUSED}"


def plain_pickle() -> tuple[list[str], str]:
    Path("evil.ckpt").write_bytes(pickle.dumps(RunsCode()))
    return ["fit", "--config", TOY, "--ckpt_path", "evil.ckpt"], "evil.ckpt cannot be read: it is .* no checkpoint"


def init_from() -> tuple[list[str], str]:
    store = write_digit_codes(Path("store"))
    arguments = ["fit", *tiny("stage2", store), "--model.init_from", checkpoint()]
    return arguments, rf"evil.ckpt is not a readable checkpoint \(.*{REFUSED}"


def tokenizer_run() -> tuple[list[str], str]:
    arguments = predict("tokens", "--model.tokenizer_run", checkpoint())
    return arguments, rf"evil.ckpt is not a readable checkpoint \(.*{REFUSED}"


def generator_run() -> tuple[list[str], str]:
    arguments = predict("sample", "--model.generator_run", checkpoint())
    return arguments, rf"evil.ckpt is not a readable checkpoint \(.*{REFUSED}"


def tokenizer_of_a_generator() -> tuple[list[str], str]:
    run = write_runs(Path("runs/digits"))
    tokenizer = checkpoint("runs/digits/tokenizer/tiny/checkpoints/last.ckpt")
    arguments = predict("sample", "--model.generator_run", str(run))
    return arguments, rf"{tokenizer} is not a readable checkpoint \(.*{REFUSED}"


def teacher() -> tuple[list[str], str]:
    arguments = digits("fq_dual", write_judge(Path("judge.safetensors").absolute()))
    checkpoint("high.safetensors")
    return ["fit", *arguments], r"high.safetensors is not a readable weights file \("


def judge() -> tuple[list[str], str]:
    arguments = digits("fq_dual", write_judge(Path("runs/digits/teacher/judge.safetensors")))
    evil = ["--model.objective.perceptual.weights", checkpoint("judge.pth")]
    return ["fit", *arguments, *evil], rf"judge.pth is not a readable weights file \(.*{REFUSED}"


def manifest() -> tuple[list[str], str]:
    store = write_digit_codes(Path("store"))
    (store / "train/manifest.json").write_bytes(pickle.dumps(RunsCode()))
    return ["fit", *tiny("stage1", store)], "train/manifest.json is not valid JSON"


def shard() -> tuple[list[str], str]:
    store = write_digit_codes(Path("store"))
    file = next((store / "train").glob("*.arrow"))
    file.write_bytes(pickle.dumps(RunsCode()).ljust(file.stat().st_size, b"\0"))
    return ["fit", *tiny("stage1", store)], f"{file.name} is damaged"


def yaml(text: str) -> tuple[list[str], str]:
    Path("evil.yaml").write_text(f"run: {{stage: evil}}\nmodel: {text}\n")
    return [
        "fit",
        "--config",
        TOY,
        "--config",
        "evil.yaml",
    ], "could not determine a constructor.*evil.yaml"


ENTRIES: dict[str, Callable[[], tuple[list[str], str]]] = {
    **{f"{command}, its own": lambda command=command: own_last(command) for command in ("fit", "validate")},
    **{f"{command}, named": lambda command=command: named(command) for command in ("fit", "test", "predict")},
    "fit, told to trust it": lambda: named("fit", "--weights_only", "false"),
    "fit, a plain pickle": plain_pickle,
    "init_from": init_from,
    "tokenizer_run": tokenizer_run,
    "generator_run": generator_run,
    "a generator's tokenizer": tokenizer_of_a_generator,
    "teacher": teacher,
    "judge": judge,
    "manifest": manifest,
    "shard": shard,
    "yaml": lambda: yaml("!!python/object/apply:os.mkdir ['ran']"),
    "yaml, new": lambda: yaml("!!python/object/new:os.mkdir ['ran']"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", ENTRIES)
def test_commands_reject_files_that_run_code(entry: str, capsys: pytest.CaptureFixture) -> None:
    arguments, said = ENTRIES[entry]()
    small = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert exit_code(*arguments, *small) == 2
    error = capsys.readouterr().err
    assert re.search(said, error, re.DOTALL), error
    assert "Traceback" not in error and "weights_only" not in error, "no advice to trust it"
    assert not Path("ran").exists()


def test_samples_and_references_are_rejected(capsys: pytest.CaptureFixture) -> None:
    write_judge(Path("runs/digits/teacher/judge.safetensors"))
    evil = np.array([RunsCode()], dtype=object)
    np.savez("evil.npz", arr_0=evil)
    np.savez("evil_mu.npz", mu=evil, sigma=evil)
    np.savez("good.npz", arr_0=np.zeros((2, 32, 32, 3), np.uint8), arr_1=np.arange(2))
    for arguments in (["--samples", "evil.npz"], ["--samples", "good.npz", "--reference", "evil_mu.npz"]):
        with pytest.raises(SystemExit, match="2"):
            evaluate.main([*arguments, "--preset", "digits"])
        assert re.search(r"error: evil\S*.npz is .*(pickle|Object arrays)", capsys.readouterr().err)
    assert not Path("ran").exists()


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("kind", ["pickle", "array of objects", "empty"])
def test_parts_of_samples_are_rejected(kind: str, noted: bool) -> None:
    """Whoever writes a part can write the note of its digest as well, so the digest does not protect the loader."""
    writer = SampleWriter()
    writer._directory, writer._data = Path(), SimpleNamespace(num_parts=1, part=lambda part: range(2))
    part = Path("parts/00000.npy")
    part.parent.mkdir()
    if kind == "array of objects":
        np.save(part, np.array([RunsCode()], dtype=object))
    else:
        part.write_bytes(pickle.dumps(RunsCode()) if kind == "pickle" else b"")
    if noted:
        records.write(part.with_suffix(".json"), {"sha256": file_sha256(part)})
    said = "cannot be read as an array: delete it" if noted else "is not the file that was written: start predict again"
    with pytest.raises(UserError, match=f"parts/00000.npy {said}"):
        next(writer._pieces())
    assert not Path("ran").exists()


@pytest.mark.filterwarnings("ignore")
def test_sharded_checkpoints_are_rejected(capsys: pytest.CaptureFixture) -> None:
    sharded.save({"lr": RunsCode()}, checkpoint_id=LAST, no_dist=True)
    torch.save({"global_step": 1}, LAST / "meta.pt")
    with pytest.raises(SystemExit, match="2"):
        consolidate.main([str(LAST)])
    assert REFUSED in capsys.readouterr().err
    assert exit_code("fit", "--config", TOY) == 2
    assert REFUSED in capsys.readouterr().err
    assert not Path("ran").exists()


def test_loading_in_python_is_rejected() -> None:
    with pytest.raises(ValueError, match=f"evil.ckpt is not a readable checkpoint .*{REFUSED}"):
        GenerationPipeline.from_run(checkpoint())
    assert not Path("ran").exists()


UNSAFE = (
    r"load\w*\([^)]*weights_only\s*=\s*False",
    r"allow_pickle\s*=\s*True",
    r"(?<!def )\bpickle\.loads?\(",
    r"yaml\.(load|unsafe_load|full_load)\(",
    r"\b(joblib|dill|shelve|marshal)\b",
)


def test_no_production_line_unpickles() -> None:
    """Every read states its safe option explicitly, since defaults may change."""
    own = [path for path in REPOSITORY.rglob("*.py") if not {".venv", "tests", "runs"} & set(path.parts)]
    assert len(own) > 100
    for path in own:
        text = path.read_text()
        found = [pattern for pattern in UNSAFE if re.search(pattern, text)]
        assert not found, f"{path}: {found}"
        for call in re.findall(r"torch\.load\((?:[^()]|\([^()]*(?:\([^()]*\))?[^()]*\))*\)", text):
            assert "weights_only=True" in call, f"{path}: {call}"
