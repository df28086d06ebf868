"""FLOPs of generators per image and in training: `python -m commands.compute --run runs/digits/dit/ifsq`.

Counts a forward pass, and forward and backward, of one image with torch's counter; nothing is computed. The total is
that of the images that the run was trained on. Frozen networks, a projector of alignment and the optimizer are left
out. See docs/evaluation.md, "Compute".
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from commands.program import new_parser, print_table, run
from datamodules.resumable import Position, images_until
from polytoken import records
from polytoken.errors import UserError
from polytoken.loading import Checkpoint
from polytoken.metrics.compute import Compute, image_compute

HALF, FULL = "half of full attention in causal layers (iFSQ section 4.1.4)", "full attention in all layers"


def compute_of(checkpoint: Checkpoint, halve_causal: bool = True) -> Compute:
    """FLOPs per image of the generator of a checkpoint.

    Raises:
        UserError: if it is not a generator's.
    """
    return image_compute(checkpoint.outline(), halve_causal)


def images_trained(checkpoint: Checkpoint) -> int:
    """Images that a run was trained on until this checkpoint, of all ranks, each as often as it was seen.

    Raises:
        UserError: if the checkpoint has no position in a training stream.
    """
    for state in checkpoint.content.values():  # the data module's, under its name
        if isinstance(state, dict) and {"batches_trained", "global_batch_size"} <= state.keys():
            return images_until(records.decode(state, Position, f"the data module in {checkpoint.path}"))
    raise UserError(f"{checkpoint.path} does not say how many images it was trained on: name a run of cli.py")


def work(given: Namespace) -> None:
    """Print a row per run."""
    rows = []
    for directory in given.run:
        checkpoint = Checkpoint.open(directory)
        found, images = compute_of(checkpoint, not given.full_attention), images_trained(checkpoint)
        row = [found.forward / 1e9, found.attention / 1e9, found.training / 1e9, found.training * images / 1e15]
        rows.append([str(directory), *(f"{value:.5g}" for value in row[:3]), f"{images:,}", f"{row[3]:.4g}"])
    print_table(
        "FLOPs, two for a multiply-add",
        ["run", "forward\nGFLOP", "attention\nGFLOP", "training\nGFLOP", "images\ntrained", "total\nPFLOP"],
        rows,
        [f"attention: {FULL if given.full_attention else HALF}"],
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the program."""
    parser = new_parser("commands.compute", __doc__)
    parser.add_argument("--run", type=Path, nargs="+", required=True, help="runs or checkpoints of generators")
    parser.add_argument("--full-attention", action="store_true", help="count causal attention in full, not as half")
    run(parser, work, arguments)


if __name__ == "__main__":
    main()
