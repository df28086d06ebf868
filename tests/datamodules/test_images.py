"""The data module in a real Trainer: batches, ranks, and images that cannot be read."""

import ast
import logging
import tarfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from jsonargparse import ArgumentParser
from PIL import Image

import datamodules
from datamodules import DigitsSource, FolderSource, HubSource, ImageDataModule, ImageSource, WebDatasetSource
from polytoken.errors import UserError
from tests.datamodules.memory import Diary, MemorySource, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def data(source: MemorySource, **arguments: object) -> ImageDataModule:
    defaults = {"image_size": 8, "batch_size": 4, "num_workers": 0}
    return ImageDataModule(source, **(defaults | arguments))


def test_batches_keep_the_contract() -> None:
    diary = Diary()
    quiet_trainer().validate(diary, datamodule=data(MemorySource()), verbose=False)
    assert [batch["index"].tolist() for batch in diary.evaluated] == [[0, 1, 2, 3], [4, 5, 6]]
    for batch in diary.evaluated:
        assert set(batch) == {"image", "label", "index"}
        assert batch["image"].dtype == torch.float32 and batch["image"].shape[1:] == (3, 8, 8)
        assert batch["label"].dtype == batch["index"].dtype == torch.int64
        assert batch["label"].tolist() == [index % 2 for index in batch["index"].tolist()]
        assert batch["image"].min() >= -1 and batch["image"].max() <= 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_test_and_predict_read_the_validation_split_in_order(num_workers: int) -> None:
    diary, trainer = Diary(), quiet_trainer()
    datamodule = data(MemorySource(), num_workers=num_workers, validation_batch_size=3)
    trainer.test(diary, datamodule=datamodule, verbose=False)
    assert torch.cat([batch["index"] for batch in diary.evaluated]).tolist() == list(range(7))
    assert torch.cat(trainer.predict(diary, datamodule=datamodule)).tolist() == list(range(7))


def test_two_ranks_see_the_pixels_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = list(data(MemorySource()).train_dataloader())
    shares = []
    for rank in range(2):
        datamodule = data(MemorySource(), batch_size=2)
        monkeypatch.setattr(datamodule, "_ranks", lambda rank=rank: (rank, 2))
        shares.append(list(datamodule.train_dataloader()))
    for whole, left, right in zip(alone, *shares, strict=True):
        for key in ("image", "label", "index"):
            assert torch.equal(whole[key], torch.cat([left[key], right[key]]))


def test_augmentation_is_a_function_of_seed_epoch_and_index() -> None:
    draws = [(0, 3), (0, 3), (1, 3)]
    first, again, next_epoch = (data(MemorySource()).dataset("train")[draw].image for draw in draws)
    assert torch.equal(first, again) and not torch.equal(first, next_epoch)
    assert not torch.equal(first, data(MemorySource(), seed=1).dataset("train")[0, 3].image)


def jpegs(root: Path) -> None:
    """Horizontal grey ramps, 12 times as large as the crops of 8 px."""
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 121).astype(np.uint8), (97, 1))).convert("RGB")
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        for index in range(4):
            ramp.save(root / split / f"{index}.jpg", quality=95)
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}.tar", "w") as archive:
            archive.add(root / split, "")


def saved(root: Path) -> HubSource:
    tables = {
        split: Dataset.from_dict({"image": sorted(map(str, (root / folder).iterdir()))})
        for split, folder in (("train", "train"), ("validation", "val"))
    }
    DatasetDict(tables).save_to_disk(str(root / "saved"))
    return HubSource(str(root / "saved"), label_column=None)


@pytest.mark.parametrize(
    "kind",
    [
        lambda root: FolderSource(str(root)),
        lambda root: FolderSource(str(root), held_out=0.5),
        lambda root: WebDatasetSource(str(root), labelled=False),
        saved,
    ],
)
def test_draft_reads_training_crops_from_reduced_jpegs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[Path], ImageSource]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jpegs(tmp_path)
    sizes: list[tuple[int, int]] = []
    monkeypatch.setattr("datamodules.transforms.to_rgb", lambda image: sizes.append(image.size) or image)
    whole, reduced = (data(kind(tmp_path), batch_size=1, draft=draft) for draft in (False, True))
    one, other = (module.dataset("train")[0, 0].image for module in (whole, reduced))
    assert sizes == [(121, 97), (16, 13)], "an eighth; its shorter side has at least the 10 px of the widest crop"
    assert one.shape == other.shape == (3, 8, 8) and not torch.equal(one, other)
    assert (one - other).abs().max() < 0.085, "a shift of half a pixel: a pixel of the ramp is a step of 0.17"
    one, other = (module.dataset("validation")[0, 0].image for module in (whole, reduced))
    assert torch.equal(one, other), "what is measured stays comparable"
    with pytest.raises(UserError, match="data.draft was False when the checkpoint was written, and is True"):
        reduced.load_state_dict(whole.state_dict())


def test_padding_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    datamodule = data(MemorySource())
    monkeypatch.setattr(datamodule, "_ranks", lambda: (1, 2))
    assert [batch["index"].tolist() for batch in datamodule.val_dataloader()] == [[1, 3, 5, -1]]


def test_lightnings_sampler_is_rejected_on_several_ranks() -> None:
    datamodule = data(MemorySource())
    datamodule.trainer = quiet_trainer(devices=2, strategy="ddp_spawn", use_distributed_sampler=True)
    with pytest.raises(ValueError, match="use_distributed_sampler=false"):
        datamodule.train_dataloader()


def test_overfit_batches_repeats_one_batch() -> None:
    diary = Diary()
    quiet_trainer(max_epochs=2, overfit_batches=1).fit(diary, datamodule=data(MemorySource()))
    assert diary.batches == [diary.batches[0]] * 2


