"""One-screen summary of a tokenizer run: `python -m commands.summary RUN_DIRECTORY`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from artifacts.run_files import METRICS, MetricsFile
from commands.program import new_parser, run
from polytoken import records
from polytoken.errors import UserError

NAMES = {
    "val/psnr": ("PSNR", "{:.2f} dB"),
    "val/ssim": ("SSIM", "{:.3f}"),
    "val/judge_accuracy_originals": ("judge on originals", "{:.1%}"),
    "val/judge_accuracy": ("judge on reconstructions", "{:.1%}"),
    "val/usage/0": ("codes used, codebook 1", "{:.0%}"),
    "val/usage/1": ("codes used, codebook 2", "{:.0%}"),
}


def work(given: Namespace) -> None:
    """Print the metrics of the validation, and the place of the plot."""
    file = given.run / METRICS
    if "validate" not in (sections := records.read(file, MetricsFile)):
        raise UserError(f"{file} has no section validate: train the run to its end, or validate it")
    metrics = sections["validate"]["metrics"]
    for key, (name, form) in NAMES.items():
        if metrics.get(key) is not None:
            print(f"  {name:<26}{form.format(metrics[key])}")
    print(f"  originals over reconstructions: {given.run / 'reconstructions.png'}")


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.summary", __doc__)
    parser.add_argument("run", type=Path, help="run directory of a tokenizer")
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
