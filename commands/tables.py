"""Tables of what programs have measured of a run or of its tokens, for them and for the report; without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any, NotRequired, TypedDict

import msgspec

from artifacts import fidelity
from artifacts.results import Table
from artifacts.run_files import (
    CAPTIONS,
    CODES,
    CURVE,
    CURVES,
    LAYERS,
    PROBES,
    RECOVERY,
    ZERO_SHOT,
    Caption,
    Codes,
    Curve,
    ImageMetric,
    Layers,
    Probes,
    Recovered,
    Sweep,
    SweepEntry,
    ZeroShotResult,
)
from commands.image_sets import text_of
from commands.metric_names import name_of_images
from polytoken import records

CAPTIONS_SHOWN = 5


class Pair(TypedDict):
    """An entry of `dependency.json`, without torch."""

    kind: str
    sub_codes: tuple[int, int]
    scale: int | None
    bits: float
    deviation: float
    entropy: float


class Pairs(TypedDict):
    """Part of `dependency.json` that the report shows."""

    entries: list[Pair]
    estimator: str
    images: int
    tokenizer_fingerprint: NotRequired[str]


class ClassPSNR(TypedDict):
    """A class of `psnr_by_class.json`."""

    tokenizer: float
    painted: float


def measured(directory: Path, step: int | None) -> Iterator[Table]:
    """All tables of a run.

    Args:
        directory: of the run.
        step: of the weights that are described, if it is known. A measurement outlasts further training: the caption of
            a table of another step names it.
    """
    if swept := records.read_derived(directory / "sweep.json", Sweep):
        yield from at_step(step, _generator(swept["scales"]), _sweep(swept))
    if probed := records.read_derived(directory / PROBES, Probes):
        yield from at_step(step, probed.get("checkpoint"), probes(probed))
    if classified := records.read_derived(directory / ZERO_SHOT, ZeroShotResult):
        yield from at_step(step, classified.get("checkpoint"), zero_shot(classified))
    if coded := records.read_derived(directory / CODES, Codes):
        yield from at_step(step, coded.get("checkpoint"), codes(coded))
    if recovered := records.read_derived(directory / RECOVERY, Recovered):
        yield from at_step(step, recovered.get("checkpoint"), recovery(recovered))
    if found := records.read_derived(directory / fidelity.FIDELITY, fidelity.Fidelity):
        yield from at_step(step, found.get("checkpoint"), fidelity.tables(found))
    for file in (LAYERS, f"generated_{LAYERS}"):
        if analysed := records.read_derived(directory / file, Layers):
            yield from at_step(step, _generator([analysed]), layers(analysed))
    if curve := records.read_derived(directory / CURVE, Curve):
        yield _curve(curve)
    if captions := records.read_derived(directory / CAPTIONS, list[Caption]):
        rows = [[one["image"], one["generated"], *one["references"][:1]] for one in captions[:CAPTIONS_SHOWN]]
        yield Table(["image", "generated caption", "a reference"], rows, f"Captions: {len(rows)} of {len(captions):,}")
    if classes := records.read_derived(directory / "psnr_by_class.json", dict[str, ClassPSNR]):
        rows = [[name, f"{one['tokenizer']:.2f}", f"{one['painted']:.2f}"] for name, one in classes.items()]
        yield Table(["class", "PSNR, dB ↑", "of patches in their mean colour"], rows, "PSNR by class")


def at_step(step: int | None, weights: Any, tables: Iterable[Table]) -> Iterator[Table]:
    """The tables; captions name the step in the record of the measured weights, unless it is this one."""
    found = weights.get("step") if isinstance(weights, Mapping) else None
    named = f"; measured at step {found:,}" if isinstance(found, int) and found != (step or 0) else ""
    yield from (msgspec.structs.replace(table, caption=f"{table.caption}{named}") for table in tables)


def _generator(measured: Sequence[Layers | SweepEntry]) -> Any:
    """The record of the generator's weights in the latest measurement, if it has one."""
    return (measured[-1].get("origin") or {}).get("generator") if measured else None


