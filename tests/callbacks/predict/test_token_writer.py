"""Prediction writes a store that depends neither on kills nor on the number of ranks."""

import logging
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor

from artifacts.token_manifest import TokenStoreError
from artifacts.token_store import TokenStore
from artifacts.token_store_writer import TokenStoreWriter
from callbacks import TokenWriter
from datamodules import ImageDataModule, Views
from polytoken.specs import TokenSpec
from tests.datamodules.memory import MemoryRecords, MemorySource, quiet_trainer
from tests.support.ranks import two_ranks

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Grey(pl.LightningModule):
    """Four codes per image, from brightness and redness of its quarters, which are its latents."""

    spec: TokenSpec | None = TokenSpec((256, 200), ((2, 2),))
    latent_shape = (2, 2, 2)
    fingerprint = "ab" * 32
    tokenizer_run = "runs/grey"

    def __init__(self, fail_after: int = -1) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.fail_after = fail_after
        self.images_seen = 0

    def predict_step(self, batch: dict[str, Tensor], batch_index: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        if self.images_seen == self.fail_after:
            raise KeyboardInterrupt
        images = batch["image"]
        self.images_seen += len(images)
        quarters = torch.nn.functional.adaptive_avg_pool2d(images.flatten(0, 1), 2)
        latents = torch.stack([quarters.mean(1), quarters[:, 0]], 1).unflatten(0, images.shape[:2])
        codes = ((latents.flatten(3) + 1) * torch.tensor([[127.0], [99.0]])).long()
        return {"latents": latents, "codes": codes, "label": batch["label"], "index": batch["index"]}


class Continuous(Grey):
    """The same without codes."""

    spec = None

    def predict_step(self, *arguments: Any, **named: Any) -> dict[str, Tensor]:
        prediction = super().predict_step(*arguments, **named)
        return {name: value for name, value in prediction.items() if name != "codes"}


def data(views: Views | None = None, bad: tuple[int, ...] = (), **arguments: object) -> ImageDataModule:
    settings = {"image_size": 8, "batch_size": 2, "num_workers": 0, "max_bad_fraction": 0.5}
    views = views or Views("ten_crop", flip=True, enlargements=(1.25,))
    return ImageDataModule(MemorySource(bad=bad), views=views, **(settings | arguments))


def predict(root: Path, module: Grey | None = None, source: ImageDataModule | None = None, **arguments: object) -> Grey:
    module = module or Grey()
    trainer = quiet_trainer(callbacks=[TokenWriter(str(root), images_per_shard=4)], **arguments)
    trainer.predict(module, source or data(), return_predictions=False)
    return module


def content(root: Path) -> dict[str, list]:
    """Content and statistics of a store; checks its files against the manifest."""
    found = {}
    for split in ("train", "validation"):
        store = TokenStore.open(root / split, verify=True)
        rows = range(len(store))
        found[split] = [
            [store.index(row), store.label(row), *(store.tokens(row, view).tolist() for view in range(store.num_views))]
            for row in rows
        ]
        found[f"{split} latents"] = [store.latents]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    predict(root)
    return root


def test_the_store_holds_the_codes_of_all_views_of_all_images(whole: Path) -> None:
    held = content(whole)
    assert [row[0] for row in held["train"]] == list(range(22))
    assert [row[0] for row in held["validation"]] == list(range(7))
    assert {len(row) for row in held["train"]} == {12} and {len(row) for row in held["validation"]} == {3}
    source, module = data(), Grey()
    for split in ("train", "validation"):
        dataset = source.views_dataset(split)
        for index, label, *codes in held[split]:
            example = dataset[(0, index)]
            batch = {"image": example.image[None], "label": torch.tensor([0]), "index": torch.tensor([0])}
            assert codes == module.predict_step(batch, 0)["codes"][0].tolist()
            assert label == example.label == index % 2
    manifest = TokenStore.open(whole / "train").plan
    assert manifest.views[0] == "centre of 1.25" and len(manifest.views) == 10
    assert manifest.tokenizer_fingerprint == "ab" * 32 and manifest.image_size == 8


def test_the_message_counts_the_images_of_the_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        predict(tmp_path, source=data(bad=(3, 7)))
    said = [record.message for record in caplog.records if record.message.startswith("tokens: ")]
    assert [re.findall(r"(\d+) images", line) for line in said] == [["20"], ["7"]]


def expected_latents(split: str) -> np.ndarray:
    """Latents (n, V, 2, 2, 2) of a split."""
    dataset, module = data().views_dataset(split), Grey()
    one = {"label": torch.tensor([0]), "index": torch.tensor([0])}
    images = (dataset[(0, index)].image for index in range(len(dataset)))
    return np.concatenate([module.predict_step({"image": image[None], **one}, 0)["latents"] for image in images])


def test_the_manifest_describes_the_latents_of_all_views(whole: Path) -> None:
    for split in ("train", "validation"):
        latents = expected_latents(split).astype(np.float64)
        spec = TokenStore.open(whole / split).latents
        assert spec is not None and (spec.channels, spec.grid) == (2, (2, 2))
        np.testing.assert_allclose(spec.mean, latents.mean((0, 1, 3, 4)), rtol=1e-9)
        np.testing.assert_allclose(spec.deviation, latents.std((0, 1, 3, 4)), rtol=1e-9)


def test_latents_of_a_tokenizer_without_codes_are_stored(whole: Path, tmp_path: Path) -> None:
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        predict(tmp_path, Continuous(fail_after=10))
    assert predict(tmp_path, Continuous()).images_seen == 29 - 8, "complete shards are not computed again"
    for split in ("train", "validation"):
        store = TokenStore.open(tmp_path / split, verify=True)
        read = np.stack([[store.tokens(row, view) for view in range(store.num_views)] for row in range(len(store))])
        np.testing.assert_array_equal(read, expected_latents(split).astype(np.float16))
        assert store.latents == TokenStore.open(whole / split).latents


@pytest.mark.parametrize("wrong", [float("nan"), 1e5])
def test_latents_that_float16_cannot_hold_are_rejected(tmp_path: Path, wrong: float) -> None:
    class Far(Continuous):
        def predict_step(self, *arguments: Any, **named: Any) -> dict[str, Tensor]:
            prediction = super().predict_step(*arguments, **named)
            return {**prediction, "latents": prediction["latents"] * wrong + wrong}

    with pytest.raises(TokenStoreError, match=r"a batch for .*train: a latent is \S+, and float16 holds finite"):
        predict(tmp_path, Far())


@pytest.mark.parametrize("after", [2, 10, 22, 24])
def test_a_killed_prediction_resumes_to_the_same_store(whole: Path, tmp_path: Path, after: int) -> None:
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        predict(tmp_path, Grey(fail_after=after))
    for split in ("train", "validation"):
        with pytest.raises(FileNotFoundError, match="was never finished"):
            TokenStore.open(tmp_path / split)
    again = predict(tmp_path)
    assert again.images_seen == 29 - (after // 4 * 4 if after < 22 else 22), "complete shards are not computed again"
    assert content(tmp_path) == content(whole)
    assert [shard.sha256 for shard in TokenStore.open(tmp_path / "train").shards] == [
        shard.sha256 for shard in TokenStore.open(whole / "train").shards
    ]


def test_a_whole_store_is_not_computed_again(whole: Path) -> None:
    before = (whole / "train/manifest.json").stat().st_mtime_ns
    assert predict(whole).images_seen == 0
    assert (whole / "train/manifest.json").stat().st_mtime_ns == before


def test_tokens_of_other_images_are_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        predict(tmp_path, Grey(fail_after=10))
    monkeypatch.setattr(MemoryRecords, "digest", lambda records: "other images, of the same number and classes")
    assert predict(tmp_path).images_seen == 29, "no shard of the first images is kept"
    monkeypatch.undo()
    assert predict(tmp_path).images_seen == 29


def test_unreadable_images_leave_no_gap(whole: Path, tmp_path: Path) -> None:
    predict(tmp_path, source=data(bad=(3, 4, 21)))
    expected = [row for row in content(whole)["train"] if row[0] not in (3, 4, 21)]
    assert content(tmp_path)["train"] == expected


def test_data_workers_do_not_change_the_store(whole: Path, tmp_path: Path) -> None:
    predict(tmp_path, source=data(num_workers=2))
    assert content(tmp_path) == content(whole)


@pytest.mark.cluster
def test_two_ranks_write_the_store_of_one(whole: Path, tmp_path: Path) -> None:
    """Nine shards on two ranks; a second attempt has nothing to write."""
    predict(tmp_path, **two_ranks())
    assert content(tmp_path) == content(whole)


def test_codes_are_collected_in_the_type_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard of ImageNet's ten crops takes 84 MB as uint16, and four times as much as int64."""
    write, held = TokenStoreWriter.write, []

    def watched(self: TokenStoreWriter, shard: int, indices: Any, labels: Any, codes: np.ndarray, moments: Any) -> None:
        held.append(codes.dtype)
        write(self, shard, indices, labels, codes, moments)

    monkeypatch.setattr(TokenStoreWriter, "write", watched)
    predict(tmp_path)
    assert len(held) == 8 and set(held) == {np.dtype(np.uint16)}


def test_codes_out_of_range_are_rejected_before_they_wrap(tmp_path: Path) -> None:
    class Far(Grey):
        def predict_step(self, *arguments: Any, **named: Any) -> dict[str, Tensor]:
            prediction = super().predict_step(*arguments, **named)
            return {**prediction, "codes": prediction["codes"] + 65536}

    with pytest.raises(TokenStoreError, match=r"train: code 65\d+ in codebook 0, which has codes 0 to 255"):
        predict(tmp_path, Far())


def test_part_of_the_batches_leaves_the_store_unfinished(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train.partial lacks 5 of 6 shards, the first being 1: run the same"):
        predict(tmp_path, limit_predict_batches=3)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (lambda: ImageDataModule(MemorySource(), 8, 2, num_workers=0), "set data.views"),
        (lambda: data(batch_size=3), "images_per_shard=4 is not a multiple of the batch size of prediction, 3"),
    ],
)
def test_unsuitable_data_is_rejected(tmp_path: Path, source, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        predict(tmp_path, source=source())


def test_predictions_kept_in_memory_are_rejected(tmp_path: Path) -> None:
    trainer = quiet_trainer(callbacks=[TokenWriter(str(tmp_path), images_per_shard=4)])
    with pytest.raises(ValueError, match="set return_predictions to false"):
        trainer.predict(Grey(), data())
