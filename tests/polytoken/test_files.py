from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from polytoken.errors import MissingFileError, RunError, UserError
from polytoken.files import PARTIAL, file_sha256, is_file_name, replacing, write_bytes, write_text


def test_a_block_that_raises_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]


def test_errors_of_the_block_keep_their_class(tmp_path: Path) -> None:
    for error in (UserError("wrong"), FileNotFoundError(errno.ENOENT, "another file"), ValueError("a bug")):
        with pytest.raises(type(error)) as caught, replacing(tmp_path / "file") as temporary:
            temporary.touch()
            raise error
        assert caught.value is error
    assert not [*tmp_path.iterdir()]


def test_a_leftover_of_a_killed_writer_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    path.parent.mkdir()
    (path.parent / f"file{PARTIAL}").write_bytes(b"a longer leftover")
    with replacing(path) as temporary:
        temporary.write_bytes(b"whole")
    assert path.read_bytes() == b"whole" and [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("size", [0, 10_000, 10_000_000])
def test_a_full_disk_is_one_sentence_from_any_library(tmp_path: Path, size: int) -> None:
    path = tmp_path / "weights.pt"
    (tmp_path / f"weights.pt{PARTIAL}").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"weights.pt cannot be written: No space left on device"):
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(torch.zeros(size), file)
    assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_directory_is_reported(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="Permission denied"):
        write_bytes(tmp_path / "file", b"")
    tmp_path.chmod(0o700)


def test_a_full_disk_reported_by_safetensors(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="file cannot be written: No space left on device"), replacing(tmp_path / "file"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(RunError, match=r"metrics.json cannot be written: (File exists|Not a directory)"):
        write_text(tmp_path / "runs" / "metrics.json", "{}")


def test_sha256(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"abc")
    assert file_sha256(tmp_path / "file").startswith("ba7816bf")


def test_what_cannot_be_read_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name, says in ((".", "Is a directory"), ("loop", "symbolic links")):
        with pytest.raises(UserError, match=f"cannot be read: .*{says}"):
            file_sha256(tmp_path / name)
    with pytest.raises(MissingFileError, match="does not exist"):
        file_sha256(tmp_path / "none")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "x" * 241, "\udcff"])
def test_names_that_no_file_can_have(name: str) -> None:
    assert not is_file_name(name)
    assert is_file_name("fq_dual é")
