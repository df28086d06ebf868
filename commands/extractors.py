"""Networks that figures lean on, by their names."""

from __future__ import annotations

from pathlib import Path

import torch

from commands.preset import Preset
from polytoken.metrics.extractor import Extractor
from polytoken.metrics.extractors import load_extractor

HELP = "judge, inception, or a teacher (dinov2_base …); by default the preset's judge, or else inception"


def extractor_named(
    name: str | None, preset: Preset | None, runs: Path, weights: Path | None, device: torch.device
) -> Extractor:
    """The network of a name.

    Args:
        name: ``judge``, ``inception`` or a teacher's; None is the preset's judge, or Inception where it has none.
        preset: whose judge; None has none.
        runs: root of all runs, where the judge is.
        weights: file of the weights; None takes those of ``make weights``, and of a judge those of the preset's run.
        device: where it runs.

    Raises:
        UserError: if the judge is asked of a preset that has none.
        FileNotFoundError: if weights are missing.
        ValueError: if the name is unknown, or the file holds something else.
    """
    if name is None:
        name = "judge" if preset is not None and preset.has_judge else "inception"
    if name == "judge" and preset is not None and weights is None:
        return preset.judge(runs, device)
    return load_extractor(name, weights, device)
