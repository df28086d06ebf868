"""What a tokenizer's run came to, in a few lines: `python -m commands.summary RUN_DIRECTORY`."""

from __future__ import annotations

import sys
from pathlib import Path

from artifacts.run_files import MetricsFile
from polytoken import records

NAMES = {
    "val/psnr": ("PSNR", "{:.2f} dB"),
    "val/ssim": ("SSIM", "{:.3f}"),
    "val/judge_accuracy_originals": ("judge on originals", "{:.1%}"),
    "val/judge_accuracy": ("judge on reconstructions", "{:.1%}"),
    "val/usage/0": ("codes used, codebook 1", "{:.0%}"),
    "val/usage/1": ("codes used, codebook 2", "{:.0%}"),
}


def main(directory: Path) -> None:
    """Print the validation figures and where the picture is."""
    sections = records.read_derived(directory / "metrics.json", MetricsFile) or {}
    metrics = sections["validate"]["metrics"] if "validate" in sections else {}
    for key, (name, form) in NAMES.items():
        if key in metrics:
            print(f"  {name:<26}{form.format(metrics[key])}")
    print(f"  originals over reconstructions: {directory / 'reconstructions.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
