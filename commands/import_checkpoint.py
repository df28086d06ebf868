"""Run of a released checkpoint: `python -m commands.import_checkpoint llamagen/vq_ds16_c2i --to RUN`.

The run is like one that was trained here: samples, evaluation, probes, report and `init_from` take it. A generator's
needs the run of its tokenizer, which is imported first. docs/model_zoo.md lists the checkpoints.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import yaml

from artifacts import yaml_files
from artifacts.completion import finish
from artifacts.lineage import LINEAGE
from artifacts.repository import PRESETS
from commands.program import new_parser, run
from polytoken import records
from polytoken.errors import UserError
from polytoken.files import check_free, new_folder, write_text
from polytoken.layout import CHECKPOINTS, LAST
from polytoken.loading import GENERATOR, GLOBAL_STEP, MODEL_CONFIG, Checkpoint
from polytoken.pretrained.released.convert import Source, generator_checkpoint, tokenizer_checkpoint

CONFIG = "config.yaml"


def import_checkpoint(
    source: Source, place: Path, preset: str, image_size: int | None = None, tokenizer_run: Path | None = None
) -> None:
    """Write the run: all of it, or nothing.

    Args:
        source: the released file.
        place: directory of the run, which must not exist, or be empty.
        preset: preset whose images the run is about.
        image_size: pixels a side of a tokenizer's images; None is that of the release.
        tokenizer_run: run of a generator's tokenizer.

    Raises:
        ExistingFileError: the place holds something.
        MissingFileError: there is no tokenizer's run.
        UserError: there is no such preset, the file is of another architecture, or its codes are not the tokenizer's.
    """
    check_free(place)
    data = _data(preset)
    if source.release.tokenizer is None:
        if tokenizer_run is not None:
            raise UserError(f"{source.name} is a tokenizer: leave out --tokenizer-run")
        size = source.release.image_size if image_size is None else image_size
        checkpoint = tokenizer_checkpoint(source, size)
    else:
        checkpoint = _generator(source, image_size, tokenizer_run)
    with new_folder(place) as folder:
        (folder / CHECKPOINTS).mkdir(parents=True)
        torch.save(checkpoint.content, folder / CHECKPOINTS / LAST)
        written = Checkpoint.open(folder)
        config: dict[str, Any] = {"run": {"preset": preset}, "model": checkpoint.content[MODEL_CONFIG]}
        if source.release.tokenizer is None:
            tokenizer = written.tokenizer()
            data["init_args"]["image_size"] = tokenizer.image_size
            config["data"] = data
        else:
            records.write(folder / LINEAGE, written.record.lineage)
        text = yaml.safe_dump(config, sort_keys=False)
        write_text(folder / CONFIG, text)
        files = [folder / CHECKPOINTS / LAST]
        finish(folder, "import", text, files, step=checkpoint.content[GLOBAL_STEP])


def _generator(source: Source, image_size: int | None, tokenizer_run: Path | None) -> Checkpoint:
    name = source.release.tokenizer
    if image_size is not None:
        raise UserError(f"the image size of {source.name} is that of its tokenizer: leave out --image-size")
    if tokenizer_run is None:
        size = source.release.image_size
        raise UserError(
            f"{source.name} writes codes of {name}: import that one (--image-size {size}), and name its run as "
            "--tokenizer-run"
        )
    tokenizer = Checkpoint.open(tokenizer_run).tokenizer()
    if tokenizer.image_size != source.release.image_size:
        raise UserError(
            f"{source.name} makes images of {source.release.image_size} pixels, and the tokenizer in {tokenizer_run} "
            f"has {tokenizer.image_size}: import it again with --image-size {source.release.image_size}"
        )
    checkpoint = generator_checkpoint(source, tokenizer, str(tokenizer_run))
    assert GENERATOR in checkpoint.content
    return checkpoint


def _data(preset: str) -> dict[str, Any]:
    file = PRESETS / preset / "tokenizer.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.parent.name for path in PRESETS.glob("*/tokenizer.yaml")))
        raise UserError(f"there is no preset {preset}: choose one of {known}, or make one (make preset)")
    return dict(yaml_files.read(file)["data"])


def work(given: Namespace) -> None:
    """Import, and print what to do with the run."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    check_free(given.to)
    source = Source.find(given.name, given.file, given.accept_license)
    import_checkpoint(source, given.to, given.preset, given.image_size, given.tokenizer_run)
    print(f"{given.name} is in {given.to}")


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.import_checkpoint", __doc__)
    parser.add_argument("name", help="checkpoint, as docs/model_zoo.md lists it")
    parser.add_argument("--to", type=Path, required=True, help="directory of the run, which must not exist or be empty")
    parser.add_argument("--file", type=Path, help="the released file; by default it is downloaded from the hub")
    parser.add_argument("--tokenizer-run", type=Path, help="run of a generator's tokenizer, imported before")
    parser.add_argument("--image-size", type=int, help="pixels a side of a tokenizer's images (default: the release's)")
    parser.add_argument("--preset", default="imagenet", help="preset of the images (default: %(default)s)")
    parser.add_argument("--accept-license", action="store_true", help="agree to a licence without commercial use")
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
