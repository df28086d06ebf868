"""Recipes of generators that read images, cut down to seconds: a tiny tokenizer, its store, and a teacher."""

from pathlib import Path

from polytoken.fingerprint import fingerprint
from polytoken.loading import load_tokenizer
from polytoken.teachers import SmallVisionTransformer
from tests.support.generated import write_runs
from tests.support.generator_recipes import tiny, write_digit_codes


def write_online_digits(place: Path) -> Path:
    """A tokenizer of 16 px, the store of its codes and a teacher below `place`, all of random weights; the store."""
    tokenizer_run = write_runs(place / "runs/digits", num_subspaces=1).parents[1] / "tokenizer/tiny"
    tokenizer = load_tokenizer(tokenizer_run)
    write_teacher(place / "teacher.safetensors")
    return write_digit_codes(
        place / "codes",
        tokenizer.spec,
        train=1442,
        validation=355,
        images_per_shard=1442,
        tokenizer_run=str(tokenizer_run),
        tokenizer_fingerprint=fingerprint(tokenizer),
        image_size=16,
    )


def write_teacher(path: Path, image_size: int = 16) -> Path:
    """A teacher with random weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    SmallVisionTransformer(image_size, width=16, depth=1, num_heads=2).save(path)
    return path


def tiny_online(recipe: str, store: Path) -> list[str]:
    """Arguments of a recipe under the digits preset, on what :func:`write_online_digits` has written."""
    return [
        *tiny(recipe, store),
        *("--data.init_args.image_size", "16", "--trainer.limit_val_batches", "1"),
        *("--model.init_args.alignment.teacher.weights", str(store.parent / "teacher.safetensors")),
    ]
