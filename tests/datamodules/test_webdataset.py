"""Tar shards: any order without copies, exact resuming, an index that is cached, and damaged archives."""

import bz2
import gzip
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from datamodules import FolderSource, ImageDataModule, WebDatasetSource
from datamodules.sources import tar_index
from datamodules.sources.webdataset import OpenFiles, TarRecords, split_of
from polytoken.errors import MissingFileError, UserError
from tests.datamodules.test_resume import fit

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/polytoken/tar_index"


def jpeg(shade: int, kind: str = "JPEG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (12, 10), (shade, shade, shade)).save(content, kind)
    return content.getvalue()


def pack(path: Path, members: dict[str, bytes], style: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=style) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def samples(first: int, count: int, classes: int = 2) -> dict[str, bytes]:
    """Members of images 3 grey levels apart, with their classes."""
    members = {}
    for index in range(first, first + count):
        members[f"{index:04d}.jpg"] = jpeg(3 * index)
        members[f"{index:04d}.cls"] = b"%d\n" % (index % classes)
    return members


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """22 training images in three shards, and 6 for validation."""
    for shard, (first, count) in enumerate([(0, 8), (8, 8), (16, 6)]):
        pack(tmp_path / f"shards/made-train-{shard:04d}.tar", samples(first, count))
    pack(tmp_path / "shards/made-validation-0000.tar", samples(30, 6))
    return tmp_path / "shards"


TRAIN = [f"made-train-{shard:04d}.tar" for shard in range(3)]


def shades(records: TarRecords) -> list[int]:
    return [round(np.asarray(records.load(index)).mean() / 3) for index in range(len(records))]


def test_images_are_read_in_any_order_with_their_classes(shards: Path) -> None:
    source = WebDatasetSource(str(shards))
    train, validation = source.split("train"), source.split("validation")
    assert source.class_to_idx == {"0": 0, "1": 1}
    assert shades(train) == list(range(22)) and shades(validation) == list(range(30, 36))
    assert round(np.asarray(train.load(17)).mean() / 3) == 17
    assert [train.label(index) for index in range(22)] == [index % 2 for index in range(22)]
    assert train.describe(8) == f"{shards}/made-train-0001.tar: 0008.jpg"
    assert shades(pickle.loads(pickle.dumps(train))) == list(range(22)), "a spawned worker opens the files itself"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_resumes_at_the_next_image(shards: Path, tmp_path: Path, num_workers: int) -> None:
    def data(workers: int) -> ImageDataModule:
        return ImageDataModule(WebDatasetSource(str(shards)), 8, batch_size=4, num_workers=workers, seed=3)

    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(data(0), max_steps=8, enable_checkpointing=True, callbacks=[every])
    for step in (3, 5) if num_workers else (1, 7):
        assert fit(data(num_workers), tmp_path / f"step={step}.ckpt", max_steps=8) == whole[step:]


def test_order_and_pixels_are_those_of_a_folder(shards: Path, tmp_path: Path) -> None:
    for index in range(22):
        file = tmp_path / "tree/train" / f"{index:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(3 * index))
    of_tars, of_files = (
        list(ImageDataModule(source, 8, batch_size=4, num_workers=0).train_dataloader())
        for source in (WebDatasetSource(str(shards)), FolderSource(str(tmp_path / "tree")))
    )
    for one, other in zip(of_tars, of_files, strict=True):
        assert torch.equal(one["index"], other["index"]) and torch.equal(one["image"], other["image"])


def test_other_or_moved_shards(shards: Path) -> None:
    digest = WebDatasetSource(str(shards)).split("train").digest()
    moved = shards.rename(shards.with_name("moved"))
    assert WebDatasetSource(str(moved)).split("train").digest() == digest
    pack(moved / "made-train-0002.tar", samples(16, 5) | {"0021.jpg": jpeg(63), "0021.cls": b"0"})
    assert WebDatasetSource(str(moved)).split("train").digest() != digest


def test_the_index_is_read_again_only_if_the_shard_has_changed(
    shards: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WebDatasetSource(str(shards)).prepare()
    assert len(list(cache.iterdir())) == 4 and {path.suffix for path in shards.iterdir()} == {".tar"}
    scanned: list[str] = []
    scan = tar_index.scan
    monkeypatch.setattr(tar_index, "scan", lambda shard: scanned.append(shard.name) or scan(shard))
    assert shades(WebDatasetSource(str(shards)).split("train")) == list(range(22))
    assert not scanned
    pack(shards / "made-train-0001.tar", samples(9, 8))
    assert shades(WebDatasetSource(str(shards)).split("train"))[8] == 9
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:300])
    assert len(WebDatasetSource(str(shards)).split("train")) == 22
    assert scanned[0] == TRAIN[1] and sorted(scanned[1:]) == TRAIN


