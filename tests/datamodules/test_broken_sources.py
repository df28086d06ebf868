"""Damaged data sets and names that no record can hold are one sentence."""

import os
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from datasets import Image as ImageFeature
from PIL import Image

from datamodules import FolderSource, HubSource
from datamodules.sources.hub import HubRecords
from polytoken.errors import UserError
from polytoken.images import UNREADABLE

RECORDS = ("dataset_dict.json", "train/state.json", "train/dataset_info.json")
BROKEN = {"empty": b"", "list": b"[1]", "half": b'{"splits": ["tra', "null": b"null", "latin-1": b'{"\xe9": 1}'}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = {"image": [str(tmp_path / "a.png")] * 2, "label": [0, 1]}
    table = Dataset.from_dict(rows).cast_column("image", ImageFeature())
    DatasetDict({"train": table, "validation": table}).save_to_disk(str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_damaged_records_of_a_data_set(saved: Path) -> None:
    assert len(HubSource(str(saved)).split("train")) == 2
    for file in (saved / name for name in RECORDS):
        whole = file.read_bytes()
        for content in BROKEN.values():
            file.write_bytes(content)
            with pytest.raises(UserError, match=f"the data set {saved} cannot be read"):
                HubSource(str(saved)).split("train")
        file.write_bytes(whole)


@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.99])
def test_a_cut_table(share: float, saved: Path) -> None:
    table = next((saved / "train").glob("*.arrow"))
    content = table.read_bytes()
    table.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match="cannot be read .(ArrowInvalid|OSError)"):
        HubSource(str(saved)).split("train")


def test_a_class_whose_name_is_not_unicode(tmp_path: Path) -> None:
    (tmp_path / "train" / os.fsdecode(b"\xff")).mkdir(parents=True)
    with pytest.raises(UserError, match=r"udcff' is a class whose name is not UTF-8: rename the folder"):
        FolderSource(str(tmp_path)).split("train")


def test_a_table_that_is_damaged_between_its_ends() -> None:
    """A flipped bit in the offsets of a mapped table makes pyarrow raise any class, SystemError too."""

    class Damaged:
        def __getitem__(self, index: int) -> dict:
            raise SystemError("Negative size passed to PyUnicode_New")

    found = HubRecords(Damaged(), "image", np.zeros(1, np.int64), "hub[train]")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"row 0 of hub\[train\] is damaged .SystemError"):
        found.load(0)
    assert found.describe(0) == "hub[train] row 0"


@pytest.mark.parametrize("image", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}])
def test_a_row_without_an_image_has_an_identity_and_cannot_be_read(image: dict | None) -> None:
    rows = [{"image": image}]
    found = HubRecords(rows, "image", np.zeros(1, np.int64), "hub[train]")  # type: ignore[arg-type]
    assert found.digest() == HubRecords([{"image": None}], "image", found.labels, "hub[train]").digest()  # type: ignore[arg-type]
    with pytest.raises(UNREADABLE):
        found.load(0)
