"""Model card of an exported model: what it is, every metric with its protocol, and its lineage."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from artifacts import yaml_files
from artifacts.completion import completion
from artifacts.provenance import commit, versions
from artifacts.results import Table
from commands.metric_names import name_of
from commands.report import runs
from commands.report.content import Facts
from commands.report.stages import REFERENCE, sample_settings, sampled
from commands.report.templates import templates
from polytoken.errors import UserError
from polytoken.fingerprint import fingerprint
from polytoken.generators.record import InitFrom, run_name
from polytoken.layout import CHECKPOINTS
from polytoken.loading import INIT_FROM, RELEASED, Checkpoint
from polytoken.pipeline import GenerationPipeline
from polytoken.tokenizers import Tokenizer

LIBRARY = "polytoken"
CLASSES_SHOWN = 10
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass
class Part:
    """A section of the card."""

    title: str
    facts: Facts
    tables: list[Table] = field(default_factory=list)


def model_card(
    model: Tokenizer | GenerationPipeline, folder: str, licence: str, checkpoint: Checkpoint, of_tokenizer: Checkpoint
) -> str:
    """Return the card as Markdown, which begins with metadata of the hub.

    Args:
        model: as it was exported.
        folder: name of its folder, for the example.
        licence: identifier of the licence, as the hub writes it.
        checkpoint: of the exported run.
        of_tokenizer: of the tokenizer; for an exported tokenizer the same.
    """
    made = "converted" if RELEASED in checkpoint.content else "trained"
    run, load = _run_of(checkpoint), f"polytoken.from_pretrained({json.dumps(folder)})"
    if isinstance(model, GenerationPipeline):
        summary = f"A generator of images of given classes, with the tokenizer that decodes them, {made} by Polytoken."
        tags = ["image-generation", "class-conditional", type(model.network).__name__]
        code = f'pipeline = {load}\npipeline.sample([0, 1])[0].save("sample.png")'
        parts = [_generator(model, checkpoint), *_samples(checkpoint), _tokenizer(model.tokenizer, of_tokenizer)]
    else:
        summary = f"An image tokenizer, {made} by Polytoken."
        tags = ["image-tokenizer", type(model).__name__]
        found = "codes" if model.spec else "quantized"
        image = f'polytoken.read_image("image.png", {model.image_size})'
        code = f"tokenizer = {load}\n{found} = tokenizer.encode({image}).{found}"
        parts = [_tokenizer(model, checkpoint)]
    exported = [("versions", ", ".join(f"{name} {version}" for name, version in versions("torch").items()))]
    exported += [("commit", runs.short(of_code))] if (of_code := commit()) else []
    front_matter = {"license": licence, "library_name": LIBRARY, "tags": [LIBRARY, *tags]}
    return (
        templates()
        .get_template("model_card.md.j2")
        .render(
            front_matter=yaml.safe_dump(front_matter, sort_keys=False),
            title=" ".join([run_name(run), *([f"on {name}"] if (name := _preset(run)) else [])]),
            summary=summary,
            code=f"import polytoken\n{code}",
            sections=[*parts, Part("Export", exported)],
        )
    )


def _run_of(checkpoint: Checkpoint) -> Path:
    """The directory of a checkpoint's run; of a checkpoint that lies elsewhere, its own."""
    folder = checkpoint.path.absolute().parent
    return folder.parent if folder.name == CHECKPOINTS else folder


def _tokenizer(tokenizer: Tokenizer, checkpoint: Checkpoint) -> Part:
    spec, run = tokenizer.spec, _run_of(checkpoint)
    facts = [
        ("class", f"{type(tokenizer).__name__} with {type(tokenizer.quantizer).__name__}"),
        ("parameters", f"{_parameters(tokenizer):,}"),
        ("images", f"{tokenizer.image_size} × {tokenizer.image_size} px"),
    ]
    if spec is None:
        facts.append(("latents of an image", " × ".join(map(str, tokenizer.latent_shape))))
    else:
        count = spec.num_positions * spec.num_sub_codes
        facts += [
            ("codes of an image", f"{count:,} ({spec.num_positions:,} positions × {spec.num_sub_codes})"),
            ("codebook sizes", " · ".join(f"{size:,}" for size in spec.codebook_sizes)),
            ("bits of an image", f"{spec.bits_per_image:,.0f}"),
        ]
    facts += [("compression of 8-bit RGB", f"{tokenizer.compression_ratio:.1f} ×")]
    facts += [(f"frozen {name}", identity) for name, identity in tokenizer.frozen_identities().items()]
    facts += [("fingerprint", fingerprint(tokenizer)), *_weights(checkpoint)]
    origin = checkpoint.content.get(INIT_FROM)
    if isinstance(origin, Mapping) and "path" in origin:
        facts.append(_initial(str(origin["path"]), origin.get("step"), origin.get("sha256")))
    return _measured("Tokenizer", checkpoint, facts, run.parent.parent / "tokens" / run.name)