def test_without_a_place_for_the_index_shards_are_read(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert shades(WebDatasetSource(str(shards)).split("train")) == list(range(22))


def test_files_stay_open_up_to_a_limit(shards: Path) -> None:
    files = OpenFiles()
    files._limit = 2
    paths = [str(path) for path in sorted(shards.iterdir())]
    for path in (paths[0], paths[1], paths[0], paths[2]):
        assert os.pread(files[path], 4, 0)
    assert list(files._open) == [paths[0], paths[2]]


@pytest.mark.parametrize(
    ("shard", "split"),
    [
        ("imagenet1k-train-0000.tar", "train"),
        ("val/0001.tar", "validation"),
        ("imagenet1k-validation-63.tar", "validation"),
        ("training_set/val_0.tar", "validation"),
        ("retrained-0.tar", None),
    ],
)
def test_splits_are_named_by_words(shard: str, split: str | None) -> None:
    assert split_of(shard) == split


def test_folders_of_splits_and_shards_without_a_split(tmp_path: Path) -> None:
    pack(tmp_path / "a/train/0.tar", samples(0, 4))
    with pytest.raises(
        MissingFileError, match=r"a has no validation shards among 1 others, such as train/0.tar: .*0.05"
    ):
        WebDatasetSource(str(tmp_path / "a")).split("validation")
    pack(tmp_path / "a/val/0.tar", samples(4, 2))
    assert len(WebDatasetSource(str(tmp_path / "a")).split("validation")) == 2
    pack(tmp_path / "b/0.tar", samples(0, 20))
    with pytest.raises(MissingFileError, match="b has no train shards among 1 others, such as 0.tar: name them as in"):
        WebDatasetSource(str(tmp_path / "b")).split("train")
    parts = [WebDatasetSource(str(tmp_path / "b"), held_out=0.2).split(name) for name in ("train", "validation")]
    assert (
        sorted(shade for records in parts for shade in map(records.label, range(len(records)))) == [0] * 10 + [1] * 10
    )
    with pytest.raises(MissingFileError, match="nowhere is not a folder"):
        WebDatasetSource(str(tmp_path / "nowhere")).split("train")
    with pytest.raises(UserError, match=r"b holds tar shards: name datamodules.WebDatasetSource as its source"):
        FolderSource(str(tmp_path / "b")).split("train")


@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_folders_other_members_and_labels_in_json(tmp_path: Path, style: int) -> None:
    long = f"./{'deep/' * 18}ünïcode"
    path = pack(
        tmp_path / "train.tar",
        {
            f"{long}.jpg": jpeg(9),
            f"{long}.json": b'{"label": 2, "filename": "x"}',
            "a/._0.jpg": b"what macOS leaves behind",
            "0.txt": b"a caption",
            "0.json": b'{"label": 2}',
            "0.PNG": jpeg(30, "PNG"),
            "0.cls": b"1",
        },
        style,
    )
    with tarfile.open(path, "a") as archive:
        archive.add(tmp_path, "folder.jpg", recursive=False)
    records = WebDatasetSource(str(tmp_path)).split("train")
    assert shades(records) == [3, 10] and records.labels.tolist() == [2, 1]
    assert records.describe(0).endswith("ünïcode.jpg")


def test_labels_that_are_missing_or_no_classes(tmp_path: Path) -> None:
    texts = [("cls", text) for text in (b"cat", b"-1", b"", b"\xff", b"1.5", b"9" * 20)]
    for number, (extension, content) in enumerate([*texts, ("json", b'{"label": %d}' % 10**20)]):
        members = {"0.jpg": jpeg(0), "0.cls": b"0", "1.jpg": jpeg(1), f"1.{extension}": content}
        root = pack(tmp_path / f"{number}/train.tar", members).parent
        with pytest.raises(
            UserError, match=r"train.tar: 1.jpg has no label \(1 such images\): pack .* labelled to fal"
        ):
            WebDatasetSource(str(root)).split("train")
        source = WebDatasetSource(str(root), labelled=False)
        assert source.split("train").labels.tolist() == [0, 0] and source.class_to_idx == {"all": 0}
    pack(tmp_path / "many/train.tar", {"0.jpg": jpeg(0), "0.cls": b"1000000000"})
    with pytest.raises(UserError, match="many has the label 1000000000: classes are numbered from 0"):
        WebDatasetSource(str(tmp_path / "many")).split("train")
    pack(tmp_path / "two/train.tar", samples(0, 4))
    pack(tmp_path / "two/val.tar", samples(0, 4, 3))
    with pytest.raises(UserError, match="val.tar: 0002.jpg is of class 2, and the training shards have classes 0 to 1"):
        WebDatasetSource(str(tmp_path / "two")).split("validation")


def linked(path: Path) -> None:
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("linked.jpg")
        member.type, member.linkname = tarfile.LNKTYPE, "0000.jpg"
        archive.addfile(member)


def appended(name: str) -> Callable[[Path], None]:
    def append(path: Path) -> None:
        with tarfile.open(path, "a") as archive:
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"123"))

    return append


