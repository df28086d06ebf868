"""Extractors by name."""

from __future__ import annotations

from pathlib import Path

import torch

from polytoken.classifier import SmallClassifier
from polytoken.errors import UserError
from polytoken.metrics.efficientnet import EfficientNet
from polytoken.metrics.extractor import Extractor
from polytoken.metrics.inception import WEIGHTS, Inception
from polytoken.metrics.judge import Judge
from polytoken.metrics.teacher_extractor import TeacherExtractor
from polytoken.teachers import Teacher
from polytoken.teachers.efficientnet import EFFICIENTNETS, MEASURES


def load_extractor(name: str, weights: Path | None, device: torch.device) -> Extractor:
    """Load an extractor.

    Args:
        name: ``judge``, ``inception``, ``efficientnet_lite2``, or a teacher's: ``dinov2_base`` …
        weights: file of its weights; None is the one of ``make weights``. A judge's must be named.
        device: device of the network.

    Raises:
        MissingFileError: if weights are missing.
        UserError: if the name is unknown or that of a network of losses, a judge's file is not named, or the file holds
            something else.
    """
    if name in EFFICIENTNETS:
        if name != MEASURES:
            raise UserError(
                f"{name} is the network of losses, which a tokenizer trained with it satisfies by construction: "
                f"measure by {MEASURES}"
            )
        if weights is not None:
            raise UserError(f"{MEASURES} reads the weights of an installed package: leave weights out")
        return EfficientNet(device)
    if name == "judge":
        if weights is None:
            raise UserError("each preset has its own judge: name its file, runs/digits/teacher/judge.safetensors")
        return Judge(SmallClassifier.load(weights).to(device), weights)
    if name == "inception":
        return Inception(weights or WEIGHTS, device)
    return TeacherExtractor(Teacher(name, None if weights is None else str(weights)), device)
