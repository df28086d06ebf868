"""Model of a run as a folder for other code: `python -m commands.export runs/digits/stage2/fq_dual --to mine/digits`.

The folder holds weights, configuration and a model card; `polytoken.from_pretrained` loads it without the suite. Of a
generator's run it is a pipeline, with the tokenizer. See docs/exchange.md.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from commands.program import new_parser, run
from commands.report.model_card import model_card
from polytoken.files import check_free, new_folder, write_text
from polytoken.loading import GENERATOR, Checkpoint, present_run
from polytoken.pretrained import from_pretrained, save_pretrained
from polytoken.pretrained.programs import write_onnx, write_programs

CARD = "README.md"
OWN_LICENCE = "apache-2.0"
FOLDER = "safetensors"
WRITERS = {FOLDER: lambda model, folder: [], "pt2": write_programs, "onnx": write_onnx}


def export(
    run_directory: Path,
    place: Path,
    tokenizer_run: Path | None = None,
    licence: str | None = None,
    form: str = FOLDER,
) -> None:
    """Write the folder: all of it, or nothing.

    Args:
        run_directory: a run, or one of its checkpoints.
        place: the folder, which must not exist, or be empty.
        tokenizer_run: present place of a generator's tokenizer, if it is not found.
        licence: of the weights, as the hub writes it; None is that of the released weights that they are or were
            trained from, or apache-2.0.
        form: what to add to the folder: nothing, programs of torch.export, or ONNX files.

    Raises:
        ExistingFileError: the place holds something.
        MissingFileError: there is no checkpoint.
        UserError: the run is neither a tokenizer's nor a generator's, or what was written does not load.
    """
    check_free(place)
    checkpoint = of_tokenizer = Checkpoint.open(run_directory)
    if GENERATOR in checkpoint.content:
        of_tokenizer = Checkpoint.open(tokenizer_run or present_run(checkpoint.record.tokenizer_run, checkpoint.path))
    with new_folder(place) as folder:
        save_pretrained(checkpoint.path, folder, of_tokenizer.path)
        licence = licence or licence_of(checkpoint, of_tokenizer)
        model = from_pretrained(folder)
        WRITERS[form](model, folder)
        card = model_card(model, place.name, licence, checkpoint, of_tokenizer)
        write_text(folder / CARD, card)


def licence_of(*checkpoints: Checkpoint) -> str:
    """Licence of the weights of runs: the strictest of the released ones in them, or that of this project."""
    released = [checkpoint.released for checkpoint in checkpoints if checkpoint.released]
    strictest = max(released, key=lambda origin: origin.non_commercial, default=None)
    return strictest.licence_on_hub if strictest else OWN_LICENCE


def work(given: Namespace) -> None:
    """Export, and print the place."""
    export(given.run, given.to, given.tokenizer_run, given.license, given.format)
    print(f'the model is in {given.to}; polytoken.from_pretrained("{given.to}") loads it')


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.export", __doc__)
    parser.add_argument("run", type=Path, help="directory of a tokenizer's or a generator's run, or a checkpoint")
    parser.add_argument("--to", type=Path, required=True, help="the folder, which must not exist or be empty")
    parser.add_argument("--tokenizer-run", type=Path, help="run of a generator's tokenizer, if it has moved")
    formats = "pt2 adds programs that need torch alone, onnx the tokenizer for other engines (default: %(default)s)"
    parser.add_argument("--format", choices=WRITERS, default=FOLDER, help=formats)
    licences = f"licence of the weights (default: that of released ones in them, or {OWN_LICENCE})"
    parser.add_argument("--license", help=licences)
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
