"""Class vectors for zero-shot classification: `python -m commands.class_vectors --text siglip2_large`.

Embeds every prompt with the name of every class by a text tower, and writes the normalised mean of each class with
names, prompts and model in the header. That file is all that `commands.zero_shot` needs, so the text tower of a
published model runs once, where there is a network; one of `make teacher` is a file. See docs/analysis.md,
"Zero-shot classification".
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from artifacts import yaml_files
from commands.program import best_device, new_parser, run
from polytoken.errors import MissingFileError, UserError
from polytoken.files import real_path
from polytoken.teachers.class_vectors import ClassVectors, check_prompts
from polytoken.teachers.text_towers import PUBLISHED, open_text_tower


def read_classes(file: Path) -> dict[str, str]:
    """Names in prompts by class of the data set, from a YAML mapping such as `n01440764: tench`.

    Raises:
        MissingFileError: there is no such file.
        UserError: it is not such a mapping.
    """
    content = yaml_files.read(file)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{file} is not a mapping: write a line `class: name` for each class")
    for key, name in content.items():
        if not isinstance(key, str | int) or isinstance(key, bool) or not isinstance(name, str) or not name.strip():
            raise UserError(f"{file} has {key!r}: {name!r}, which is no class with its name: put both in quotes")
    return {str(key): name for key, name in content.items()}


def read_prompts(file: Path) -> list[str]:
    """Prompts of a text file, one a line; empty lines do not count.

    Raises:
        MissingFileError: there is no such file.
        UserError: it has no prompts, or one without a placeholder.
    """
    prompts = [line.strip() for line in _text(file).splitlines() if line.strip()]
    try:
        check_prompts(prompts)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    return prompts


def _text(file: Path) -> str:
    if not file.is_file():
        raise MissingFileError(
            f"there is no file {file}: name another, or leave the option out, which takes those of the text tower"
        )
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: save it as such") from error


def default_output(text: str) -> Path:
    """Default output: `classes.safetensors` next to a text tower's file, or `weights/<teacher>_classes.safetensors`."""
    return (
        Path("weights", f"{text}_classes.safetensors")
        if text in PUBLISHED
        else Path(text).with_name("classes.safetensors")
    )


def work(given: Namespace) -> None:
    """Embed and write."""
    classes = read_classes(given.classes) if given.classes else None
    prompts = read_prompts(given.prompts) if given.prompts else None
    output = given.output or default_output(given.text)
    if real_path(output) == real_path(given.text):
        raise UserError(f"--output is {output}, the text tower itself: name another file")
    tower = open_text_tower(given.text, best_device())
    vectors = ClassVectors.of(tower, classes or tower.classes, prompts or tower.prompts)
    output.parent.mkdir(parents=True, exist_ok=True)
    vectors.save(output)
    print(f"{len(vectors.classes)} classes, {len(vectors.prompts)} prompts each: {output}")


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.class_vectors", __doc__)
    parser.add_argument(
        "--text", required=True, help=f"file of a text tower (make teacher), or a teacher: {', '.join(PUBLISHED)}"
    )
    parser.add_argument("--classes", type=Path, help="YAML `class: name`; default: of the tower's training, ImageNet's")
    parser.add_argument("--prompts", type=Path, help="a prompt with {} a line; default: the tower's, ImageNet's 80")
    parser.add_argument("--output", type=Path, help="the file (default: next to the tower, or in weights/)")
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
