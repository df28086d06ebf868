"""Definitions of the JSON files that a run leaves, for `polytoken.records`.

Readers of these files decode them with these types, so a broken file is one sentence with the place inside it. Keys
that a definition does not name are dropped by the decoder. The files of a token store are defined in
`artifacts.token_store`, `dependency.json` in `artifacts.dependency`, the results of an experiment in
`artifacts.results`, and `lineage.json` in `polytoken.generators.record`. This module does not import torch: that would
cost each stage of an experiment seconds.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

METRICS = "metrics.json"
PROBES = "probes.json"
ZERO_SHOT = "zero_shot.json"
CODES = "codes.json"
RECOVERY = "recovery.json"
LAYERS = "layers.json"
CURVE = "curve.json"
CAPTIONS = "captions.json"

Metrics = dict[str, float | None]  # by name; None means NaN or infinity, which JSON lacks


class Measured(TypedDict):
    """The sections `fit`, `validate` and `test` of `metrics.json`."""

    metrics: Metrics
    global_step: NotRequired[int]
    n: NotRequired[int | None]  # images of all ranks; None if batches do not number their images
    versions: NotRequired[dict[str, str]]
    machine: NotRequired[str | None]
    commit: NotRequired[str | None]


class ImageMetric(TypedDict):
    """A metric of a set of images, with the number of images and the real images of a distance."""

    value: float | None
    n: int
    extractor: NotRequired[str]
    splits: NotRequired[str]
    reference: NotRequired[str]
    reference_kind: NotRequired[str]
    reference_n: NotRequired[int | None]
    reference_rows: NotRequired[int]
    reference_sha256: NotRequired[str | None]
    forced: NotRequired[bool]
    neighbours: NotRequired[int]
    deviation: NotRequired[float | None]
    subset_size: NotRequired[int]


class Network(TypedDict):
    """The network that measured images."""

    name: str
    sha256: str | None
    resize: NotRequired[str | None]


class Real(TypedDict):
    """The real images of a comparison."""

    reference: str
    reference_n: NotRequired[int | None]


class Drawn(TypedDict, total=False):
    """The images of a comparison."""

    path: str | None
    sha256: str
    n: int
    use: str
    settings: dict[str, Any] | None
    versions: dict[str, str] | None
    reconstructed_by: dict[str, Any] | None


class Evaluation(TypedDict):
    """The section `evaluate` of `metrics.json`, and one network's entry of the section `reconstruction`."""

    metrics: dict[str, dict[str, ImageMetric]]  # by set of images, then by name
    samples: Drawn
    extractor: Network
    reference: Real
    notes: list[str]
    versions: NotRequired[dict[str, str]]
    machine: NotRequired[str | None]
    commit: NotRequired[str | None]


class MetricsFile(TypedDict, total=False):
    """`metrics.json`: one section for each command."""

    fit: Measured
    validate: Measured
    test: Measured
    evaluate: Evaluation
    reconstruction: dict[str, Evaluation]


class Caption(TypedDict):
    """An image of `captions.json`, which is a list of them."""

    image: str  # its path, or another name for it
    generated: str
    references: list[str]


class Samples(TypedDict):
    """`samples.json`, next to `samples.npz`, and `parts/settings.json` before that is written."""

    settings: dict[str, Any]
    sha256: NotRequired[str]
    class_names: NotRequired[list[str]]
    versions: NotRequired[dict[str, str]]
    commit: NotRequired[str | None]


class SamplePart(TypedDict):
    """`parts/<number>.json`, written after the images of the part."""

    sha256: str


class Source(TypedDict):
    """The run that samples come from."""

    run: str
    step: int
    sha256: NotRequired[str]  # of the checkpoint


class TokenizerSource(TypedDict):
    """The tokenizer that decoded samples, in their settings."""

    run: str
    fingerprint: str


class SampleSettings(TypedDict):
    """The settings in `samples.json` that the report shows."""

    num_images: int
    classes: str | list[int | str]
    generator: Source
    tokenizer: NotRequired[TokenizerSource]
    sampler: dict[str, Any]
    seed: int


class SweepEntry(TypedDict):
    """One guidance scale of a sweep."""

    guidance: float
    metrics: dict[str, ImageMetric]
    settings: dict[str, Any]
    notes: list[str]
    origin: NotRequired[dict[str, Any]]
    versions: NotRequired[dict[str, str]]
    commit: NotRequired[str | None]


