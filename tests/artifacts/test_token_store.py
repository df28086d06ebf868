"""A token store of codes or latents is complete or absent, is read in place, and reports damage."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from artifacts.moments import Moments
from artifacts.token_manifest import StorePlan, TokenStoreError
from artifacts.token_store import TokenStore
from artifacts.token_store_writer import TokenStoreWriter
from polytoken import records
from polytoken.errors import RunError, UserError
from polytoken.specs import TokenSpec
from tests.support.token_store import (
    LATENTS,
    SPEC,
    plan_of,
    random_codes,
    random_latents,
    seal,
    write_shard,
    write_store,
)


def assert_holds(store: TokenStore, plan: StorePlan) -> None:
    assert len(store) == plan.num_images
    for row in range(len(store)):
        expected = random_codes(plan, row)
        for view in range(store.num_views):
            assert np.array_equal(store.tokens(row, view), expected[view]), (row, view)
        assert (store.label(row), store.index(row)) == (row % 2, row)


def test_a_store_round_trips(tmp_path: Path) -> None:
    plan = plan_of("train")
    store = write_store(tmp_path / "train", plan)
    assert_holds(store, plan)
    assert store.plan == plan and store.spec == SPEC and store.num_views == 3
    assert store.tokenizer_fingerprint == plan.tokenizer_fingerprint and store.tokenizer_run == plan.tokenizer_run
    assert [shard.rows for shard in store.shards] == [8, 8, 6]
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "manifest.json",
        "shard_00000.arrow",
        "shard_00001.arrow",
        "shard_00002.arrow",
        "train",
    ]
    TokenStore.open(tmp_path / "train", verify=True)


def test_codes_are_read_in_place(tmp_path: Path) -> None:
    """Opening and reading allocate no memory: a chunk is a view of the file."""
    store = write_store(tmp_path / "train", plan_of("train", 800, images_per_shard=400))
    before = pyarrow.total_allocated_bytes()
    store = TokenStore.open(tmp_path / "train")
    codes = store.tokens(577, 1)
    assert pyarrow.total_allocated_bytes() == before
    assert codes.dtype == np.uint16 and codes.base is not None and not codes.flags.writeable
    assert np.array_equal(codes, random_codes(store.plan, 577)[1])


def test_a_worker_maps_the_files_after_unpickling(tmp_path: Path) -> None:
    store = write_store(tmp_path / "train", plan_of("train", 800, images_per_shard=400))
    sent = pickle.dumps(store)
    assert len(sent) < 2000
    assert_holds(pickle.loads(sent), store.plan)


def test_large_codebooks_take_32_bits(tmp_path: Path) -> None:
    plan = plan_of("train", 8, spec=TokenSpec((2**17,), ((1, 2),)), views=("centre of 1",))
    writer = TokenStoreWriter(tmp_path / "train", plan)
    writer.begin()
    codes = np.full((8, 1, 1, 2), 2**17 - 1)
    writer.write(0, np.arange(8), np.zeros(8, int), codes)
    writer.finish()
    store = TokenStore.open(tmp_path / "train")
    assert store.tokens(3, 0).tolist() == [[2**17 - 1] * 2] and store.tokens(3, 0).dtype == np.uint32


def test_latents_round_trip_as_float16(tmp_path: Path) -> None:
    plan = plan_of("train", **LATENTS)
    store = write_store(tmp_path / "train", plan)
    expected = np.stack([random_latents(plan, image) for image in range(22)])
    for row in (0, 9, 21):
        for view in range(3):
            read = store.tokens(row, view)
            assert read.dtype == np.float16 and read.base is not None and not read.flags.writeable
            assert np.array_equal(read, expected[row, view].astype(np.float16))
    assert store.spec is None and store.plan.holds == "latents" and store.plan == plan
    assert_holds_latents_of(store, expected)
    TokenStore.open(tmp_path / "train", verify=True)
    assert pickle.loads(pickle.dumps(store)).latents == store.latents


def assert_holds_latents_of(store: TokenStore, latents: np.ndarray) -> None:
    """Mean and deviation of each channel, merged from the shards, are those of all images and views."""
    whole = latents.astype(np.float64).swapaxes(2, 0).reshape(latents.shape[2], -1)
    assert store.latents is not None
    assert (store.latents.channels, store.latents.grid) == (latents.shape[2], latents.shape[3:])
    np.testing.assert_allclose(store.latents.mean, whole.mean(1), rtol=1e-12)
    np.testing.assert_allclose(store.latents.deviation, whole.std(1), rtol=1e-12)


def test_a_store_of_codes_describes_the_latents_of_its_codes(tmp_path: Path) -> None:
    plan = plan_of("train")
    store = write_store(tmp_path / "train", plan, leave_out=(3, 9))
    images = [image for image in range(22) if image not in (3, 9)]
    assert_holds_latents_of(store, np.stack([random_latents(plan, image) for image in images]))


def test_codes_may_have_no_statistics_and_latents_may_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without moments, or with a channel that is constant, a store of codes still serves generators of codes."""
    for name, plan in (("codes", plan_of("train", 8)), ("latents", plan_of("train", 8, **LATENTS))):
        latents = np.zeros((8, 3, *plan.latent_shape), np.float32)
        tokens = latents if plan.spec is None else np.stack([random_codes(plan, image) for image in range(8)])
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


