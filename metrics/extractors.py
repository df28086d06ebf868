"""Extractors by their names."""

from __future__ import annotations

from pathlib import Path

import torch

from metrics.extractor import Extractor
from metrics.inception import WEIGHTS, Inception
from metrics.judge import Judge
from metrics.teacher_extractor import TeacherExtractor
from models.classifier import SmallClassifier
from models.teachers import Teacher


def load_extractor(name: str, weights: Path | None, device: torch.device) -> Extractor:
    """The network of a name, on its device.

    Args:
        name: ``judge``, ``inception``, or a teacher's: ``dinov2_base`` …
        weights: its file; None takes that of ``make weights``. A judge has none there.
        device: where it runs.

    Raises:
        FileNotFoundError: if weights are missing.
        ValueError: if the name is unknown, a judge's file is not named, or the file holds something else.
    """
    if name == "judge":
        if weights is None:
            raise ValueError("each preset has a judge of its own: name its file, runs/digits/teacher/judge.safetensors")
        return Judge(SmallClassifier.load(weights).to(device), weights)
    if name == "inception":
        return Inception(weights or WEIGHTS, device)
    return TeacherExtractor(Teacher(name, None if weights is None else str(weights)), device)
