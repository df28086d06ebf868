"""What the shipped recipes need to run in a test: a judge, and sizes of a few seconds."""

from pathlib import Path

import torch

from models.classifier import SmallClassifier
from tests.support.commands import REPOSITORY

CONFIGS = REPOSITORY / "configs"


def write_judge(path: Path, num_classes: int = 10) -> Path:
    """A judge with random weights, in the format `make teacher` writes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SmallClassifier(num_classes, (32, 32)).save(path, accuracy=0.1)
    return path


def digits(recipe: str, judge: Path) -> list[str]:
    """Arguments of a recipe under the digits preset, its judge elsewhere; the working directory is the run's."""
    return [
        *("--config", str(CONFIGS / f"{recipe}.yaml")),
        *("--config", str(CONFIGS / "presets/digits/tokenizer.yaml")),
        *("--model.init_args.objective.perceptual.init_args.weights", str(judge)),
    ]
