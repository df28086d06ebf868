"""`metrics.json`: the numbers of a run, one section for each command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from artifacts.provenance import commit, machine, versions
from artifacts.run_files import Drawn, Evaluation
from polytoken import records
from polytoken.metrics.extractor import Extractor
from polytoken.metrics.image_metrics import Metrics, Target

PACKAGES = ("torch", "lightning", "torchmetrics", "torch-fidelity")  # metrics of images depend on their versions


def merge_section(path: Path, name: str, section: Mapping[str, Any], within: str | None = None) -> None:
    """Put a section into the file and keep the others; a broken file is set aside with a warning.

    Args:
        path: the file.
        name: of the section.
        section: its content.
        within: puts the content into the section `name` under this key, and keeps the section's other keys.
    """
    sections = records.read_derived(path, dict[str, dict[str, Any]]) or {}
    content = section if within is None else {**sections.get(name, {}), within: section}
    records.write(path, {**sections, name: content})


def comparison_section(
    metrics: dict[str, Metrics], samples: Drawn, extractor: Extractor, target: Target, notes: Sequence[str]
) -> Evaluation:
    """A section on sets of images: metrics, and all that they depend on.

    Args:
        metrics: by set: ``samples``, ``reconstructions``, ``validation`` …
        samples: the images: their number, their settings.
        extractor: the network.
        target: the real images of the distances.
        notes: warnings for the reader, in sentences.
    """
    return {
        "metrics": metrics,
        "samples": samples,
        "extractor": {"name": extractor.name, "sha256": extractor.sha256, "resize": extractor.resize},
        "reference": target.about,
        "notes": list(notes),
        "versions": versions(*PACKAGES),
        "machine": machine(),
        "commit": commit(),
    }