def dependency(directory: Path, fingerprint: str | None) -> Iterator[Table]:
    """The table of a token store, if the dependency of its codes was measured.

    Args:
        directory: of the store.
        fingerprint: of the tokenizer that wrote it, if it is known; a table of other codes says so.
    """
    if found := records.read_derived(directory / "dependency.json", Pairs):
        rows = [
            [
                f"{one['kind']}, sub-codes {one['sub_codes'][0]} and {one['sub_codes'][1]}",
                "mean" if one["scale"] is None else str(one["scale"]),
                f"{one['bits']:.3f} ± {one['deviation']:.3f}",
                f"{one['bits'] / one['entropy']:.1%}" if one["entropy"] > 0 else "–",
            ]
            for one in found["entries"]
        ]
        caption = f"Mutual information of codes, {found['images']:,} images; estimator {found['estimator']}"
        caption += "; ± is the shuffles' deviation"
        if fingerprint is not None and found.get("tokenizer_fingerprint", fingerprint) != fingerprint:
            caption += "; measured on codes of other weights of the tokenizer"
        yield Table(["between", "scale", "bits", "of entropy"], rows, caption)


def _sweep(sweep: Sweep) -> Iterator[Table]:
    """A row for each guidance scale of the latest settings."""
    if scales := sweep["scales"]:
        settings = scales[-1]["settings"]
        scales = sorted((one for one in scales if one["settings"] == settings), key=lambda one: one["guidance"])
        names = list(dict.fromkeys(name for one in scales for name in one["metrics"]))
        rows = [[f"{one['guidance']:g}", *(_cell(one["metrics"], name) for name in names)] for one in scales]
        heads = [name_of_images(name).head for name in names]
        yield Table(["guidance", *heads], rows, f"Guidance: {settings.get('num_images', '?')} samples a scale")


def _cell(metrics: Mapping[str, ImageMetric], name: str) -> str:
    return text_of(name, metrics[name]) if name in metrics else "–"


def probes(found: Probes) -> Iterator[Table]:
    """A row for each feature, a column for each probe."""
    if fitted := found["probes"]:
        kinds = list(dict.fromkeys(probe["probe"] for probe in fitted))
        rows: dict[tuple[str, str], dict[str, str]] = {}
        for probe in fitted:
            key = (probe["feature"], str(probe.get("num_features", "–")))
            rows.setdefault(key, {})[probe["probe"]] = _share(probe["value"], probe["standard_error"])
        majority = f", always the most common class {found['majority']:.1%}" if "majority" in found else ""
        trained = f"; fitted to {found['n_train']:,} training images" if "n_train" in found else ""
        caption = (
            f"Probes: accuracy on {found['n_validation']:,} validation images; chance {found['chance']:.1%}{majority}"
            f"{trained}; ± is one standard error"
        )
        body = [[*key, *(row.get(kind, "–") for kind in kinds)] for key, row in rows.items()]
        yield Table(["feature", "width", *(f"{kind.replace('_', ' ')} ↑" for kind in kinds)], body, caption)


def _share(value: float, standard_error: float) -> str:
    return f"{value:.1%} ± {standard_error:.1%}"