def test_a_store_of_the_first_format_is_to_be_written_again(tmp_path: Path) -> None:
    """Its manifest does not say what the latents are."""
    write_store(tmp_path / "fq_dual/train", plan_of("train"))
    manifest = tmp_path / "fq_dual/train/manifest.json"
    content = json.loads(manifest.read_text())
    del content["latent_shape"], content["latents"]
    manifest.write_text(json.dumps({**content, "format": 1}))
    said = r"train is a token store of format 1, and this code reads 3: delete .*/fq_dual and write it again \(make to"
    with pytest.raises(TokenStoreError, match=said):
        TokenStore.open(tmp_path / "fq_dual/train")
    assert not TokenStoreWriter(tmp_path / "fq_dual/train", plan_of("train")).whole()


def test_unreadable_images_are_left_out(tmp_path: Path) -> None:
    store = write_store(tmp_path / "train", plan_of("train"), leave_out=(3, 9))
    assert len(store) == 20
    assert [store.index(row) for row in (2, 3, 7, 8, 19)] == [2, 4, 8, 10, 21]
    assert np.array_equal(store.tokens(8, 2), random_codes(store.plan, 10)[2])


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


def test_damage_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "train"
    with pytest.raises(FileNotFoundError, match="the token store .*train is not there: `make tokens`"):
        TokenStore.open(path)
    write_store(path, plan_of("train"))
    shard = path / "shard_00001.arrow"
    whole = shard.read_bytes()

    shard.write_bytes(whole[:-40] + bytes(8) + whole[-32:])  # same size, some bytes zero
    TokenStore.open(path)  # cheap: sizes only
    with pytest.raises(TokenStoreError, match="shard_00001.arrow has the SHA-256 .*, and manifest.json says .*again"):
        TokenStore.open(path, verify=True)
    shard.write_bytes(whole[:-1] + b"\1")  # the magic number at the end
    with pytest.raises(TokenStoreError, match="shard_00001.arrow is damaged, though of the size that manifest.json"):
        TokenStore.open(path)
    assert not TokenStoreWriter(path, plan_of("train")).whole(), "it must be written again"
    shard.write_bytes(whole[:-8])
    with pytest.raises(TokenStoreError, match=f"has {len(whole) - 8} bytes, and manifest.json says {len(whole)}"):
        TokenStore.open(path)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"manifest.json lists shard_00001.arrow, and .* is missing"):
        TokenStore.open(path)
    manifest = path / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "format": 7}))
    with pytest.raises(TokenStoreError, match="a token store of format 7, and this code reads 3"):
        TokenStore.open(path)
    manifest.write_text("{")
    with pytest.raises(TokenStoreError, match="manifest.json is not valid JSON.* Write the token store again"):
        TokenStore.open(path)


def test_another_tokenizer_is_reported(tmp_path: Path) -> None:
    store = write_store(tmp_path / "train", plan_of("train"))
    store.check_tokenizer(store.tokenizer_fingerprint, "it")
    with pytest.raises(
        TokenStoreError, match=r"runs/digits/tokenizer/fq_dual.*\(0123456789ab…\), and runs/x is .*ffff"
    ):
        store.check_tokenizer("f" * 64, "runs/x")


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


def broken(changes: dict) -> Callable[[dict], dict]:
    return lambda content: {**content, **changes}


def shards(change: Callable[[list[dict]], object]) -> Callable[[dict], dict]:
    def changed(content: dict) -> dict:
        change(content["shards"])
        return content

    return changed


def swap_files(found: list[dict]) -> None:
    own = ("file", "bytes", "sha256")
    first, second = ({key: shard[key] for key in own} for shard in found[:2])
    found[0].update(second)
    found[1].update(first)


