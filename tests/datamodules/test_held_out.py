"""A share of the training split for validation, of data sets that have one split."""

from pathlib import Path

import pytest

from datamodules import FolderSource, HubSource
from datamodules.sources.held_out import part
from polytoken.errors import UserError
from tests.datamodules.memory import MemoryRecords
from tests.datamodules.test_listing import put


def numbers(held_out: float, length: int = 200) -> tuple[set[int], set[int]]:
    records = MemoryRecords(length, 0, ())
    halves = (part(records, held_out, split, "memory") for split in ("train", "validation"))
    train, validation = ({int(row) for row in half.rows} for half in halves)
    return train, validation


def test_the_parts_are_disjoint_whole_and_of_about_the_share() -> None:
    train, validation = numbers(0.1)
    assert train | validation == set(range(200)) and not train & validation
    assert 10 <= len(validation) <= 30
    assert (train, validation) == numbers(0.1)


def test_more_images_or_a_larger_share_move_no_held_out_image() -> None:
    _, validation = numbers(0.1)
    assert validation == {row for row in numbers(0.1, 300)[1] if row < 200}
    assert validation < numbers(0.2)[1]


@pytest.mark.parametrize("held_out", [1.0, -0.1, float("nan")])
def test_a_share_out_of_range_is_refused(held_out: float) -> None:
    with pytest.raises(UserError, match=r"FolderSource: held_out is .*; it must be from 0 to below 1"):
        FolderSource("anywhere", held_out)


def test_a_folder_with_train_alone(tmp_path: Path) -> None:
    put(*(tmp_path / "train" / f"{name}/{index}.png" for name in ("cat", "dog") for index in range(20)))
    with pytest.raises(FileNotFoundError, match=r"has no val/ or validation/: .*, or set held_out \(0.05\)"):
        FolderSource(str(tmp_path)).split("validation")
    source = FolderSource(str(tmp_path), 0.25)
    halves = [source.split(split) for split in ("train", "validation")]
    places = [half.describe(index) for half in halves for index in range(len(half))]
    assert len(set(places)) == 40 and len(halves[1]) >= 3
    assert [half.label(0) for half in halves] == [
        source.class_to_idx[Path(half.describe(0)).parts[-2]] for half in halves
    ]
    assert halves[1].load(0).size == (9, 8)
    with pytest.raises(UserError, match="of the 40 training images of .* leaves one of the splits empty"):
        FolderSource(str(tmp_path), 1e-9).split("train")


def test_a_saved_data_set_with_one_split(tmp_path: Path) -> None:
    from tests.datamodules.test_sources import hub_table

    hub_table([0, 1, 2] * 8, 0).save_to_disk(str(tmp_path / "one"))
    with pytest.raises(UserError, match=r"holds a single split: .*, or set held_out \(0.05\)"):
        HubSource(str(tmp_path / "one")).split("train")
    source = HubSource(str(tmp_path / "one"), held_out=0.25)
    train, validation = source.split("train"), source.split("validation")
    assert len(train) + len(validation) == 24 and source.class_to_idx == {"cat": 0, "dog": 1, "eel": 2}
    assert train.digest() != validation.digest()
