import hashlib
from pathlib import Path

import numpy as np
import pytest

from commands.weights import PublishedFile, fetch, fetch_reference, main, teachers_of
from polytoken.errors import RunError, UserError


def published(tmp_path: Path, digest: str | None = None) -> PublishedFile:
    source = tmp_path / "served.pth"
    source.write_bytes(b"weights")
    return PublishedFile("vgg16.pth", source.as_uri(), digest or hashlib.sha256(b"weights").hexdigest()[:8])


def test_a_reference_is_read_and_its_digest_is_kept(tmp_path: Path) -> None:
    served = tmp_path / "served.npz"
    np.savez(served, mu=np.zeros(2048), sigma=np.eye(2048))
    file = PublishedFile("reference.npz", served.as_uri(), "")
    target = fetch_reference(file, tmp_path / "weights")
    digest = hashlib.sha256(served.read_bytes()).hexdigest()
    assert target.with_name("reference.npz.sha256").read_text() == f"{digest}  reference.npz\n"
    fetch_reference(file, tmp_path / "weights")
    np.savez(target, mu=np.ones(2048), sigma=np.eye(2048))
    with pytest.raises(RunError, match=r"is not the file whose digest is in .*reference.npz.sha256: delete both"):
        fetch_reference(file, tmp_path / "weights")
    served.write_bytes(b"an error page of the server")
    with pytest.raises(UserError, match="is not a reference file"):
        fetch_reference(file, tmp_path / "elsewhere")


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


def test_a_recipe_stands_for_its_teachers(capsys: pytest.CaptureFixture) -> None:
    assert teachers_of("fq_triple") == ["dinov2_small", "clip_base_16"]
    assert teachers_of("ideal") == ["siglip2_large", "dino_small_16"] and teachers_of("dit_repa") == ["dinov2_base"]
    assert teachers_of("vq") == [] and teachers_of("dinov2_base") == ["dinov2_base"]
    with pytest.raises(SystemExit):
        main(["fq_dual", "dinov2_bass"])  # refused before anything is fetched
    assert "dinov2_bass" in capsys.readouterr().err
