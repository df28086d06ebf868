"""Mistakes that a data worker meets arrive as one sentence, without the worker's traceback."""

import logging
import os
import signal
from pathlib import Path

import pytest
from torch.utils.data import Dataset

from commands.preset import real_images
from datamodules import FolderSource, ImageDataModule
from datamodules.loader import name_killed, new_loader
from polytoken.errors import RunError, UserError
from tests.datamodules.memory import Diary, MemorySource, quiet_trainer
from tests.datamodules.test_listing import put

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Rows(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if index == 5:
            raise UserError("row 5 is broken: mend it")
        return index


class Deadly(Rows):
    def __getitem__(self, index: int) -> int:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_killed_worker_is_named_before_any_hook_and_once(caplog: pytest.LogCaptureFixture) -> None:
    loader = new_loader(Deadly(), None, 2, list, num_workers=2)
    with pytest.raises((RuntimeError, OSError, EOFError)) as raised:
        list(loader)
    name_killed([loader], raised.value)  # as the data module does later
    assert caplog.text.count("was ended by SIGKILL, which happens when memory runs out") == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_of_a_row_ends_the_iteration_with_its_own_words(num_workers: int) -> None:
    batches = iter(new_loader(Rows(), None, 2, list, num_workers))
    assert [next(batches), next(batches)] == [[0, 1], [2, 3]]
    with pytest.raises(UserError) as error:
        next(batches)
    assert str(error.value) == "row 5 is broken: mend it"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_validation_split_without_readable_images_is_one_sentence(num_workers: int) -> None:
    source = MemorySource(bad_validation=tuple(range(7)))
    data = ImageDataModule(source, 8, batch_size=4, num_workers=num_workers, max_bad_fraction=1)
    for read in (
        lambda: quiet_trainer().validate(Diary(), datamodule=data, verbose=False),
        lambda: list(real_images(data, "validation")),
    ):
        with pytest.raises(RunError, match="^None of the . images of a batch could be read, .*[^\n]*$") as error:
            read()
        assert "\n" not in str(error.value)


def test_programs_count_unreadable_images(caplog: pytest.LogCaptureFixture) -> None:
    data = ImageDataModule(MemorySource(bad_validation=(2,)), 8, num_workers=0, max_bad_fraction=0.2)
    with caplog.at_level(logging.WARNING):
        assert [batch["index"].tolist() for batch in real_images(data, "validation")] == [[0, 1, 3, 4, 5, 6]]
    assert "skips an unreadable validation image: memory/1/2.png" in caplog.text
    data = ImageDataModule(MemorySource(bad_validation=(2, 3)), 8, num_workers=0, max_bad_fraction=0.2)
    with pytest.raises(RunError, match="2 of 7 validation images cannot be read"):
        list(real_images(data, "validation"))


def test_a_class_with_one_image_trains_and_validates(tmp_path: Path) -> None:
    put(tmp_path / "train" / "cat" / "a.png", tmp_path / "val" / "cat" / "a.png")
    diary = Diary()
    data = ImageDataModule(FolderSource(str(tmp_path)), 8, batch_size=1, num_workers=0)
    quiet_trainer(max_steps=3).fit(diary, datamodule=data)
    assert [index for index, _ in diary.batches] == [(0,)] * 3
    data = ImageDataModule(FolderSource(str(tmp_path)), 8, batch_size=2, num_workers=0)
    with pytest.raises(UserError, match="1 image"):
        quiet_trainer(max_steps=3).fit(Diary(), datamodule=data)
