"""Zero-shot classification by decoded features: `python -m commands.zero_shot --run RUN --classes FILE`.

Pools the reconstructed deep feature of a tokenizer by the foundation model's own attention, and compares it with class
vectors (`commands.class_vectors`), next to the untouched model. Validation images come from the configuration in the
run. Prints a table and writes `zero_shot.json` into the run (Ideal, arXiv 2606.11096, Table 3). See docs/analysis.md,
"Zero-shot classification".
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from artifacts.run_files import ZERO_SHOT, ZeroShotResult, ZeroShotRow
from commands import tables
from commands.measuring import batches_of, images_of, measured_with, save
from commands.program import best_device, new_parser, print_tables, run
from polytoken.errors import UserError
from polytoken.features import features_of
from polytoken.files import file_sha256
from polytoken.loading import Checkpoint
from polytoken.metrics.zero_shot import ZeroShot
from polytoken.precision import full_precision
from polytoken.teachers import Teacher
from polytoken.teachers.class_vectors import ClassVectors
from polytoken.tokenizers import RepresentationTokenizer

DECODED = "decoded"
UNTOUCHED = "foundation model"


def zero_shot(
    run: Path, classes: Path, max_images: int | None = None, device: torch.device | None = None
) -> ZeroShotResult:
    """Classify the validation images; returns the content of `zero_shot.json`.

    Args:
        run: run of the tokenizer.
        classes: file of class vectors.
        max_images: upper bound of the validation images, evenly spread; None is all.
        device: None is the CPU.

    Raises:
        MissingFileError: if the run has no checkpoint, or there are no class vectors.
        UserError: if it decodes no features, its foundation model does not pool by attention, or the class vectors are
            those of another model or of other classes.
    """
    checkpoint = Checkpoint.open(run)
    measured = measured_with(checkpoint, "torch", "timm")
    tokenizer = checkpoint.tokenizer()
    if not isinstance(tokenizer, RepresentationTokenizer):
        raise UserError(
            f"{run} holds a {type(tokenizer).__name__}, which decodes no features of a foundation model, so zero-shot "
            "classification does not apply: name the run of a RepresentationTokenizer (make tokenizer TOKENIZER=ideal)"
        )
    if max_images is not None and max_images < 1:
        raise UserError(f"--max-images is {max_images}: at least 1 image is classified")
    foundation, named = tokenizer.foundation, ClassVectors.load(classes)
    foundation.check_pool()
    _check_teacher(foundation, named, classes)
    data = images_of(run, tokenizer.image_size)
    vectors = named.by_label(data.class_to_idx)
    metrics: dict[str, ZeroShot] = {}
    device = device or torch.device("cpu")
    tokenizer.to(device)
    for batch in batches_of(data, "validation", max_images):
        for name, pooled in _pooled(tokenizer, batch["image"].to(device)).items():
            metric = metrics.setdefault(name, ZeroShot(vectors).to(device))
            metric.update(pooled, batch["label"].to(device))
    return {
        "rows": [_row(name, metric) for name, metric in metrics.items()],
        "n": max((int(metric.n) for metric in metrics.values()), default=0),  # without unreadable images
        "num_classes": len(vectors),
        "teacher": foundation.identity,
        "class_vectors": {
            "path": str(classes),
            "sha256": file_sha256(classes),
            "text_tower": named.text_tower,
            "num_prompts": len(named.prompts),
        },
        **measured,
    }


def _check_teacher(foundation: Teacher, named: ClassVectors, classes: Path) -> None:
    """Refuse vectors of a text tower that was not trained with this foundation model."""
    if named.vectors.shape[1] != foundation.width:
        raise UserError(
            f"{classes} holds vectors of width {named.vectors.shape[1]}, and the foundation model {foundation.name} "
            f"has width {foundation.width}: write the class vectors of its own text tower"
        )
    if named.teacher not in (foundation.name, foundation.identity):
        raise UserError(
            f"{classes} holds vectors of a text tower of {_short(named.teacher)}, and the tokenizer's foundation model "
            f"is {_short(foundation.identity)}: write the class vectors of its own text tower, or train the tokenizer "
            "again"
        )


def _short(identity: str) -> str:
    """Name, and the start of the digest."""
    name, _, digest = identity.partition(" ")
    return f"{name} {digest[:12]}".strip()


def _pooled(tokenizer: RepresentationTokenizer, images: Tensor) -> dict[str, Tensor]:
    """Pooled features (B, D): of the untouched model, of the block that the tokenizer reads instead, and decoded."""
    foundation = tokenizer.foundation
    deep, decoded = (
        one.permute(0, 2, 3, 1) for one in features_of(tokenizer, images, "foundation/deep", "decoded/deep")
    )
    if foundation.block is None:
        patches = {UNTOUCHED: deep, DECODED: decoded}
    else:
        with full_precision(images.device):
            (last,) = foundation.at_last_block().features(images, full_precision=True)
        patches = {UNTOUCHED: last.patches, f"its block {foundation.block}": deep, DECODED: decoded}
    return {name: foundation.pool(one) for name, one in patches.items()}


def _row(name: str, metric: ZeroShot) -> ZeroShotRow:
    found = metric.compute()
    return {
        "features": name,
        "top1": found["top1"].value,
        "top1_standard_error": found["top1"].standard_error,
        "top5": found["top5"].value,
        "top5_standard_error": found["top5"].standard_error,
    }


def work(given: Namespace) -> None:
    """Classify, write `zero_shot.json`, and print a table."""
    result = zero_shot(given.run, given.classes, given.max_images, best_device())
    print_tables(tables.zero_shot(result))
    print(f"all results: {save(given.run, ZERO_SHOT, result)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.zero_shot", __doc__)
    parser.add_argument("--run", type=Path, required=True, help="run of a tokenizer: runs/digits/tokenizer/ideal")
    parser.add_argument(
        "--classes", type=Path, required=True, help="class vectors: runs/digits/teacher/classes.safetensors"
    )
    parser.add_argument("--max-images", type=int, help="most validation images, evenly spread; by default all")
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
