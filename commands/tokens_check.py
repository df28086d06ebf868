"""Compare stored codes or latents with their images (`make tokens-check`).

Verifies the SHA-256 of every shard, decodes a few entries with the tokenizer that wrote them, and compares them with
the images, which it finds by the configuration that `predict` wrote. Prints the PSNR and the share of codes or latents
that encoding reproduces, and draws `tokens_check.png`, images above what was decoded.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from artifacts.token_manifest import TokenStoreError
from artifacts.token_store import TokenStore, stores
from callbacks.measure.plots import image_table
from commands.preset import image_data
from commands.program import new_parser, run, whole_number
from datamodules.images import ImageDataModule, check_image_size
from polytoken.fingerprint import fingerprint
from polytoken.images import save_png
from polytoken.loading import load_tokenizer, present_run
from polytoken.metrics.images import psnr, to_uint8
from polytoken.specs import Encoding

CONFIG = "config_predict.yaml"
LEAST_EQUAL = 0.95  # another device may round a few codes differently; other images share far fewer
CLOSE = 0.02  # latents that differ by less, in standard deviations, count as equal


class CheckedStore(NamedTuple):
    """Entries of one store: images and decoded ones (n, 3, H, W), decibels (n,), and the share of equal tokens."""

    store: TokenStore
    images: Tensor
    decoded: Tensor
    decibels: Tensor
    equal: float


def main(arguments: list[str] | None = None) -> None:
    """Check both stores of a run; exit with code 1 if tokens do not match their images, and with 2 on bad input."""
    parser = new_parser("commands.tokens_check", __doc__)
    parser.add_argument("run", type=Path, help="run directory of `predict`, e.g. runs/digits/tokens/fq_dual")
    parser.add_argument("--images", type=whole_number(1), default=8, help="entries of each store, evenly spread")
    run(parser, _check, arguments)


def _check(given: Namespace) -> int:
    compared = [
        compare(store, image_data(given.run / CONFIG), given.images) for store in stores(given.run, verify=True)
    ]
    for store, _, _, decibels, equal in compared:
        values = f"PSNR {decibels.mean():.2f} dB ({decibels.min():.2f} to {decibels.max():.2f})"
        size = f"{len(store)} images, {store.num_views} view(s) of each, checksums correct"
        print(f"{store.path}: {size}; {values}; {store.plan.holds} equal {equal:.1%}")
    print(f"images above decoded ones: {draw(compared, given.run / 'tokens_check.png')}")
    wrong = [comparison.store for comparison in compared if comparison.equal < LEAST_EQUAL]
    if wrong:
        places = ", ".join(str(store.path) for store in wrong)
        print(
            f"error: the {wrong[0].plan.holds} in {places} do not match the images: write them again", file=sys.stderr
        )
    return 1 if wrong else 0


@torch.no_grad()
def compare(store: TokenStore, data: ImageDataModule, number: int) -> CheckedStore:
    """Decode evenly spread entries, of each the next view, and encode their images again.

    Raises:
        MissingFileError: the tokenizer's run does not exist.
        TokenStoreError: it has been trained further, or the views differ from those of the store.
    """
    tokenizer = load_tokenizer(place := present_run(store.tokenizer_run, store.path))
    store.check_tokenizer(fingerprint(tokenizer), f"what {place} holds now")
    if store.spec != tokenizer.spec:
        raise TokenStoreError(f"{store.path} says {store.spec}, and its tokenizer has {tokenizer.spec}: write it again")
    check_image_size(data, store.plan.image_size, f"the image_size of {store.path}")
    split = "train" if store.plan.split == "train" else "validation"
    if data.split_views(split).names != store.plan.views:
        raise TokenStoreError(f"{store.path} holds the views {store.plan.views}, which its configuration does not list")
    dataset = data.views_dataset(split)
    rows = torch.linspace(0, len(store) - 1, min(number, len(store))).long().tolist()
    entries = [(row, position % store.num_views) for position, row in enumerate(rows)]
    images = torch.stack([_image(dataset[(0, store.index(row))].image, view, store) for row, view in entries])
    kept = "float32" if store.spec is None else "int64"
    tokens = torch.stack([torch.from_numpy(store.tokens(row, view).astype(kept)) for row, view in entries])
    decoded = tokenizer.decode(tokens if store.spec is None else tokenizer.embed_codes(tokens)).image
    decibels = psnr(to_uint8(decoded), to_uint8(images))
    return CheckedStore(store, images, decoded, decibels, _equal(store, tokenizer.encode(images), tokens))


def draw(compared: list[CheckedStore], file: Path) -> Path:
    """Draw images above the decoded ones, two rows per store."""
    rows = [[*to_uint8(side)] for comparison in compared for side in (comparison.images, comparison.decoded)]
    labels = [f"{comparison.store.plan.split}, {side}" for comparison in compared for side in ("images", "decoded")]
    save_png(file, image_table(rows, row_labels=labels))
    return file


def _equal(store: TokenStore, again: Encoding, tokens: Tensor) -> float:
    """The share of stored tokens that encoding reproduces."""
    if again.codes is not None:
        return (again.codes == tokens).float().mean().item()
    assert store.latents is not None  # a store of latents has statistics
    deviation = torch.tensor(store.latents.deviation).view(-1, 1, 1)
    return ((again.quantized - tokens).abs() <= CLOSE * deviation).float().mean().item()


def _image(views: Tensor | None, view: int, store: TokenStore) -> Tensor:
    if views is None:
        raise TokenStoreError(f"an image of {store.path} is no longer readable")
    return views[view]


if __name__ == "__main__":
    main()