def _generator(pipeline: GenerationPipeline, checkpoint: Checkpoint) -> Part:
    record, run, network = checkpoint.record, _run_of(checkpoint), pipeline.network
    names = pipeline.class_names
    shown = ", ".join(names[:CLASSES_SHOWN]) + (", …" if len(names) > CLASSES_SHOWN else "")
    facts = [
        ("class", type(network).__name__),
        ("parameters", f"{_parameters(network):,}"),
        ("models", f"the sub-codes {pipeline.sub_codes}" if network.models == "codes" else "latents"),
        ("classes", f"{len(names):,}: {shown}"),
        ("tokenizer", f"{run_name(record.tokenizer_run)}, fingerprint {record.tokenizer_fingerprint}"),
        *([("teacher", record.teacher)] if record.teacher else []),
        *_weights(checkpoint),
    ]
    start: InitFrom | None = record.lineage.init_from
    if start is not None:
        facts.append(_initial(start.path, start.step, start.sha256))
    return _measured("Generator", checkpoint, facts, run / "tokens")


def _measured(title: str, checkpoint: Checkpoint, facts: Facts, tokens: Path) -> Part:
    """The facts of a network, and what its run has recorded."""
    run = _run_of(checkpoint)
    entry = runs.measured(run, tokens, checkpoint.step)
    step = dict(entry.facts).get("step measured", f"{checkpoint.step:,}")
    caption = "Metrics of the run, at the step and on the images named above"
    if step != f"{checkpoint.step:,}":
        caption += f"; that step is {step}, and these weights are of step {checkpoint.step:,}"
    known = {*(name for name, _ in facts), "model", "codes of an image", "bits of an image"}
    facts = [*facts, *_recipe(run), *_data(run), *(fact for fact in entry.facts if fact[0] not in known)]
    rows = [[name_of(metric).head, name_of(metric).text(value)] for metric, value in _ordered(entry.metrics)]
    own = [Table(["metric", "value"], rows, caption)] if rows else []
    return Part(title, facts, [*own, *entry.tables])


def _samples(checkpoint: Checkpoint) -> Iterator[Part]:
    """Evaluated samples of this very checkpoint."""
    run = _run_of(checkpoint)
    for path in sorted(file.parent for file in (run.parent.parent / "samples").glob("*/samples.json")):
        settings = sample_settings(path)
        if settings is not None and settings["generator"].get("sha256") == checkpoint.sha256:
            entry = sampled(path, settings, _preset(run))
            if entry.tables:
                yield Part(f"Samples {path.name}", [*entry.facts, ("note", REFERENCE)], entry.tables)


def _ordered(metrics: Mapping[str, float | None]) -> Sequence[tuple[str, float | None]]:
    return sorted(metrics.items(), key=lambda item: runs.order(item[0]))


def _weights(checkpoint: Checkpoint) -> Facts:
    digest = ("checkpoint SHA-256", checkpoint.sha256)
    averaged = ", averaged over the training" if checkpoint.averaged else ""
    weights = f"step {checkpoint.step:,}{averaged}"
    if not (released := checkpoint.released):
        return [("weights", weights), digest]
    made = "converted" if RELEASED in checkpoint.content else f"{weights}, trained"
    weights = f"{made} from {released.name} ({released.source}), licence {released.licence}"
    return [("weights", weights), ("released file SHA-256", released.sha256), digest]


def _initial(path: str, step: Any, sha256: Any) -> tuple[str, str]:
    return "initial weights", f"{run_name(path)}, step {step}, SHA-256 {sha256}"


def _recipe(run: Path) -> Iterator[tuple[str, str]]:
    """The configuration files of a finished run."""
    done = completion(run)
    if done and "origin" in done:
        files = (Path(file) for file in done["origin"]["configs"])
        yield "configuration", ", ".join(file.name if file.is_absolute() else str(file) for file in files)


def _data(run: Path) -> Iterator[tuple[str, str]]:
    """The source of the images of a run, without paths of this machine."""
    section = _config(run).get("data")
    arguments = section.get("init_args") if isinstance(section, dict) else None
    source = arguments.get("source") if isinstance(arguments, dict) else None
    if isinstance(source, dict):
        name = str(source.get("class_path")).rpartition(".")[2]
        place = str((source.get("init_args") or {}).get("path") or "")
        yield "data", f"{name} {place}" if name == "HubSource" and HUB_NAME.fullmatch(place) else name


def _preset(run: Path) -> str:
    section = _config(run).get("run")
    return str(section.get("preset") or "") if isinstance(section, dict) else ""


def _config(run: Path) -> dict[str, Any]:
    """The configuration that a run has recorded; an empty one if it is missing or broken."""
    try:
        content = yaml_files.read(run / "config.yaml")
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
