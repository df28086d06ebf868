"""The generator recipes cut down to seconds, and a store whose codes depend on the class."""

from pathlib import Path
from typing import Any

import numpy as np

from artifacts.token_store import StorePlan
from artifacts.token_store_writer import TokenStoreWriter
from polytoken.specs import TokenSpec
from tests.support.recipes import CONFIGS
from tests.support.token_store import plan_of

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
    root: Path, spec: TokenSpec = SPEC, num_classes: int = 10, validation: int = 10, **changes: Any
) -> Path:
    """Train and validation stores of 22 and 10 images, each code its class or the number after it."""
    classes = {str(index): index for index in range(num_classes)}
    for split, count in (("train", 22), ("validation", validation)):
        plan = plan_of(split, count, spec=spec, class_to_idx=classes, **changes)
        writer = TokenStoreWriter(root / split, plan)
        writer.begin()
        for shard in range(plan.num_shards):
            images = np.array(plan.shard_images(shard))
            labels = images % num_classes
            writer.write(shard, images, labels, _codes(plan, labels, shard))
        writer.finish()
    return root


def _codes(plan: StorePlan, labels: np.ndarray, seed: int) -> np.ndarray:
    shape = (len(labels), len(plan.views), plan.spec.num_sub_codes, plan.spec.num_positions)
    noise = np.random.default_rng(seed).integers(0, 2, shape)
    return (labels[:, None, None, None] + noise) % np.array(plan.spec.codebook_sizes)[:, None]


def tiny(recipe: str, store: Path, preset: str = "digits") -> list[str]:
    """Arguments of a recipe under a preset, on another store and of a tiny size."""
    files = [str(CONFIGS / f"{recipe}.yaml"), str(CONFIGS / f"presets/{preset}/generator.yaml")]
    return [*(part for file in files for part in ("--config", file)), "--data.init_args.store", str(store), *TINY]
