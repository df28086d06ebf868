"""The manifest of a token store proves itself, and is validated."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from artifacts.token_manifest import TokenStoreError
from artifacts.token_store import TokenStore
from artifacts.token_store_writer import TokenStoreWriter
from tests.support.token_store import (
    LATENTS,
    plan_of,
    seal,
    write_store,
)


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