@pytest.mark.parametrize(
    "change",
    [
        broken({"views": ["centre of 1", "left", "mirrored"]}),
        broken({"spec": {"codebook_sizes": [16, 12], "scales": [[3, 2]]}, "latent_shape": [8, 3, 2]}),
        broken({"spec": {"codebook_sizes": [32, 12], "scales": [[2, 3]]}}),
        broken({"class_to_idx": {"even": 1, "odd": 0}}),
        broken({"tokenizer_run": "runs/digits/tokenizer/other"}),
        broken({"image_size": 16}),
        broken({"sha256": None}),
    ],
)
def test_a_manifest_proves_itself(change: Callable[[dict], dict], tmp_path: Path) -> None:
    """Contents that nothing else contradicts."""
    write_store(tmp_path / "train", plan_of("train"))
    manifest = tmp_path / "train/manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(dict(reversed(content.items()))))
    TokenStore.open(tmp_path / "train")  # order and spacing do not matter
    changed = change(content)
    if "latents" in changed and changed["latent_shape"] == [8, 3, 2]:
        changed["latents"]["grid"] = [3, 2]
    manifest.write_text(json.dumps(changed))
    with pytest.raises(TokenStoreError, match=r"manifest.json has the SHA-256 .*: it was changed .* write the store"):
        TokenStore.open(tmp_path / "train")
    assert not TokenStoreWriter(tmp_path / "train", plan_of("train")).whole()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda content: [content], r"manifest.json: \$: expected object, got array"),
        (broken({"views": None}), r"\$\.views: expected array, got null"),
        (broken({"views": []}), "must be at least 1"),
        (
            broken({"spec": {"codebook_sizes": [16, "12"], "scales": [[2, 3]]}}),
            r"\$\.spec\.codebook_sizes\[1\]: ex",
        ),
        (broken({"num_images": 1.5}), r"\$\.num_images: expected int, got float"),
        (broken({"class_to_idx": {"even": 0, "odd": 2}}), "class_to_idx does not number the classes from 0 to 1"),
        (broken({"images": 21}), "the shards do not add up to 21 images"),
        (lambda content: {**content, "shards": content["shards"] * 2}, "a shard is listed twice"),
        (lambda content: {**content, "shards": [{**content["shards"][0], "file": "../x"}]}, "not the name of a file"),
        (
            lambda content: {**content, "shards": [{"file": "x"}]},
            r"\$\.shards\[0\]: .* required field images",
        ),
        (broken({"split": "validation"}), "train holds the split validation: write both stores again"),
        (broken({"images_per_shard": 11}), "the images 0 to 21, and the plan is for 22 images, 11 a shard"),
        (shards(lambda found: found.pop()), "the shards do not add up to 22 images"),
        (shards(lambda found: found.reverse()), "the images of the shards do not follow one another from 0 on"),
        (shards(lambda found: found[2].update(images=[16, 18])), "00002.arrow has 6 rows for the images 16 to 17"),
        (shards(lambda found: found[0].update(file=found[1]["file"])), "a shard is listed twice"),
        (shards(swap_files), "shard_00001.arrow has the index 8, beyond 0 to 7"),
        (broken({"views": ["centre of 1"]}), "holds 8 labels and the tokens of 24 images"),
        (broken({"class_to_idx": {"even": 0}}), "shard_00000.arrow has the label 1, beyond 0 to 0"),
        (broken({"num_images": 20}), "images 0 to 21, and the plan is for 20 images, 8 a shard"),
    ],
)
def test_a_manifest_is_validated(change: Callable[[dict], object], says: str, tmp_path: Path) -> None:
    write_store(tmp_path / "train", plan_of("train"))
    manifest = tmp_path / "train/manifest.json"
    changed = change(json.loads(manifest.read_text()))
    if isinstance(changed, dict):
        seal(manifest, changed)
    else:
        manifest.write_text(json.dumps(changed))
    with pytest.raises(TokenStoreError, match=says) as caught:
        TokenStore.open(tmp_path / "train")
    assert "\n" not in str(caught.value)


def test_a_broken_record_of_the_verification_is_set_aside(tmp_path: Path) -> None:
    store = write_store(tmp_path / "train", plan_of("train"))
    for text in ("[", "[1]", '{"shard_00000.arrow": 3}'):
        (store.path / "verified.json").write_text(text)
        store.verify()
        assert (store.path / "verified.json.broken").read_text() == text
    assert records.read(store.path / "verified.json", dict[str, tuple[str, int]]).keys() == {
        shard.file for shard in store.shards
    }


def test_labels_beyond_the_classes_are_not_written(tmp_path: Path) -> None:
    writer = TokenStoreWriter(tmp_path / "train", plan_of("train"))
    writer.begin()
    codes = np.stack([random_codes(writer.plan, image) for image in range(8)])
    with pytest.raises(TokenStoreError, match="has labels 0 to 7, and there are 2 classes"):
        writer.write(0, np.arange(8), np.arange(8), codes)


@pytest.mark.parametrize("latents", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["mean"].__setitem__(0, 100.0),
        lambda found: found["deviation"].__setitem__(0, 1e-300),
        lambda found: found.update(grid=[2, 4]),
        lambda found: found.update(grid=[-2, 3]),
        lambda found: found.update(channels=1, mean=found["mean"][:1], deviation=found["deviation"][:1]),
        lambda found: found.update(channels=0, mean=[], deviation=[]),
    ],
)
def test_statistics_of_latents_fit_the_store(change: Callable[[dict], object], latents: bool, tmp_path: Path) -> None:
    write_store(tmp_path / "train", plan_of("train", **(LATENTS if latents else {})))
    manifest = tmp_path / "train/manifest.json"
    content = json.loads(manifest.read_text())
    change(content["latents"])
    seal(manifest, content)
    with pytest.raises(TokenStoreError, match=r"manifest.json.*[Ww]rite the (token )?store again"):
        TokenStore.open(tmp_path / "train")


def test_a_store_of_latents_has_statistics(tmp_path: Path) -> None:
    write_store(tmp_path / "train", plan_of("train", **LATENTS))
    manifest = tmp_path / "train/manifest.json"
    seal(manifest, {**json.loads(manifest.read_text()), "latents": None})
    with pytest.raises(TokenStoreError, match="no mean and deviation of its latents: write it again"):
        TokenStore.open(tmp_path / "train")