def codes(found: Codes) -> Iterator[Table]:
    """Distances of images decoded from the codes and from replaced ones, and the use of each sub-code at a position."""
    if (sets := found["metrics"]) and "perturbation" in found:  # a tokenizer without codes has neither
        # metrics of the two sets correspond, with other first letters: rfd/judge and pfd/judge
        heads = [name_of_images(name).head for name in sets.get("reconstructed", {})]
        rows = [[kind, *(_cell(metrics, name) for name in metrics)] for kind, metrics in sets.items()]
        settings = found["perturbation"]
        share = settings["alpha"] * settings["beta"]
        caption = f"Codes: {found['n']:,} images decoded, and with {share:.0%} of the codes drawn from their "
        counts = " and ".join(map(str, dict.fromkeys(found.get("neighbours", []))))
        caption += f"{counts} nearest neighbours" if counts else "neighbours"
        if network := found.get("extractor"):
            caption += f"; by {network['name']}"
        yield Table(["images", *heads], rows, caption)
    rows = [
        [str(index), _range(one["usage"], ".1%"), _range(one["perplexity"], ".1f")]
        for index, one in enumerate(found["positions"])
        if one["usage"] and one["perplexity"]
    ]
    if rows:
        caption = "Use at a position: least, mean and greatest of the positions; "
        caption += f"{found['bits_per_image']:,.0f} bits an image"
        yield Table(["sub-code", "codes seen", "perplexity"], rows, caption)


def _range(values: Sequence[float], form: str) -> str:
    return " ".join(f"{value:{form}}" for value in (min(values), fmean(values), max(values)))


def recovery(found: Recovered) -> Iterator[Table]:
    """A row for each scale and codebook."""
    rows = [
        [f"{curve['factor']:g}", str(index), f"{use[0]:.1%}", f"{area:.1%}", f"{use[-1]:.1%}"]
        for curve in found["curves"]
        for index, (use, area) in enumerate(zip_longest(curve["usage"], curve["area"]))
        if use and area is not None  # both, in a whole file
    ]
    if rows:
        head = ["scale of the codebooks", "sub-code", "in use at the start", "mean ↑", "at the end"]
        steps = f" of {found['settings']['steps']:,.0f} steps" if "steps" in found["settings"] else ""
        caption = f"Recovery: codes in use by features of {found['n']:,} images, during a training{steps}"
        yield Table(head, rows, caption)


def zero_shot(found: ZeroShotResult) -> Iterator[Table]:
    """A row for each kind of features."""
    rows = [
        [
            row["features"],
            _share(row["top1"], row["top1_standard_error"]),
            _share(row["top5"], row["top5_standard_error"]),
        ]
        for row in found["rows"]
    ]
    vectors = found["class_vectors"]
    caption = (
        f"Zero-shot classification of {found['n']:,} validation images into {found['num_classes']} classes by "
        f"{vectors['num_prompts']} prompts of {vectors['text_tower']}; chance {1 / max(found['num_classes'], 1):.1%}; "
        "± is one standard error"
    )
    yield Table(["features", "top-1 ↑", "top-5 ↑"], rows, caption)


def layers(found: Layers) -> Iterator[Table]:
    """A row for each block of a generator."""
    curves = {title: values for key, title in CURVES.items() if (values := found.get(key))}
    rows = [
        [str(block), *("–" if value is None else f"{value:.3f}" for value in values)]
        for block, values in enumerate(zip_longest(*curves.values()), 1)  # a damaged file may lack some
    ]
    caption = f"Blocks of the generator, {found['n']:,} {found['source']} images, k = {found['k']}"
    caption += "" if found["aligned"] is None else f"; training aligned block {found['aligned']}"
    r = found["correlation"]
    caption += f"; Pearson r of NTS and CKNNA: {'not defined' if r is None else f'{r:.2f}'}"
    yield Table(["block", *curves], rows, caption)


def _curve(found: Curve) -> Table:
    """A row for each kept checkpoint."""
    names = list(dict.fromkeys(name for run in found["runs"] for point in run["points"] for name in point["metrics"]))
    rows = [
        [
            run["name"],
            f"{point['step']:,}",
            f"{point['training_flops']:.4g}",
            *(_cell(point["metrics"], name) for name in names),
        ]
        for run in found["runs"]
        for point in run["points"]
    ]
    heads = (name_of_images(name).head for name in names)
    return Table(["curve", "step", "training FLOPs", *heads], rows, "Distance over training FLOPs")
