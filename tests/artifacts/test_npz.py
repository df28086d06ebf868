"""Hostile and damaged archives raise one sentence each, and allocate no memory before sizes are checked."""

from __future__ import annotations

import io
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest

from artifacts import npz
from artifacts.reference import Reference
from artifacts.samples import SamplesFile
from polytoken.errors import UserError

CODECS = {"deflate": zipfile.ZIP_DEFLATED, "bz2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}
PIXELS = np.arange(7 * 4 * 6 * 3, dtype=np.uint8).reshape(7, 4, 6, 3)


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def archive(path: Path, name: str, content: bytes, codec: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", codec) as file:
        file.writestr(f"{name}.npy", content)
    return path


def read(path: Path) -> None:
    list(SamplesFile(path).batches(3))


@pytest.mark.parametrize("codec", CODECS)
def test_damaged_streams_are_reported(codec: str, tmp_path: Path) -> None:
    content = io.BytesIO()
    np.save(content, np.random.default_rng(0).integers(256, size=(7, 16, 16, 3), dtype=np.uint8))
    path = archive(tmp_path / "file.npz", "arr_0", content.getvalue(), CODECS[codec])
    whole = path.read_bytes()
    for place in (60, 200, len(whole) // 2):
        damaged = bytearray(whole)
        damaged[place : place + 8] = bytes(byte ^ 0xFF for byte in damaged[place : place + 8])
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"file.npz is (damaged|not a file of samples): ") as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (10000000000000, 8, 8, 3)}", "arr_0 has 3 bytes"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, 1, 3", "is not a file of samples"),
        ("{'descr': '|u1', 'fortran_order': True, 'shape': (1, 1, 1, 3)}", "Fortran order"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -1, 1, 3)}", "shape"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1, 1, 3)}", "pickle"),
        ("(" * 100, "is not a file of samples"),
        ("'''", "is not a file of samples"),
    ],
)
def test_invalid_headers_are_reported(header: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        read(archive(tmp_path / "file.npz", "arr_0", npy(header, b"\0\0\0")))


def test_an_encrypted_member_is_reported(tmp_path: Path) -> None:
    path = archive(tmp_path / "file.npz", "arr_0", b"content")
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag, in the local header and in the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not a file of samples: .*encrypted"):
        read(path)


def test_a_zip_bomb_takes_no_memory(tmp_path: Path) -> None:
    size = 2 << 30
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("mu.npy", "w", force_zip64=True) as member:
            member.write(npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({size // 8},)}}"))
            for _ in range(size >> 24):
                member.write(bytes(1 << 24))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"mu is float64 .* more than 1024 MiB"):
        Reference.read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_statistics_in_fortran_order_are_read(tmp_path: Path) -> None:
    sigma = np.asfortranarray(np.arange(9.0).reshape(3, 3))
    np.savez(tmp_path / "file.npz", sigma=sigma)
    with npz.reading(tmp_path / "file.npz", "is broken", "Write it again.") as opened:
        assert np.array_equal(npz.read_array(opened, "sigma"), sigma)


def test_labels_beyond_int64_do_not_wrap(tmp_path: Path) -> None:
    np.savez(tmp_path / "file.npz", PIXELS, np.full(7, 2**63 + 5, np.uint64))
    with pytest.raises(UserError, match="arr_1 holds the label 9223372036854775813: classes are numbered from 0"):
        SamplesFile(tmp_path / "file.npz")
