"""Images for a generator that reads tokens: the batches of ImageDataModule, described by a token store."""

import shutil
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules import ImageDataModule, OnlineTokenDataModule, TokenDataModule
from polytoken.errors import UserError
from tests.datamodules.memory import Diary, MemorySource, quiet_trainer
from tests.support.token_store import LATENTS, plan_of, write_store, write_stores

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SETTINGS = {"image_size": 8, "batch_size": 4, "num_workers": 0, "seed": 3}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_stores(tmp_path_factory.mktemp("tokens")))


def online(store: str | Path, **changes: object) -> OnlineTokenDataModule:
    return OnlineTokenDataModule(MemorySource(), str(store), **(SETTINGS | changes))


def fit(data: ImageDataModule, ckpt_path: Path | None = None, keep: Path | None = None) -> list:
    """The batches, as indices and digests of the pixels; checkpoints of all steps are kept in a folder."""
    diary = Diary()
    every = ModelCheckpoint(keep, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    saving = {"enable_checkpointing": True, "callbacks": [every]} if keep else {}
    trainer = quiet_trainer(max_steps=8, limit_val_batches=0, **saving)
    trainer.fit(diary, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return diary.batches


def test_batches_are_those_of_the_images_and_resume_exactly(store: str, tmp_path: Path) -> None:
    whole = fit(online(store), keep=tmp_path)
    assert whole == fit(ImageDataModule(MemorySource(), **SETTINGS)) and len(whole) == 8
    assert fit(online(store, num_workers=2), tmp_path / "step=3.ckpt") == whole[3:]


def test_attributes_are_those_of_the_store(store: str, tmp_path: Path) -> None:
    images, stored = online(store), TokenDataModule(store)
    for name in ("spec", "full_spec", "latents", "sub_codes", "num_classes", "class_to_idx", "tokenizer_run", "store"):
        assert getattr(images, name) == getattr(stored, name), name
    assert images.tokenizer_fingerprint == stored.tokenizer_fingerprint
    images = online(write_stores(tmp_path, **LATENTS))
    assert images.spec is None and images.sub_codes == [] and images.latents is not None


def test_images_must_be_those_of_the_store(store: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.image_size=16: .* is of images of 8 px, set it to 8"):
        online(store, image_size=16)
    other = write_stores(tmp_path, class_to_idx={"cat": 0, "dog": 1})
    with pytest.raises(UserError, match="data.source numbers 2 classes otherwise than .*, which has 2: name the data"):
        online(other).setup("fit")


def test_a_run_does_not_resume_with_another_tokenizer(store: str, tmp_path: Path) -> None:
    fit(online(store), keep=tmp_path)
    other = write_stores(tmp_path / "other", tokenizer_fingerprint="f" * 64)
    with pytest.raises(UserError, match="the one whose tokens this run was trained on"):
        fit(online(other), tmp_path / "step=3.ckpt")


def test_other_images_with_the_same_classes_are_noticed(store: str, tmp_path: Path) -> None:
    other = write_stores(tmp_path, num_images=21)
    with pytest.raises(UserError, match="data.source has 22 train images, and .* was written from 21: name the data"):
        online(other).setup("fit")


def test_as_many_other_images_are_noticed(tmp_path: Path) -> None:
    for split, count in (("train", 22), ("validation", 7)):
        write_store(tmp_path / split, plan_of(split, count, source=MemorySource().split(split).digest()))
    online(tmp_path).setup("fit")
    digest = MemorySource().split("validation").digest()
    shutil.rmtree(tmp_path / "validation")
    write_store(tmp_path / "validation", plan_of("validation", 7, source="0123456789abcdef"))
    said = (
        rf"the validation images of data.source have the digest {digest[:12]}, and .* from 0123456789ab: name the same"
    )
    with pytest.raises(UserError, match=said):
        online(tmp_path).setup("fit")


def test_batches_have_images(store: str) -> None:
    for name in ("batch_size", "validation_batch_size"):
        for size in (0, -1):
            with pytest.raises(UserError, match=f"{name} is {size}; it must be at least 1"):
                online(store, **{name: size})
    with pytest.raises(UserError, match="num_workers is -1; it must be from 0 to 256"):
        online(store, num_workers=-1)
