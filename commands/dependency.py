"""Dependency of stored sub-codes: `python -m commands.dependency --store runs/digits/tokens/fq_dual`.

Estimates the mutual information of horizontally neighbouring positions, and of the sub-codes of one position, for each
scale and as a mean over scales (ImageFolder Fig. 2). Codes of large codebooks are grouped by k-means first. Prints a
table, and writes `dependency.json` and `dependency.png` into each store. See docs/analysis.md, "Dependency".
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from artifacts.dependency import DEPENDENCY, Dependency
from artifacts.provenance import commit, versions
from artifacts.token_store import TokenStore
from callbacks.measure.plots import new_plot, render
from commands.preset import spread
from commands.program import best_device, new_parser, print_table, run
from polytoken import records
from polytoken.errors import UserError
from polytoken.fingerprint import fingerprint
from polytoken.images import save_png
from polytoken.loading import load_tokenizer, present_run
from polytoken.metrics.code_groups import code_groups
from polytoken.metrics.dependency import Dependence, Kind, dependencies
from polytoken.specs import TokenSpec
from polytoken.tokenizers import Tokenizer

ESTIMATOR = (
    "plug-in with Miller and Madow's correction, minus its mean over shuffles of images; too low where this baseline "
    "is not small, and a lower bound where codes are grouped"
)
KINDS: dict[Kind, str] = {"neighbours": "neighbouring positions", "branches": "sub-codes of a position"}


def measure(
    store: TokenStore, groups: int = 32, max_images: int = 5000, shuffles: int = 10, seed: int = 0
) -> Dependency:
    """Estimate the dependency of the codes of a store; returns the content of `dependency.json`.

    Args:
        store: of codes.
        groups: most groups of codes of a codebook.
        max_images: most images, evenly spread; all their views count.
        shuffles: shuffles of the baseline.
        seed: of shuffles and k-means.

    Raises:
        UserError: if the store holds latents, no pairs, or one image, or if a setting is out of its range.
        MissingFileError: if codes must be grouped and the tokenizer's run has no checkpoint.
    """
    if min(groups, max_images, shuffles) < 2:
        raise UserError(f"--groups is {groups}, --max-images {max_images}, --shuffles {shuffles}: each is at least 2")
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed is {seed}: k-means takes 0 to {2**32 - 1}")
    spec = _checked(store)
    codes = torch.stack([_codes(store, row) for row in spread(len(store), max_images) or range(len(store))])
    counts = [torch.bincount(codes[:, :, i].flatten(), minlength=size) for i, size in enumerate(spec.codebook_sizes)]
    used = [int((count > 0).sum()) for count in counts]
    if max(used) > groups:
        tokenizer = _tokenizer(store)
        for index, count in enumerate(counts):
            codes[:, :, index] = code_groups(tokenizer, index, count, groups, seed)[codes[:, :, index]]
    return {
        "entries": list(dependencies(codes, spec.scales, shuffles, seed)),
        "estimator": ESTIMATOR,
        "store": str(store.path),
        "images": len(codes),
        "views": store.num_views,
        "spec": spec,
        "groups": [min(number, groups) for number in used],
        "shuffles": shuffles,
        "seed": seed,
        "tokenizer_fingerprint": store.tokenizer_fingerprint,
        "versions": versions("torch", "scikit-learn"),
        "commit": commit(),
    }


def _checked(store: TokenStore) -> TokenSpec:
    if store.spec is None:
        raise UserError(f"{store.path} holds latents, and dependency is measured between codes: name a store of codes")
    if store.spec.num_sub_codes == 1 and all(width == 1 for _, width in store.spec.scales):
        raise UserError(f"{store.path} has one sub-code and no neighbouring positions: there is nothing to compare")
    if len(store) < 2:
        raise UserError(f"{store.path} has one image, and a shuffle needs two: write a larger store")
    return store.spec


def _codes(store: TokenStore, row: int) -> Tensor:
    codes = np.stack([store.tokens(row, view) for view in range(store.num_views)])
    store.check(codes, row)
    return torch.from_numpy(codes.astype(np.int64))


def _tokenizer(store: TokenStore) -> Tokenizer:
    tokenizer = load_tokenizer(place := present_run(store.tokenizer_run, store.path))
    store.check_tokenizer(fingerprint(tokenizer), f"what {place} holds now")
    return tokenizer.to(best_device())


def _label(one: Dependence) -> str:
    first, second = one.sub_codes
    return f"neighbours, sub-code {first}" if one.kind == "neighbours" else f"sub-codes {first} and {second}"


def show(record: Dependency) -> None:
    """Print a row per kind, sub-codes and scale."""
    scales, groups = record["spec"].scales, record["groups"]

    def rows() -> Iterator[list[str]]:
        for one in record["entries"]:
            grid = "mean" if one.scale is None else f"{scales[one.scale][0]} × {scales[one.scale][1]}"
            share = f"{one.bits / one.entropy:.1%}" if one.entropy > 0 else "–"
            yield [_label(one), grid, f"{one.bits:.3f} ± {one.deviation:.3f}", f"{one.baseline:.3f}", share]

    views = f" with {record['views']} views each" if record["views"] > 1 else ""
    print_table(
        f"Mutual information in {record['store']}: {record['images']:,} images{views}, codes in {groups} groups",
        ["between", "scale", "bits", "baseline", "of entropy"],
        rows(),
        [f"estimator: {record['estimator']}; ± is the deviation of the shuffles"],
        left=2,
    )


def means(record: Dependency) -> dict[Kind, float]:
    """Bits of neighbours and of branches: means over sub-codes of the means over scales, where a store has pairs."""
    found = {kind: [one.bits for one in record["entries"] if one.kind == kind and one.scale is None] for kind in KINDS}
    return {kind: fmean(bits) for kind, bits in found.items() if bits}


def draw(found: Mapping[str, Dependency], path: Path) -> None:
    """Draw a pair of bars per store, and beside them a curve over scales for a single store of several scales."""
    several = next(iter(found.values()))["spec"].scales if len(found) == 1 else ()
    plot, axes = new_plot(2 if len(several) > 1 else 1)
    bars = axes[0][0]
    for number, (kind, text) in enumerate(KINDS.items()):
        heights = [means(record).get(kind, math.nan) for record in found.values()]
        bars.bar([place + 0.4 * number for place in range(len(found))], heights, 0.38, label=text)
    bars.set_xticks([place + 0.2 for place in range(len(found))], list(found))
    bars.set(ylabel="mutual information, bits", title="mean over scales and sub-codes")
    bars.axhline(0, color="black", linewidth=0.8)
    bars.legend()
    if len(several) > 1:
        (record,) = found.values()
        for label in dict.fromkeys((one.kind, one.sub_codes) for one in record["entries"]):
            chosen = [one for one in record["entries"] if (one.kind, one.sub_codes) == label and one.scale is not None]
            places, bits = [one.scale for one in chosen], [one.bits for one in chosen]
            errors, name = [one.deviation for one in chosen], _label(chosen[0])
            axes[0][1].errorbar(places, bits, errors, marker="o", markersize=4, label=name)
        axes[0][1].set_xticks(range(len(several)), [f"{height} × {width}" for height, width in several], fontsize=8)
        axes[0][1].set(xlabel="scale", title="by scale")
        axes[0][1].legend(fontsize=8)
    save_png(path, render(plot))


def save(directory: Path, record: Dependency) -> Path:
    """Write `dependency.json` and `dependency.png` into a directory of stores."""
    path = directory / DEPENDENCY
    records.write(path, record)
    draw({directory.name: record}, path.with_suffix(".png"))
    return path


def work(given: Namespace) -> None:
    """Measure every store, write its files and print a table; draw all stores in one plot if a path is given."""
    found: dict[str, Dependency] = {}
    stores = {directory: TokenStore.open(directory / given.split) for directory in given.store}
    for store in stores.values():
        _checked(store)
    several = len({directory.name for directory in stores}) < len(stores)
    for directory, store in stores.items():
        record = measure(store, given.groups, given.max_images, given.shuffles, given.seed)
        found[str(directory) if several else directory.name] = record
        show(record)
        path = save(directory, record)
        print(f"all results: {path}, plotted in {path.with_suffix('.png')}")
    if given.picture is not None:
        draw(found, given.picture)


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.dependency", __doc__)
    parser.add_argument("--store", type=Path, nargs="+", required=True, help="directories of `predict`, a plot each")
    parser.add_argument("--split", choices=("train", "validation"), default="train", help="of the images")
    parser.add_argument("--groups", type=int, default=32, help="most groups of codes; compare stores at equal groups")
    parser.add_argument("--max-images", type=int, default=5000, help="most images, evenly spread, with all their views")
    parser.add_argument("--shuffles", type=int, default=10, help="shuffles of the baseline")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffles and of k-means")
    parser.add_argument("--picture", type=Path, help="one more plot, of all stores")
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
