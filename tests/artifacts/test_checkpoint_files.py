import errno
import io
import os
import pickle
import random
import shutil
import struct
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as sharded

from artifacts import checkpoint_files
from artifacts.checkpoint_files import SyncedCheckpointIO, candidates, check_writable, copy, fault, move, seal

STATE = {"global_step": 3, "weight": torch.arange(1000.0)}


def write(path: Path, **changes) -> Path:
    SyncedCheckpointIO().save_checkpoint({**STATE, **changes}, path)
    return path


def write_sharded(path: Path, text: str = "shard") -> Path:
    optimizer = {"state": {"weight": {"step": torch.tensor(3.0)}}, "betas": (0.9, 0.95), "name": "all", "lr": 1e-3}
    weights = {"weight": STATE["weight"].bfloat16(), "bias": torch.zeros(2, 3)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a message that there are no ranks
        sharded.save({"state_dict": weights, "optimizer_0": optimizer}, checkpoint_id=path, no_dist=True)
    (path / "name").write_text(text)
    torch.save(STATE, path / "meta.pt")
    return path


def test_a_checkpoint_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "new" / "last.ckpt", []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        seen.append((os.readlink(f"/proc/self/fd/{descriptor}"), path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write(path)
    assert seen == [(f"{path}.partial", False), (str(path.parent), True)]
    assert torch.equal(torch.load(path, weights_only=True)["weight"], STATE["weight"])
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("full_after", [0, 100_000])
def test_a_full_disk_is_reported(tmp_path: Path, full_after: int) -> None:
    last = write(tmp_path / "last.ckpt")
    before = last.read_bytes()
    (tmp_path / "last.ckpt.partial").symlink_to("/dev/full")  # every write to it fails as a full disk does
    with pytest.raises(RuntimeError, match=r"last.ckpt cannot be written: No space left on device. .* make room"):
        write(last, weight=torch.zeros(full_after))
    assert last.read_bytes() == before and list(tmp_path.iterdir()) == [last]


def test_an_unwritable_directory_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_way = tmp_path / "checkpoints"
    in_the_way.write_text("a file")
    with pytest.raises(RuntimeError, match=r"no checkpoint can be written to .*checkpoints: File exists.*run\.root"):
        check_writable(in_the_way)
    with pytest.raises(RuntimeError, match="last.ckpt cannot be written"):
        write(in_the_way / "last.ckpt")
    assert in_the_way.read_text() == "a file"

    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(RuntimeError, match="Read-only file system"):
        check_writable(tmp_path / "other")


def test_a_second_name_survives_the_first(tmp_path: Path) -> None:
    last, kept = write(tmp_path / "last.ckpt"), tmp_path / "step_3.ckpt"
    copy(last, kept)
    assert kept.samefile(last)  # no second copy on the disk
    write(last, global_step=4)
    copy(last, tmp_path / "best.ckpt")
    assert [torch.load(path, weights_only=True)["global_step"] for path in (kept, last)] == [3, 4]


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    last = write(tmp_path / "last.ckpt")
    copy(last, tmp_path / "best.ckpt")
    assert (tmp_path / "best.ckpt").read_bytes() == last.read_bytes()


def test_sharded_checkpoints_are_replaced_too(tmp_path: Path) -> None:
    last, previous = write_sharded(tmp_path / "last.ckpt", "old"), tmp_path / "previous.ckpt"
    for text in ("new", "newer"):
        copy(last, previous)
        move(write_sharded(tmp_path / "next.ckpt", text), last)
    assert [(path / "name").read_text() for path in (last, previous)] == ["newer", "new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert fault(last) is None
    (last / ".metadata").unlink()
    assert fault(last) == ".metadata is missing in it"


def test_a_kill_leaves_no_partial_sharded_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = write_sharded(tmp_path / "last.ckpt", "old")
    following = write_sharded(tmp_path / "next.ckpt", "new")
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            move(following, last)
    assert fault(last) is None and (last / "name").read_text() == "new"
    with monkeypatch.context() as killed:
        killed.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):  # the moment at which neither has the name
            move(write_sharded(tmp_path / "next.ckpt", "newest"), last)
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            move(tmp_path / "next.ckpt", last)
    assert fault(last) is None, "the old one was deleted before the new one had its name"
    move(write_sharded(tmp_path / "next.ckpt", "newer"), last)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("seed", range(40))
def test_damage_of_the_directory_is_described_or_harmless(seed: int, tmp_path: Path) -> None:
    path = write(tmp_path / "last.ckpt")
    damaged, chance = bytearray(path.read_bytes()), random.Random(seed)
    tail = len(damaged) - chance.randrange(1, 600)  # the directory of the archive
    damaged[tail] ^= 1 << chance.randrange(8)
    path.write_bytes(damaged)
    if fault(path) is None:  # a bit that nothing reads, as of a date
        found = torch.load(path, weights_only=True)
        assert found["global_step"] == 3 and torch.equal(found["weight"], STATE["weight"])


def test_damage_of_a_checkpoint_is_described(tmp_path: Path) -> None:
    path = write(tmp_path / "last.ckpt")
    whole = path.read_bytes()
    assert fault(path) is None
    for length in (0, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert fault(path) == "it is cut short, or no checkpoint"
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1  # one bit of the weights, which torch loads silently
    path.write_bytes(changed)
    assert "the checksum of its part" in (fault(path) or "")


def test_a_sharded_checkpoint_without_one_part_is_damaged(tmp_path: Path) -> None:
    last = write_sharded(tmp_path / "last.ckpt")
    assert fault(last) is None
    part = next(last.glob("*.distcp"))
    with part.open("r+b") as file:
        file.truncate(part.stat().st_size // 2)
    assert fault(last) == f"{part.name} is cut short in it"
    part.unlink()
    assert fault(last) == f"{part.name} is missing in it"


def contents(archive: bytes, start: int = 0) -> list[range]:
    """Places of the records of a file of torch, without headers and the padding that aligns them."""
    found = []
    for record in zipfile.ZipFile(io.BytesIO(archive)).infolist():
        name, extra = struct.unpack_from("<HH", archive, record.header_offset + 26)
        first = start + record.header_offset + 30 + name + extra
        found.append(range(first, first + record.file_size))
    return found


def test_damage_of_any_part_of_a_sharded_checkpoint_is_described(tmp_path: Path) -> None:
    last = write_sharded(tmp_path / "last.ckpt")
    seal(last)
    assert fault(last) is None
    (part,), index, meta = last.glob("*.distcp"), last / ".metadata", last / "meta.pt"
    values = [(place.offset, place.length) for place in pickle.loads(index.read_bytes()).storage_data.values()]
    written = part.read_bytes()
    records = {
        index: [range(index.stat().st_size)],
        meta: contents(meta.read_bytes()),
        part: [one for start, length in values for one in contents(written[start : start + length], start)],
    }
    assert len(records[part]) > 5 * len(values) > 20
    for file, ranges in records.items():
        whole = file.read_bytes()
        for places in filter(None, ranges):
            for place in (places[0], places[len(places) // 2], places[-1]):
                damaged = bytearray(whole)
                damaged[place] ^= 2
                file.write_bytes(damaged)
                assert fault(last) is not None, (file.name, place)
        file.write_bytes(whole)
    assert fault(last) is None
    content = bytearray(written)
    content[content.index(STATE["weight"].bfloat16().view(torch.uint8).numpy().tobytes()) + 99] ^= 1
    part.write_bytes(content)
    assert f"in {part.name}, of state_dict.weight" in (fault(last) or "")


def test_an_index_that_nests_a_value_elsewhere_is_described(tmp_path: Path) -> None:
    """No key that other lists hold changes, so torch would miss the value while it loads."""
    last = write_sharded(tmp_path / "last.ckpt")
    index = pickle.loads((last / ".metadata").read_bytes())
    *above, _ = index.planner_data["state_dict.weight"]
    index.planner_data["state_dict.weight"] = (*above, "other")
    (last / ".metadata").write_bytes(pickle.dumps(index))
    assert fault(last) == "its .metadata is damaged: it nests state_dict.weight as state_dict.other"


class RunsCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_checkpoint_that_runs_code_is_rejected(tmp_path: Path) -> None:
    torch.save({"state_dict": RunsCode(tmp_path / "ran")}, tmp_path / "last.ckpt")
    assert "it names posix.mkdir, and to read it could run code" in (fault(tmp_path / "last.ckpt") or "")
    assert not (tmp_path / "ran").exists()


def test_an_index_of_shards_that_runs_code_is_rejected(tmp_path: Path) -> None:
    """torch itself unpickles the index, and every value that is no tensor."""
    last = write_sharded(tmp_path / "last.ckpt")
    index = (last / ".metadata").read_bytes()
    (last / ".metadata").write_bytes(pickle.dumps(RunsCode(tmp_path / "ran")))
    assert "it names posix.mkdir" in (fault(last) or "")
    (last / ".metadata").write_bytes(b"ctorch.distributed.checkpoint.filesystem\nos.mkdir\n(V" + b"ran\ntR.")
    assert "filesystem.os.mkdir" in (fault(last) or "")
    (last / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    assert "its .metadata is damaged" in (fault(last) or "")
    (last / ".metadata").write_bytes(index)
    assert fault(last) is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sharded.save({"lr": RunsCode(tmp_path / "ran")}, checkpoint_id=last, no_dist=True)
    assert "it names posix.mkdir" in (fault(last) or "")
    assert not (tmp_path / "ran").exists()


def test_candidates_come_newest_first(tmp_path: Path) -> None:
    for name in (
        "best.ckpt",
        "previous.ckpt",
        "step_9.ckpt",
        "step_10.ckpt",
        "last.ckpt",
        "next.ckpt",
        "x.ckpt.partial",
    ):
        (tmp_path / name).touch()
    names = [path.name for path in candidates(tmp_path)]
    assert names == ["last.ckpt", "previous.ckpt", "step_10.ckpt", "step_9.ckpt"]
    assert checkpoint_files.candidates(tmp_path / "missing") == []