def overwritten(place: int, content: bytes) -> Callable[[Path], None]:
    def overwrite(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(place)
            file.write(content)

    return overwrite


def negative_size(path: Path) -> None:
    """A member whose size leads tarfile back to its own header."""
    content = bytearray(path.read_bytes())
    member = tarfile.TarInfo("0000.jpg")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (256**12 - 1024).to_bytes(12, "big")
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    path.write_bytes(bytes(header) + content[512:])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(gzip.compress(path.read_bytes())), "is compressed, .* with gunzip to a plain"),
        (lambda path: path.write_bytes(bz2.compress(path.read_bytes())), "is compressed, .* with bunzip2 to a plain"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:700]),
            "is truncated or no tar file .*: copy or pack it again",
        ),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "is truncated or no tar file"),
        (lambda path: path.write_bytes(path.read_bytes()[:4096]), r"truncated .*it has no mark of its end"),
        (lambda path: path.write_bytes(b""), "is truncated or no tar file .empty file"),
        (lambda path: path.write_bytes(b"<html>not found</html>" * 99), "is truncated or no tar file"),
        (lambda path: path.write_bytes(b"\0" * 10240), "train.tar holds no images"),
        (overwritten(1536 + 20, b"x"), r"is truncated .*a header is damaged"),
        (negative_size, "is truncated or no tar file"),
        (linked, "linked.jpg is a link or a sparse file, .*--hard-dereference"),
        (appended("0001.jpg"), "train.tar holds 0001.jpg twice: pack the shard again"),
        (appended("0001.png"), "holds two images of one key, 0001.jpg and 0001.png"),
        (lambda path: (path.unlink(), path.symlink_to("nowhere")), "train.tar cannot be read .No such file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "train.tar is no regular file: remove it"),
        (lambda path: path.rename(path.with_name("train.tar.gz")), "train.tar.gz is compressed, .* as with gunzip"),
    ],
)
def test_damaged_shards_are_one_sentence(tmp_path: Path, damage: Callable[[Path], object], said: str) -> None:
    path = pack(tmp_path / "root/train.tar", samples(0, 4))
    damage(path)
    with pytest.raises(UserError, match=said) as error:
        WebDatasetSource(str(tmp_path / "root")).split("train")
    assert "\n" not in str(error.value)


def test_a_damaged_image_is_unreadable_and_its_shard_stays(shards: Path, tmp_path: Path) -> None:
    pack(tmp_path / "bad/train.tar", samples(0, 3) | {"0001.jpg": b"<html>", "0002.jpg": jpeg(6)[:200]})
    records = WebDatasetSource(str(tmp_path / "bad")).split("train")
    for index in (1, 2):
        with pytest.raises(OSError):
            records.load(index)
    with open(tmp_path / "bad/train.tar", "r+b") as file:
        file.truncate(512)
    with pytest.raises(OSError, match="was truncated since it was indexed"):
        records.load(0)