def test_limited_epochs_continue_through_the_images() -> None:
    whole, limited = Diary(), Diary()
    quiet_trainer(max_steps=6, limit_val_batches=0).fit(whole, datamodule=data(MemorySource()))
    quiet_trainer(max_steps=6, limit_val_batches=0, limit_train_batches=2).fit(limited, datamodule=data(MemorySource()))
    assert limited.batches == whole.batches


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_training_images_are_replaced_and_reported_once(
    num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    diary = Diary()
    datamodule = data(MemorySource(bad=(5,)), num_workers=num_workers, max_bad_fraction=0.05)
    with caplog.at_level(logging.WARNING, logger="datamodules"):
        quiet_trainer(max_epochs=3, limit_val_batches=0).fit(diary, datamodule=datamodule)
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("datamodules")]
    assert messages == ["rank 0 skips an unreadable train image: memory/0/5.png (OSError: image file is truncated)"]
    assert [len(indices) for indices, _ in diary.batches] == [4] * 15
    assert all(5 not in indices for indices, _ in diary.batches)
    # only the row of the unreadable image has changed
    intact = Diary()
    quiet_trainer(max_epochs=3, limit_val_batches=0).fit(intact, datamodule=data(MemorySource()))
    for (with_bad, _), (without, _) in zip(diary.batches, intact.batches, strict=True):
        assert [a for a, b in zip(with_bad, without, strict=True) if b != 5] == [b for b in without if b != 5]


def test_unreadable_validation_images_are_left_out() -> None:
    diary = Diary()
    datamodule = data(MemorySource(bad_validation=(0, 5)), max_bad_fraction=0.3)
    quiet_trainer().validate(diary, datamodule=datamodule, verbose=False)
    assert [batch["index"].tolist() for batch in diary.evaluated] == [[1, 2, 3], [4, 6]]
    assert all(set(batch) == {"image", "label", "index"} for batch in diary.evaluated)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_unreadable_images_stop_the_run(num_workers: int) -> None:
    datamodule = data(MemorySource(bad=(3, 5)), num_workers=num_workers, max_bad_fraction=1.5 / 22)
    with pytest.raises(RuntimeError, match=r"2 of 22 train images cannot be read.*max_bad_fraction.*memory/0/[35]"):
        quiet_trainer(max_epochs=3, limit_val_batches=0).fit(Diary(), datamodule=datamodule)


@pytest.mark.parametrize(
    ("bad", "allowed", "ranks", "says"),
    [
        ((0, 2), 4, 2, None),
        ((0, 2, 6), 4, 2, "3 of about 4 validation images that rank 0 reads cannot be read"),
        ((0,), 1, 3, None),  # a single image says nothing about a small share
        ((0,), 0, 3, "1 of about 3 validation images that rank 0 reads cannot be read"),
    ],
)
def test_outside_of_training_the_limit_is_that_of_a_share(
    bad: tuple[int, ...], allowed: int, ranks: int, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    datamodule = data(MemorySource(bad_validation=bad), batch_size=8, max_bad_fraction=allowed / 7)
    monkeypatch.setattr(datamodule, "_ranks", lambda: (0, ranks))
    with pytest.raises(RuntimeError, match=says) if says else nullcontext():
        quiet_trainer().validate(Diary(), datamodule=datamodule, verbose=False)


def test_in_training_a_rank_meets_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    datamodule = data(MemorySource(bad=(3, 5)), batch_size=2, max_bad_fraction=2 / 22)
    monkeypatch.setattr(datamodule, "_ranks", lambda: (0, 8))
    quiet_trainer(max_epochs=40, limit_val_batches=0).fit(Diary(), datamodule=datamodule)
    assert datamodule._unreadable["train"] == {3, 5}


def test_a_batch_without_any_readable_image() -> None:
    datamodule = data(MemorySource(bad_validation=(4, 5, 6)), max_bad_fraction=1.0)
    with pytest.raises(RuntimeError, match=r"None of the 3 images.*memory/1/4.png"):
        quiet_trainer().validate(Diary(), datamodule=datamodule, verbose=False)


def test_an_error_of_the_code_is_not_an_unreadable_image(monkeypatch: pytest.MonkeyPatch) -> None:
    datamodule = data(MemorySource())
    monkeypatch.setattr(datamodule.dataset("train").records, "load", lambda index: None.size)
    with pytest.raises(AttributeError):
        datamodule.dataset("train")[0]


def test_a_config_names_the_source() -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(ImageDataModule, "data")
    config = parser.parse_object(
        {
            "data": {
                "class_path": "datamodules.ImageDataModule",
                "init_args": {
                    "source": {"class_path": "datamodules.DigitsSource", "init_args": {"size": 16}},
                    "image_size": 16,
                    "crop_fraction": [0.9, 1.0],
                    "num_workers": 0,
                },
            }
        }
    )
    datamodule = parser.instantiate(config).data
    assert isinstance(datamodule.source, DigitsSource)
    assert next(iter(datamodule.val_dataloader()))["image"].shape == (32, 3, 16, 16)


@pytest.mark.parametrize("arguments", [{"seed": -1}, {"max_bad_fraction": 1.5}, {"crop_fraction": (0.0, 1.0)}])
def test_invalid_arguments_are_rejected(arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        data(MemorySource(), **arguments)


def test_imports_are_cheap() -> None:
    heavy = {"datasets", "sklearn", "skimage", "torchvision"}
    for path in Path(datamodules.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:  # statements that run on import; functions may import anything
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not heavy & {name.split(".")[0] for name in names}, path