class Sweep(TypedDict):
    """`sweep.json`."""

    scales: list[SweepEntry]


class MeasuredCheckpoint(TypedDict):
    """What a program measured a checkpoint with; files of older versions may lack it."""

    checkpoint: NotRequired[dict[str, Any]]
    versions: NotRequired[dict[str, str]]
    commit: NotRequired[str | None]


class Probe(TypedDict):
    """The accuracy of one probe."""

    feature: str
    probe: str
    value: float
    standard_error: float
    num_features: NotRequired[int]
    fit: NotRequired[str]


class Probes(MeasuredCheckpoint):
    """`probes.json`."""

    probes: list[Probe]
    chance: float
    n_validation: int
    majority: NotRequired[float]
    n_train: NotRequired[int]
    num_classes: NotRequired[int]
    settings: NotRequired[dict[str, Any]]


class PositionUse(TypedDict):
    """Share of a sub-code's codes that each position uses, and their perplexity there."""

    usage: list[float]
    perplexity: list[float]


class Replacement(TypedDict):
    """Settings of :class:`polytoken.metrics.perturbation.Perturbation`."""

    alpha: float
    beta: float
    delta: NotRequired[int]
    seed: NotRequired[int]


class Codes(MeasuredCheckpoint):
    """`codes.json`: bits and use of a tokenizer's codes, and images that were decoded after some had been replaced."""

    bits_per_image: float
    n: int
    extractor: NotRequired[Network]
    metrics: dict[str, dict[str, ImageMetric]]  # of "reconstructed" and "perturbed" images; none without codes
    perturbation: NotRequired[Replacement]
    neighbours: NotRequired[list[int]]
    positions: list[PositionUse]  # of each sub-code
    notes: list[str]


class RecoveryCurve(TypedDict):
    """Share of each codebook's codes in use while it is trained, after its vectors were multiplied by a factor."""

    factor: float
    usage: list[list[float]]  # by codebook
    area: list[float]  # mean over the steps


class Recovered(MeasuredCheckpoint):
    """`recovery.json`."""

    curves: list[RecoveryCurve]  # none without codebooks
    factor: float
    n: int
    settings: dict[str, float]
    notes: list[str]


class ZeroShotRow(TypedDict):
    """Shares of images whose class is the nearest one, and among the five nearest."""

    features: str
    top1: float
    top1_standard_error: float
    top5: float
    top5_standard_error: float


class NamedClasses(TypedDict):
    """The class vectors of a zero-shot classification."""

    path: str
    sha256: str
    text_tower: str
    num_prompts: int


class ZeroShotResult(MeasuredCheckpoint):
    """`zero_shot.json`."""

    rows: list[ZeroShotRow]
    n: int
    num_classes: int
    teacher: str
    class_vectors: NamedClasses


CURVES = {"sts": "STS", "nts": "NTS", "cknna": "CKNNA", "cka": "linear CKA", "probe": "linear probe"}  # of Layers


class Layers(TypedDict):
    """`layers.json`: similarities of a generator's blocks, one number per block; None where one is not defined."""

    sts: list[float | None]
    nts: list[float | None]
    cknna: list[float | None]
    cka: list[float | None]
    correlation: float | None  # Pearson, of NTS and CKNNA
    n: int  # images
    positions: int
    k: int
    unit_rows: NotRequired[bool]  # features of unit length for CKNNA; absent is True
    teacher: str
    source: str  # validation, or generated
    time: float | None  # of a flow; None for a generator without time
    aligned: int | None  # block that training aligned with a teacher
    probe: NotRequired[list[float] | None]
    probe_standard_error: NotRequired[list[float] | None]
    origin: NotRequired[dict[str, Any]]
    versions: NotRequired[dict[str, str]]
    commit: NotRequired[str | None]


class CurvePoint(TypedDict):
    """A kept checkpoint of a run: its training so far, and the metrics of its samples."""

    step: int
    images: int
    training_flops: float
    metrics: dict[str, ImageMetric]


class CurveRun(TypedDict):
    """The curve of a run."""

    name: str
    run: str
    forward_flops: float  # an image
    training_flops: float  # an image
    points: list[CurvePoint]


class Curve(TypedDict):
    """`curve.json`: distance over training FLOPs."""

    runs: list[CurveRun]
    attention: str  # how the attention of causal models is counted
    commit: NotRequired[str | None]


class StageFile(TypedDict):
    """`stage.json` of a stage of an experiment."""

    label: str
    kind: str
    commands: list[list[str]]
