"""Preset for own images: `python -m commands.new_preset --name flowers --data /path/to/images` (`make preset`).

Opens a sample of the images, chooses resolution, sizes and batch for them and this machine, and writes
`configs/presets/<name>/`, which carries the images through all stages. See docs/own_data.md.
"""

from __future__ import annotations

import os
import re
import shlex
from argparse import Namespace
from pathlib import Path
from typing import get_args

from artifacts.repository import PRESETS, REPOSITORY
from commands.preset_files import Choice, Size, files
from commands.program import new_parser, run, whole_number
from commands.survey import Survey, folder, hub, survey
from polytoken.errors import UserError
from polytoken.files import new_folder, write_text

RESOLUTIONS = (64, 128, 256)
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
# an estimate: images of 256 px of a recipe's tokenizer, and tokens of 256 positions of LlamaGen-B, in a GB of memory
TOKENIZER_IMAGES_PER_GB = 0.4
GENERATOR_IMAGES_PER_GB = 3.0


def choose(found: Survey, size: Size | None, resolution: int | None, steps: int | None, flip: bool) -> Choice:
    """Sizes for these images on this machine; the given ones stay."""
    import torch

    gpus = torch.cuda.device_count()
    size = size or ("large" if gpus else "small")
    cores = os.cpu_count() or 1
    if resolution is None:
        fitting = max((side for side in RESOLUTIONS if side <= found.shorter_side), default=RESOLUTIONS[0])
        resolution = fitting if gpus else RESOLUTIONS[0]
    train = found.count["train"]
    if size == "small":
        workers = 0 if cores <= 2 else min(4, cores // 2)
        return Choice(size, resolution, _power(16, train), _power(64, train), 1, workers, steps, flip)
    memory = min((torch.cuda.get_device_properties(gpu).total_memory for gpu in range(gpus)), default=24e9) / 1e9
    devices = max(gpus, 1)
    tokenizer = memory * TOKENIZER_IMAGES_PER_GB * (256 / resolution) ** 2
    return Choice(
        size,
        resolution,
        _power(min(tokenizer, 256 // devices), train // devices),
        _power(min(memory * GENERATOR_IMAGES_PER_GB, 256 // devices), train // devices),
        devices,
        min(8, max(1, cores // devices)),
        steps,
        flip,
    )


def write(name: str, contents: dict[str, str]) -> Path:
    """Write the files of a preset, all or none; returns its directory.

    Raises:
        UserError: the name is no plain word, or there is such a preset.
    """
    place = check_name(name)
    with new_folder(place) as partial:
        for file, text in contents.items():
            write_text(partial / file, text)
    return place


def check_name(name: str) -> Path:
    """The directory of a new preset.

    Raises:
        UserError: the name is no plain word, or there is such a preset.
    """
    if not NAME.fullmatch(name):
        raise UserError(
            f"NAME is {name!r}, which cannot name a directory of runs: take letters, digits, _ and -, as in "
            "make preset NAME=flowers DATA=/path"
        )
    if (PRESETS / name).exists():
        raise UserError(f"there is a preset {name}, {_shown(PRESETS / name)}: edit it, delete it, or take another NAME")
    return PRESETS / name


def work(given: Namespace) -> None:
    """Look at the images, choose, write, and print the choices and the next commands."""
    check_name(given.name)
    if (given.data is None) == (given.hub is None):
        raise UserError("name the images by one of DATA=/path, a folder, and HUB=owner/name, a Hugging Face data set")
    labelled = not given.unlabelled
    found = survey(folder(given.data, labelled) if given.hub is None else hub(given.hub, labelled))
    choice = choose(found, given.size, given.resolution, given.steps, not given.no_flip)
    place = write(given.name, files(given.name, found, choice, command(given)))
    print(report(given.name, found, choice))
    print(f"the preset is {_shown(place)}; next: {' && '.join(following(given.name, choice))}")


def command(given: Namespace) -> str:
    """The line of make that writes the preset again."""
    images = f"DATA={shlex.quote(given.data)}" if given.hub is None else f"HUB={shlex.quote(given.hub)}"
    switches = [f"--{name.replace('_', '-')}" for name in ("unlabelled", "no_flip") if getattr(given, name)]
    valued = ((name, getattr(given, name)) for name in ("resolution", "size", "steps"))
    options = " ".join([*switches, *(f"--{name} {value}" for name, value in valued if value is not None)])
    arguments = f" ARGS={shlex.quote(options)}" if options else ""
    return f"make preset NAME={given.name} {images}{arguments}".replace("\n", " ")


def report(name: str, found: Survey, choice: Choice) -> str:
    """Findings and choices, a line each."""
    source = found.source["init_args"]
    kind = f"{len(found.classes)} classes" if found.classes else "no labels: one class, an unconditional generator"
    share = f", a share of {source['held_out']} held out" if "held_out" in source else ""
    lines = [
        f"images: {source.get('root') or source['path']}, {kind}",
        f"splits: {found.count['train']} training and {found.count['validation']} validation images{share}",
        f"resolution: {choice.resolution} px, of a median shorter side of {found.shorter_side} px",
        f"size: {choice.size}, {choice.batch} images a step on {choice.devices} device(s)"
        + (f", {choice.steps} steps a stage for a quick look" if choice.steps else ""),
    ]
    if choice.resolution < min(found.shorter_side, RESOLUTIONS[-1]) and choice.size == "small":
        lines.append("without a GPU, 64 px train in minutes; ARGS='--resolution 128' takes more of an image")
    if found.unreadable:
        lines.append(f"{len(found.unreadable)} image(s) cannot be read and are left out, such as {found.unreadable[0]}")
    if choice.size == "large":
        lines.append("published networks are needed once, and metrics are compared with the training images")
    else:
        lines.append("evaluation: by EfficientNet-Lite2, of the extra `vision`")
    return "\n".join(lines)


def following(name: str, choice: Choice) -> list[str]:
    """The next commands."""
    if choice.size == "small":
        return [f"make demo PRESET={name}"]
    return ["make weights TEACHERS=clip_large_14", f"make curriculum PRESET={name}"]


def _power(most: float, images: int) -> int:
    """The largest power of two up to a number, and up to half of the images."""
    power = 1
    while 2 * power <= min(most, images / 2):
        power *= 2
    return power


def _shown(path: Path) -> Path:
    return path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.new_preset", __doc__)
    parser.add_argument("--name", default="", help="name of the preset: letters, digits, _ and -")
    parser.add_argument("--data", help="folder of images: train/ and val/, class folders, or images alone")
    parser.add_argument("--hub", help="Hugging Face data set: a folder that the library reads, or a name on the hub")
    parser.add_argument("--unlabelled", action="store_true", help="folders or the label column are no classes")
    parser.add_argument("--resolution", type=int, choices=RESOLUTIONS, help="pixels a side; by default chosen")
    parser.add_argument(
        "--size", choices=get_args(Size), help="small: minutes to hours, no network; large: the recipes' networks"
    )
    parser.add_argument("--no-flip", action="store_true", help="mirror no images: text, digits, left and right hands")
    parser.add_argument("--steps", type=whole_number(1), help="steps of each stage, for a quick look")
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
