"""The generator recipes cut down to seconds, and stores whose codes or latents depend on the class."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cli
from artifacts.moments import Moments
from artifacts.token_manifest import StorePlan
from artifacts.token_store_writer import TokenStoreWriter
from polytoken.codec import BlankCodec
from polytoken.fingerprint import fingerprint
from polytoken.loading import load_tokenizer
from polytoken.specs import TokenSpec
from tests.support.commands import exit_code
from tests.support.generated import write_next_scale_runs
from tests.support.recipes import CONFIGS, preset_files
from tests.support.token_store import latents_of, plan_of

GENERATOR = "model.init_args.generator.init_args"
SPEC = TokenSpec((8, 8), ((2, 3),))
TRUNK = '{"dim": 16, "depth": 2, "num_heads": 2, "ffn_multiple": 16}'
TINY = (
    *("--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.enable_progress_bar", "false"),
    *("--trainer.precision", "32-true", "--trainer.devices", "1", "--trainer.strategy", "auto"),
    *(
        "--data.init_args.batch_size",
        "8",
        "--data.init_args.num_workers",
        "0",
        "--model.init_args.generator.init_args.trunk",
        TRUNK,
    ),
)


def write_digit_codes(
    root: Path,
    spec: TokenSpec | None = SPEC,
    num_classes: int = 10,
    train: int = 22,
    validation: int = 10,
    **changes: Any,
) -> Path:
    """Train and validation stores, by default of 22 and 10 images, each code its class or the number after it.

    Latents, stored for a spec of None and described otherwise, are random numbers of mean and deviation 1 + channel,
    with the class added to their mean.
    """
    classes = {str(index): index for index in range(num_classes)}
    changes = {"latent_shape": (4, *(spec.scales[-1] if spec else (2, 3)))} | changes
    for split, count in (("train", train), ("validation", validation)):
        plan = plan_of(split, count, spec=spec, class_to_idx=classes, **changes)
        writer = TokenStoreWriter(root / split, plan)
        writer.begin()
        for shard in range(plan.num_shards):
            images = np.array(plan.shard_images(shard))
            labels = images % num_classes
            latents = np.stack([latents_of(plan, image) for image in images]) + labels[:, None, None, None, None]
            tokens = latents if spec is None else _codes(plan, spec, labels, shard)
            writer.write(shard, images, labels, tokens, Moments.of(latents))
        writer.finish()
    return root


def write_scale_codes(root: Path, **changes: Any) -> Path:
    """The stores of :func:`write_digit_codes` with two sub-codes on three scales, and the run of their tokenizer."""
    run = write_next_scale_runs(root.with_name(f"{root.name}_runs")).parent.parent / "tokenizer/tiny"
    tokenizer = load_tokenizer(run)
    place = {"tokenizer_run": str(run), "tokenizer_fingerprint": fingerprint(tokenizer), "image_size": 32}
    return write_digit_codes(root, tokenizer.spec, latent_shape=tokenizer.latent_shape, **place, **changes)


def _codes(plan: StorePlan, spec: TokenSpec, labels: np.ndarray, seed: int) -> np.ndarray:
    shape = (len(labels), len(plan.views), *plan.shape)
    noise = np.random.default_rng(seed).integers(0, 2, shape)
    return (labels[:, None, None, None] + noise) % np.array(spec.codebook_sizes)[:, None]


def tiny(recipe: str, store: Path, preset: str = "digits") -> list[str]:
    """Arguments of a recipe under a preset, on another store and of a tiny size."""
    files = [str(CONFIGS / f"{recipe}.yaml"), *preset_files(recipe, preset, "generator")]
    return [*(part for file in files for part in ("--config", file)), "--data.init_args.store", str(store), *TINY]


def built(
    recipe: str, preset: str, store: Path, monkeypatch: pytest.MonkeyPatch, *overlays: Path
) -> tuple[cli.CommandLine, Any]:
    """The instantiated command line, and the generator that training would build."""
    made: list[cli.CommandLine] = []

    def stop(self: cli.CommandLine) -> None:
        made.append(self)
        raise SystemExit(0)

    monkeypatch.setattr(cli.CommandLine, "before_fit", stop, raising=False)
    files = [CONFIGS / f"{recipe}.yaml", *preset_files(recipe, preset, "generator"), *overlays]
    arguments = [part for file in files for part in ("--config", str(file))]
    arguments += ["--trainer.devices", "1", "--trainer.strategy", "auto", "--data.init_args.store", str(store)]
    assert exit_code("fit", *arguments) == 0
    data = made[0].datamodule
    with torch.device("meta"):
        generator = made[0].model.generator
        spec = data.latents if generator.models == "latents" else data.spec
        codec = BlankCodec(data.latents.shape, len(data.spec.scales)) if generator.needs_codec else None
        generator.connect(spec, data.num_classes, codec)
    return made[0], generator
