"""A token store of codes or latents is read in place, and reports damage."""

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from artifacts.token_manifest import TokenStoreError
from artifacts.token_store import TokenStore
from artifacts.token_store_writer import TokenStoreWriter
from polytoken import records
from polytoken.specs import TokenSpec
from tests.support.token_store import (
    LATENTS,
    SPEC,
    assert_holds,
    codes_of,
    latents_of,
    plan_of,
    write_store,
)


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
    assert np.array_equal(codes, codes_of(store.plan, 577)[1])


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
    expected = np.stack([latents_of(plan, image) for image in range(22)])
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
    assert_holds_latents_of(store, np.stack([latents_of(plan, image) for image in images]))


def test_unreadable_images_are_left_out(tmp_path: Path) -> None:
    store = write_store(tmp_path / "train", plan_of("train"), leave_out=(3, 9))
    assert len(store) == 20
    assert [store.index(row) for row in (2, 3, 7, 8, 19)] == [2, 4, 8, 10, 21]
    assert np.array_equal(store.tokens(8, 2), codes_of(store.plan, 10)[2])


def test_damage_of_a_header_is_reported(tmp_path: Path) -> None:
    """Arrow raises errors of several classes, among them one of the operating system."""
    path = tmp_path / "train"
    write_store(path, plan_of("train"))
    shard = path / "shard_00001.arrow"
    whole = shard.read_bytes()
    refused = 0
    for place in range(0, 600, 11):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            TokenStore.open(path)
        except TokenStoreError:
            refused += 1
    assert refused > 20, "the others changed descriptions that nothing reads"


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


def test_a_broken_record_of_the_verification_is_set_aside(tmp_path: Path) -> None:
    store = write_store(tmp_path / "train", plan_of("train"))
    for text in ("[", "[1]", '{"shard_00000.arrow": 3}'):
        (store.path / "verified.json").write_text(text)
        store.verify()
        assert (store.path / "verified.json.broken").read_text() == text
    assert records.read(store.path / "verified.json", dict[str, tuple[str, int]]).keys() == {
        shard.file for shard in store.shards
    }
