"""Input of the shipped recipes in tests: a judge, a perceptual network, three teachers, and sizes of a few seconds."""

import json
from pathlib import Path

import torch
import yaml

from polytoken.classifier import SmallClassifier
from polytoken.teachers.stand_in import Pooling, SmallVisionTransformer
from tests.support.commands import REPOSITORY

CONFIGS = REPOSITORY / "configs"
PRESETS = ["digits", "imagenet", "photos"]  # `make preset` may have written others


def write_judge(path: Path, num_classes: int = 10, side: int = 32) -> Path:
    """Write a judge, a perceptual network and teachers of ``side`` px with random weights, as `make teacher` does."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SmallClassifier(num_classes, (32, 32)).save(path, accuracy=0.1)
        poolings: dict[str, Pooling] = {"mid": "mean", "high": "token", "dual": "attention"}
        for name, pooling in poolings.items():
            network = SmallVisionTransformer(side, width=16, depth=1, num_heads=2, pooling=pooling)
            network.save(path.with_name(f"{name}.safetensors"))
        SmallClassifier(num_classes, (16, 32)).save(path.with_name("perceptual.safetensors"), accuracy=0.1)
    return path


def recipes_of(model: str) -> list[str]:
    """Names of the recipes of a LightningModule, found by its class path."""
    found = {path.stem: yaml.safe_load(path.read_text()) for path in CONFIGS.glob("*.yaml")}
    return sorted(name for name, recipe in found.items() if recipe.get("model", {}).get("class_path") == model)


KINDS = {"FoldedTokenizer": "folded", "RepresentationTokenizer": "representation"}
TOKENIZERS = recipes_of("lightning_modules.TokenizerModule")


def preset_files(recipe: str, preset: str, kind: str = "tokenizer") -> list[str]:
    """A recipe's files of a preset, as the Makefile chooses them; ``kind`` is tokenizer or generator."""
    if kind == "tokenizer":
        text = (CONFIGS / f"{recipe}.yaml").read_text()
        kind = next((file for network, file in KINDS.items() if network in text), kind)
    files = [CONFIGS / "presets" / preset / f"{name}.yaml" for name in (kind, recipe)]
    return [str(file) for file in files if file.exists()]


def digits(recipe: str, judge: Path) -> list[str]:
    """Arguments of a recipe under the digits preset, its networks next to a judge; run in the working directory."""
    files = [str(CONFIGS / f"{recipe}.yaml"), *preset_files(recipe, "digits")]
    teachers = {
        name: {"name": "stand_in", "weights": str(judge.with_name(f"{name}.safetensors"))} for name in ("mid", "high")
    }
    return [
        *(part for file in files for part in ("--config", file)),
        *("--model.init_args.objective.perceptual.init_args.weights", str(judge.with_name("perceptual.safetensors"))),
        *("--model.init_args.objective.teachers", json.dumps(teachers)),
    ]
