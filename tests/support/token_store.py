"""Token stores of random codes or latents, without a tokenizer."""

import json
from pathlib import Path

import numpy as np

from artifacts.moments import Moments
from artifacts.token_manifest import SHA256, StorePlan, manifest_sha256
from artifacts.token_store import TokenStore
from artifacts.token_store_writer import TokenStoreWriter
from polytoken.specs import TokenSpec

SPEC = TokenSpec((16, 12), ((2, 3),))
LATENTS = {"spec": None, "latent_shape": (4, 2, 3)}


def plan_of(split: str, num_images: int = 22, **changes: object) -> StorePlan:
    """A plan of three views and shards of 8 images."""
    settings = {
        "spec": SPEC,
        "latent_shape": (8, 2, 3),
        "tokenizer_fingerprint": "0123456789abcdef" * 4,
        "tokenizer_run": "runs/digits/tokenizer/fq_dual",
        "class_to_idx": {"even": 0, "odd": 1},
        "image_size": 8,
        "views": ("centre of 1", "left", "right") if split == "train" else ("centre of 1",),
        "images_per_shard": 8,
    }
    return StorePlan(split=split, num_images=num_images, **(settings | changes))


def codes_of(plan: StorePlan, image: int) -> np.ndarray:
    """Codes (V, k, N) of an image, a function of its index and its split."""
    generator = np.random.default_rng((len(plan.split), image))
    sizes = np.array(plan.spec.codebook_sizes)[:, None]
    shape = (len(plan.views), plan.spec.num_sub_codes, plan.spec.num_positions)
    return generator.integers(0, sizes, shape)


def latents_of(plan: StorePlan, image: int) -> np.ndarray:
    """Latents (V, C, h, w) float32 of an image: channel c has mean c and deviation 1 + c."""
    generator = np.random.default_rng((len(plan.split), image))
    channels = np.arange(plan.latent_shape[0])[:, None, None]
    return (channels + (1 + channels) * generator.normal(size=(len(plan.views), *plan.latent_shape))).astype(np.float32)


def write_shard(writer: TokenStoreWriter, shard: int, leave_out: tuple[int, ...] = ()) -> None:
    """Write a shard of random tokens, with moments of random latents; images have the classes 0 and 1 in turn."""
    images = np.array([image for image in writer.plan.shard_images(shard) if image not in leave_out])
    latents = np.stack([latents_of(writer.plan, image) for image in images])
    tokens = latents
    if writer.plan.spec is not None:
        tokens = np.stack([codes_of(writer.plan, image) for image in images])
    writer.write(shard, images, images % len(writer.plan.class_to_idx), tokens, Moments.of(latents))


def write_store(path: Path, plan: StorePlan, leave_out: tuple[int, ...] = ()) -> TokenStore:
    """A whole store."""
    writer = TokenStoreWriter(path, plan)
    writer.begin()
    for shard in writer.missing():
        write_shard(writer, shard, leave_out)
    writer.finish()
    return TokenStore.open(path)


def write_stores(root: Path, num_images: int = 22, **changes: object) -> Path:
    """The stores `train` and `validation` below a root."""
    for split, count in (("train", num_images), ("validation", 7)):
        write_store(root / split, plan_of(split, count, **changes))
    return root


def assert_holds(store: TokenStore, plan: StorePlan) -> None:
    """Check that a store holds the random tokens of all images of a plan."""
    assert len(store) == plan.num_images
    for row in range(len(store)):
        expected = codes_of(plan, row)
        for view in range(store.num_views):
            assert np.array_equal(store.tokens(row, view), expected[view]), (row, view)
        assert (store.label(row), store.index(row)) == (row % 2, row)


def seal(manifest: Path, content: dict) -> None:
    """Write a manifest with the digest of this content, as if it had been written so."""
    manifest.write_text(json.dumps({**content, SHA256: manifest_sha256(content)}))
