import hashlib
from pathlib import Path

import pytest

from commands.weights import PublishedFile, fetch


def published(tmp_path: Path, digest: str | None = None) -> PublishedFile:
    source = tmp_path / "served.pth"
    source.write_bytes(b"weights")
    return PublishedFile("vgg16.pth", source.as_uri(), digest or hashlib.sha256(b"weights").hexdigest()[:8])


def test_an_existing_file_is_not_fetched_again(tmp_path: Path) -> None:
    file = published(tmp_path)
    target = fetch(file, tmp_path / "weights")
    assert target.read_bytes() == b"weights"
    (tmp_path / "served.pth").unlink()
    assert fetch(file, tmp_path / "weights") == target, "an existing file is not fetched again"


def test_a_wrong_digest_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="hash"):
        fetch(published(tmp_path, "00000000"), tmp_path / "weights")
    assert list((tmp_path / "weights").iterdir()) == []


def test_another_file_of_the_same_name_is_rejected(tmp_path: Path) -> None:
    file = published(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/vgg16.pth").write_bytes(b"other")
    with pytest.raises(RuntimeError, match=f"SHA-256 {hashlib.sha256(b'other').hexdigest()}, not {file.sha256_prefix}"):
        fetch(file, tmp_path / "weights")
