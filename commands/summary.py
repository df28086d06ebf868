"""Metrics of a finished run on one screen: `python -m commands.summary RUN_DIRECTORY`."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from artifacts.run_files import METRICS, MetricsFile
from commands.program import new_parser, run
from polytoken import records

# regular expression of a metric, its name with the groups of the expression, and its format
NAMES = (
    (r"val/psnr", "PSNR", "{:.2f} dB"),
    (r"val/ssim", "SSIM", "{:.3f}"),
    (r"val/lpips/(\w+)", "LPIPS by {}", "{:.3f}"),
    (r"val/rfid/(\w+)", "rFID by {}", "{:.2f}"),
    (r"val/rfd/(\w+)", "Fréchet distance by {}", "{:.3f}"),
    (r"val/judge_accuracy_originals", "originals recognised", "{:.1%}"),
    (r"val/judge_accuracy", "reconstructions recognised", "{:.1%}"),
    (r"val/usage/(\d+)", "codes of sub-code {} in use", "{:.0%}"),
    (r"val/nll", "nats a sub-code", "{:.3f}"),
    (r"val/nll_bound", "nats a sub-code, at most", "{:.3f}"),
    (r"val/nll(?:_bound)?/(\d+)", "nats of sub-code {}", "{:.3f}"),
    (r"val/bits_per_image(?:_bound)?", "bits an image", "{:.1f}"),
    (r"val/loss", "loss", "{:.4f}"),
    (r"val/accuracy", "accuracy", "{:.1%}"),
    (r"val/error", "error", "{:.4f}"),
    (r"val/cider_d", "CIDEr-D", "{:.1f} %"),
    (r"val/bleu_(\d)", "BLEU-{}", "{:.1f} %"),
)


def lines(metrics: dict[str, float | None]) -> Iterator[str]:
    """A line for each metric that has a name above, in that order."""
    for pattern, name, form in NAMES:
        for key, value in metrics.items():
            if value is not None and (found := re.fullmatch(pattern, key)):
                yield f"  {name.format(*found.groups()):<30}{form.format(value)}"


def work(given: Namespace) -> None:
    """Print the metrics of the last validation, and the place of the pictures."""
    file = given.run / METRICS
    validated = records.read(file, MetricsFile).get("validate")
    for line in lines(validated["metrics"]) if validated else ["  not validated"]:
        print(line)
    if (picture := given.run / "reconstructions.png").exists():
        print(f"  originals over reconstructions: {picture}")


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.summary", __doc__)
    parser.add_argument("run", type=Path, help="directory of a run")
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
