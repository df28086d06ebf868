"""A changed bit in a file of weights is noticed on every load."""

import os
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from polytoken import integrity
from polytoken.errors import UserError
from polytoken.integrity import SHA256, damage_of, damage_of_archive
from polytoken.teachers.class_vectors import ClassVectors
from polytoken.weights import load_state, read_metadata, save_state


def flipped(path: Path, place: int, bit: int = 4) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["layer.safetensors", "layer.pth"])
def test_no_changed_bit_changes_what_is_loaded(tmp_path: Path, name: str) -> None:
    layer, path = nn.Linear(16, 16), tmp_path / name
    if path.suffix == ".pth":
        torch.save(layer.state_dict(), path)
    else:
        save_state(path, layer, {"accuracy": 0.5})
    whole, (expected, metadata) = path.read_bytes(), load_state(path, "")
    assert damage_of(path) is None
    start = whole.find(SHA256.encode())
    key = range(start, start + len(SHA256)) if start >= 0 else range(0)  # of the digest in the header
    refused = 0
    for place in (*range(0, len(whole), 29), *key):
        path.write_bytes(whole)
        flipped(path, place, place % 8)
        try:
            state, found = load_state(path, "fetch it again")
        except UserError as error:
            assert f"{name} is not a readable weights file (" in str(error) and "fetch it again" in str(error)
            refused += 1
        else:  # padding, records that nothing reads, and the key, without which the file is as one of others
            others = found.keys() - metadata.keys()
            assert len(others) == (place in key) and {**found, **metadata} == found, place
            assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)
    assert refused > len(whole) / 29 / 2


def test_a_header_that_was_edited_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    save_state(path, nn.Linear(2, 2), {"accuracy": 0.31})
    path.write_bytes(path.read_bytes().replace(b"0.31", b"0.91"))
    with pytest.raises(UserError, match=r"judge.safetensors is not a readable weights file \(its SHA-256 is"):
        read_metadata(path, "")


def test_class_vectors_carry_a_digest(tmp_path: Path) -> None:
    path = tmp_path / "classes.safetensors"
    ClassVectors(torch.eye(4)[:2], "text", "teacher", {"cat": "a cat", "dog": "a dog"}, ("{}",)).save(path)
    assert torch.equal(ClassVectors.load(path).vectors, torch.eye(4)[:2])
    flipped(path, -3, 0)  # the last bits of a mantissa: still a unit vector
    with pytest.raises(UserError, match="its SHA-256 is"):
        ClassVectors.load(path)


def test_files_of_others_have_no_digest_and_load(tmp_path: Path) -> None:
    state = {"weight": torch.ones(3)}
    save_file(state, tmp_path / "theirs.safetensors", {"format": "pt", "sha256": "of something else"})
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        found, metadata = load_state(path, "")
        assert torch.equal(found["weight"], state["weight"]) and SHA256 not in metadata


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "layer.pth", []
    torch.save(nn.Linear(4, 4).state_dict(), path)
    monkeypatch.setattr(integrity, "damage_of_records", lambda *_: read.append(path))
    assert damage_of(path) is None and damage_of(path) is None
    assert len(read) == 2, "a young file may change within one tick of the clock of its file system"
    monkeypatch.setattr(integrity, "RACY", -1)
    for _ in range(3):
        damage_of(path)
    assert len(read) == 3
    os.utime(path, (0, 0))
    damage_of(path)
    assert len(read) == 4


def test_an_archive_that_unpacks_to_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    assert "compressed" in (damage_of_archive(path) or "")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 10))
    assert damage_of_archive(path) is None
