"""A token store is complete or absent: attempts, exchanges, and tokens that are not written."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from artifacts.moments import Moments
from artifacts.token_manifest import TokenStoreError
from artifacts.token_store import TokenStore
from artifacts.token_store_writer import TokenStoreWriter
from polytoken.errors import RunError, UserError
from tests.support.token_store import (
    LATENTS,
    assert_holds,
    codes_of,
    plan_of,
    write_shard,
    write_store,
)


@pytest.mark.parametrize("wrong", [float("nan"), float("-inf"), 65600.0])
def test_latents_beyond_float16_are_not_written(tmp_path: Path, wrong: float) -> None:
    plan = plan_of("train", **LATENTS)
    writer = TokenStoreWriter(tmp_path / "train", plan)
    writer.begin()
    latents = np.zeros((8, 3, *plan.latent_shape), np.float32)
    latents[5, 1, 2, 1, 0] = wrong
    with pytest.raises(TokenStoreError, match=f"shard 0 of .*: a latent is {wrong}, and float16 holds .* up to 65,504"):
        writer.write(0, np.arange(8), np.zeros(8, int), latents, Moments.of(latents))
    latents[5, 1, 2, 1, 0] = 65504
    writer.write(0, np.arange(8), np.zeros(8, int), latents, Moments.of(latents))
    with pytest.raises(TokenStoreError, match=r"latents of shape \(3, 4, 3, 2\) \(views, channels, height, width\)"):
        writer.write(0, np.arange(8), np.zeros(8, int), latents.swapaxes(3, 4))


def test_a_second_attempt_writes_the_missing_shards(tmp_path: Path) -> None:
    plan = plan_of("train")
    first = TokenStoreWriter(tmp_path / "train", plan)
    first.begin()
    write_shard(first, 1)
    (first.partial / "shard_00002.arrow.partial").write_bytes(b"cut off")  # as a kill leaves it
    written = (first.partial / "shard_00001.arrow").stat().st_mtime_ns
    with pytest.raises(FileNotFoundError, match="train was never finished: run the same predict command again"):
        TokenStore.open(tmp_path / "train")
    with pytest.raises(TokenStoreError, match="lacks 2 of 3 shards, the first being 0"):
        first.finish()

    second = TokenStoreWriter(tmp_path / "train", plan)
    second.begin()
    assert second.missing() == [0, 2]
    for shard in second.missing():
        write_shard(second, shard)
    second.finish()
    store = TokenStore.open(tmp_path / "train", verify=True)
    assert_holds(store, plan)
    assert (tmp_path / "train/shard_00001.arrow").stat().st_mtime_ns == written
    third = TokenStoreWriter(tmp_path / "train", plan)
    third.begin()
    assert third.missing() == [] and not third.partial.exists()


def test_a_shard_without_its_note_or_of_another_size_is_written_again(tmp_path: Path) -> None:
    writer = TokenStoreWriter(tmp_path / "train", plan_of("train"))
    writer.begin()
    for shard in range(3):
        write_shard(writer, shard)
    (writer.partial / "shard_00000.json").unlink()
    with (writer.partial / "shard_00001.arrow").open("ab") as file:
        file.write(b"x")
    assert writer.missing() == [0, 1]


def test_shards_of_another_tokenizer_are_not_reused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begun = TokenStoreWriter(tmp_path / "train", plan_of("train"))
    begun.begin()
    write_shard(begun, 0)
    other = TokenStoreWriter(tmp_path / "train", plan_of("train", tokenizer_fingerprint="f" * 64))
    other.begin()
    assert other.missing() == [0, 1, 2]
    assert "was begun with another tokenizer_fingerprint, 0123456789abcdef" in caplog.text


def test_a_store_of_other_images_is_written_again_and_it_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_store(tmp_path / "train", plan_of("train", source="a" * 64))
    same = TokenStoreWriter(tmp_path / "train", plan_of("train", source="a" * 64))
    same.begin()
    assert same.missing() == [] and not caplog.text
    other = TokenStoreWriter(tmp_path / "train", plan_of("train", source="b" * 64))
    other.begin()
    assert other.missing() == [0, 1, 2]
    assert "train was written with another source, aaaaaaaaaaaa" in caplog.text and "it is written again" in caplog.text


def test_a_store_that_does_not_name_its_images_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_store(tmp_path / "train", plan_of("train"))
    named = TokenStoreWriter(tmp_path / "train", plan_of("train", source="a" * 64))
    named.begin()
    named.finish()
    assert named.missing() == [] and not named.partial.exists() and not caplog.text
    assert TokenStore.open(tmp_path / "train").plan.source is None
    other = TokenStoreWriter(tmp_path / "train", plan_of("train", source="a" * 64, image_size=9))
    other.begin()
    assert other.missing() == [0, 1, 2] and "train was written with another image_size, 8, now 9" in caplog.text


def test_the_old_store_stays_until_the_new_one_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = plan_of("train")
    write_store(tmp_path / "train", old)
    new = plan_of("train", tokenizer_fingerprint="f" * 64)
    writer = TokenStoreWriter(tmp_path / "train", new)
    writer.begin()
    write_shard(writer, 0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("datasets.arrow_writer.ArrowWriter.write_table", full)
        with pytest.raises(RunError, match="No space left"):
            write_shard(writer, 1)
    assert_holds(TokenStore.open(tmp_path / "train", verify=True), old)
    assert writer.missing() == [1, 2]
    for shard in writer.missing():
        write_shard(writer, shard)
    assert TokenStore.open(tmp_path / "train").plan == old
    writer.finish()
    assert TokenStore.open(tmp_path / "train").plan == new
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_an_interrupted_exchange_is_completed(tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "train", plan_of("train"))
    new = plan_of("train", tokenizer_fingerprint="f" * 64)
    writer = TokenStoreWriter(tmp_path / "train", new)
    writer.begin()
    for shard in range(3):
        write_shard(writer, shard)
    replace = Path.replace

    def cut(self: Path, target: Path) -> Path:
        if moment == "before" and self == writer.path or moment == "between" and self == writer.partial:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as power:
        power.setattr(Path, "replace", cut)
        if moment == "after":
            power.setattr(shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            writer.finish()
    again = TokenStoreWriter(tmp_path / "train", new)
    again.begin()
    assert again.missing() == []
    assert_holds(TokenStore.open(tmp_path / "train"), new)


def test_an_interrupted_exchange_keeps_the_old_store_for_another_plan(tmp_path: Path) -> None:
    old = plan_of("train")
    store = write_store(tmp_path / "train", old)
    store.path.rename(tmp_path / "train.replaced")
    TokenStoreWriter(tmp_path / "train", plan_of("train", image_size=9)).begin()
    assert_holds(TokenStore.open(tmp_path / "train"), old)


def test_other_directories_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/holiday.jpg").touch()
    with pytest.raises(TokenStoreError, match="train exists and is not a token store: move it"):
        TokenStoreWriter(tmp_path / "train", plan_of("train")).begin()


@pytest.mark.parametrize(("code", "said"), [(12, "code 12 in codebook 1, which has codes 0 to 11"), (-1, "code -1")])
def test_codes_outside_their_codebook_are_not_written(tmp_path: Path, code: int, said: str) -> None:
    writer = TokenStoreWriter(tmp_path / "train", plan_of("train"))
    writer.begin()
    codes = np.zeros((8, 3, 2, 6), int)
    codes[5, 1, 1, 4] = code
    with pytest.raises(TokenStoreError, match=f"shard 0 of .*: {said}"):
        writer.write(0, np.arange(8), np.zeros(8, int), codes)


def test_codes_of_another_shape_or_shard_are_not_written(tmp_path: Path) -> None:
    writer = TokenStoreWriter(tmp_path / "train", plan_of("train"))
    writer.begin()
    with pytest.raises(TokenStoreError, match=r"shape \(3, 2, 9\).*says \(3, 2, 6\): is data.image_size \(8\)"):
        writer.write(0, np.arange(8), np.zeros(8, int), np.zeros((8, 3, 2, 9), int))
    with pytest.raises(TokenStoreError, match="shard 1 of .* is for images 8 to 15"):
        writer.write(1, np.arange(8), np.zeros(8, int), np.zeros((8, 3, 2, 6), int))


def test_labels_beyond_the_classes_are_not_written(tmp_path: Path) -> None:
    writer = TokenStoreWriter(tmp_path / "train", plan_of("train"))
    writer.begin()
    codes = np.stack([codes_of(writer.plan, image) for image in range(8)])
    with pytest.raises(TokenStoreError, match="has labels 0 to 7, and there are 2 classes"):
        writer.write(0, np.arange(8), np.arange(8), codes)


def test_codes_may_have_no_statistics_and_latents_may_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without moments, or with a channel that is constant, a store of codes still serves generators of codes."""
    for name, plan in (("codes", plan_of("train", 8)), ("latents", plan_of("train", 8, **LATENTS))):
        latents = np.zeros((8, 3, *plan.latent_shape), np.float32)
        tokens = latents if plan.spec is None else np.stack([codes_of(plan, image) for image in range(8)])
        for moments in (None, Moments.of(latents)):
            writer = TokenStoreWriter(tmp_path / f"{name}_{moments is None}/train", plan)
            writer.begin()
            writer.write(0, np.arange(8), np.zeros(8, int), tokens, moments)
            if name == "codes":
                writer.finish()
                assert TokenStore.open(writer.path).latents is None
            else:
                with pytest.raises(UserError, match="deviation 0" if moments else "has latents without moments"):
                    writer.finish()
    assert "serves generators of codes, and none of latents: channel 0 of the latents" in caplog.text
