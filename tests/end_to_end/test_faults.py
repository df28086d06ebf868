"""Messages and files of a run whose disk, directory or data workers fail."""

import ctypes
import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from artifacts.checkpoint_files import fault
from callbacks.measure.plots import publish
from polytoken.errors import RunError
from tests.end_to_end.test_cli import assert_equal
from tests.support.commands import TOY, exit_code
from tests.support.generator_recipes import tiny, write_digit_codes

CHECKPOINTS = Path("runs/default/toy/checkpoints")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])


def state(path: Path = CHECKPOINTS / "last.ckpt") -> dict:
    assert fault(path) is None
    return torch.load(path, weights_only=True)


def expected() -> dict:
    assert exit_code("fit", "--config", TOY, "--run.root", "whole") == 0
    return state("whole" / CHECKPOINTS.relative_to("runs") / "last.ckpt")


def names() -> list[str]:
    return sorted(path.name for path in CHECKPOINTS.iterdir())


def test_a_full_disk_is_reported(capsys: pytest.CaptureFixture) -> None:
    assert exit_code("fit", "--config", TOY, "--trainer.max_steps", "2") == 0
    (CHECKPOINTS / "next.ckpt.partial").symlink_to("/dev/full")  # every write to it fails as a full disk does
    assert exit_code("fit", "--config", TOY) == 2
    error = capsys.readouterr().err
    assert "next.ckpt cannot be written: No space left on device. What was saved before is whole: make room" in error
    assert "Traceback" not in error
    assert names() == ["last.ckpt"] and state()["global_step"] == 2
    assert exit_code("fit", "--config", TOY) == 0
    assert_equal(state(), expected())


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("writer", "says"),
    [
        ("tensorboard.summary.writer.record_writer.RecordWriter.write", "a file of the run cannot be written: "),
        ("torch.utils.tensorboard.SummaryWriter.add_scalar", "a file of the run cannot be written: "),  # wrapped twice
        ("polytoken.files.sync", "config.yaml cannot be written: "),  # the first file that is renamed into place
    ],
)
def test_a_full_disk_elsewhere(
    writer: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(writer, full)
        assert exit_code("fit", "--config", TOY, "--trainer.log_every_n_steps", "1") == 2
    error = capsys.readouterr().err
    assert says in error and "No space left on device" in error and "Traceback" not in error
    assert exit_code("fit", "--config", TOY) == 0
    assert_equal(state(), expected())


def test_a_picture_on_a_full_disk(tmp_path: Path) -> None:
    trainer = SimpleNamespace(default_root_dir=str(tmp_path), loggers=[])
    publish(trainer, "usage", np.zeros((4, 4, 3), np.uint8))
    before = (tmp_path / "usage.png").read_bytes()
    (tmp_path / "usage.png.partial").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"usage.png cannot be written: No space left on device"):
        publish(trainer, "usage", np.ones((4, 4, 3), np.uint8))
    assert (tmp_path / "usage.png").read_bytes() == before


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """A directory that is read-only for this process, even as root."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o555)
    libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
    before, without = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    for capabilities in (before, without):
        assert libc.capget(header, capabilities) == 0
    without[0] &= ~(1 << 1)  # CAP_DAC_OVERRIDE
    assert libc.capset(header, without) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0
        directory.chmod(0o755)


def test_a_read_only_directory_is_reported(capsys: pytest.CaptureFixture) -> None:
    with read_only(CHECKPOINTS):
        assert exit_code("fit", "--config", TOY) == 2
    error = capsys.readouterr().err
    assert f"no checkpoint can be written to {CHECKPOINTS}: Permission denied. Make it a writable directory" in error
    assert names() == []


def test_a_directory_that_cannot_be_created(capsys: pytest.CaptureFixture) -> None:
    with read_only(Path("runs")):
        assert exit_code("fit", "--config", TOY) == 2
    error = capsys.readouterr().err
    assert "the run's directory runs/default/toy cannot be written: " in error
    assert "runs may not be written by this user. Make it a writable directory, or choose another place" in error
    assert [*Path("runs").iterdir()] == []
    Path("file").touch()
    assert exit_code("fit", "--config", TOY, "--run.root", "file") == 2
    assert "file is a file" in capsys.readouterr().err


def test_a_directory_that_becomes_read_only(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert exit_code("fit", "--config", TOY, "--trainer.max_steps", "2") == 0
    monkeypatch.setattr(
        "callbacks.checkpoint.last_checkpoint.check_writable", lambda directory: None
    )  # still writable here
    with read_only(CHECKPOINTS):
        assert exit_code("fit", "--config", TOY) == 2
    assert "next.ckpt cannot be written: Permission denied" in capsys.readouterr().err
    assert names() == ["last.ckpt"] and state()["global_step"] == 2
    assert exit_code("fit", "--config", TOY) == 0
    assert_equal(state(), expected())


def test_a_killed_data_worker_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """Usually out of memory. The exception is torch's, or a broken connection, with a traceback."""
    store = write_digit_codes(Path("store"))
    small = ["--trainer.max_steps", "6", "--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "0"]
    last = {"class_path": "callbacks.LastCheckpoint", "init_args": {"every_n_train_steps": 2}}
    random = {"class_path": "callbacks.RandomState"}
    killer = {"class_path": "tests.support.faults.KillWorker", "init_args": {"step": 3}}

    def arguments(root: str, *callbacks: dict, workers: int = 1) -> list[str]:
        overlay = Path("overlay.yaml")
        overlay.write_text(json.dumps({"trainer": {"callbacks": [last, random, *callbacks]}}))
        data = ["--data.num_workers", str(workers), "--data.batch_size", "4"]
        return ["fit", *tiny("stage1", store), *small, *data, "--config", str(overlay), "--run.root", root]

    with pytest.raises((RuntimeError, OSError, EOFError)):
        exit_code(*arguments("killed", killer))
    assert re.search(r"the data worker with process id \d+ was ended by SIGKILL, which happens when", caplog.text)
    checkpoints = Path("killed/digits/stage1/fq_dual/checkpoints")
    assert sorted(path.name for path in checkpoints.iterdir()) == ["last.ckpt"]
    assert state(checkpoints / "last.ckpt")["global_step"] == 2
    assert exit_code(*arguments("killed")) == 0
    assert exit_code(*arguments("whole", workers=0)) == 0
    assert_equal(state(checkpoints / "last.ckpt"), state("whole" / checkpoints.relative_to("killed") / "last.ckpt"))
