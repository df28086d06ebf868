"""Input of a report: a tokenizer with curves and a picture, evaluated samples, results of an experiment."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

_WORDS = {"original_accuracy": 1, "original_similarity": 1, "accuracy": 0.25, "similarity": 0.5}
FIDELITY = {  # content of fidelity.json
    "text": [{"pixels": 8, "n": 1200, **_WORDS}, {"pixels": 16, "n": 1200, **_WORDS, "accuracy": 0.75}],
    "faces": [{"pixels": 32, "n": 100, "similarity": 0.75, "others": 0.5, "identified": 0.9}],
    "image_size": 64,
    "reader": {"name": "a reader", "sha256": "0"},
}
ROWS = {  # label: rFD and gFD of two seeds
    "single, from scratch": ([0.060, 0.058], [0.46, 0.48]),
    "dual, from scratch": ([0.045, 0.044], [0.37, 0.36]),
    "dual, staged, noise 0.1": ([0.045, 0.044], [0.25, 0.27]),
}


def write_measured_runs(root: Path, pixels: int = 4) -> Path:
    """Write runs below ``root``, with pictures of a given width; returns the root of all runs."""
    run = root / "runs/digits/tokenizer/fq_dual"
    writer = SummaryWriter(str(run))
    for step in range(0, 1000, 10):
        writer.add_scalar("train/loss", 1 / (step + 1), step)
        for codebook in range(2):
            writer.add_scalar(f"val/usage/{codebook}", step / 1000, step)
    writer.close()
    Image.fromarray(np.zeros((4, pixels, 3), np.uint8)).save(run / "reconstructions.png")
    (run / "config.yaml").write_text(
        "seed_everything: 7\ntrainer: {max_steps: 1000, devices: '8'}\nmodel: {class_path: a.B}\n"
        "data: {init_args: {batch_size: 32}}\n# <b>\n"
    )
    measured = {"val/psnr": 24.7812, "val/ssim": None}
    section = {"global_step": 1000, "n": 355, "metrics": measured, "versions": {"torch": "2.15"}}
    (run / "metrics.json").write_text(json.dumps({"validate": {**section, "machine": "a PC", "commit": "abc"}}))

    samples = root / "runs/digits/samples/fq_dual"
    samples.mkdir(parents=True)
    Image.fromarray(np.zeros((4, pixels, 3), np.uint8)).save(samples / "grid.png")
    settings = {
        "num_images": 500,
        "classes": "balanced",
        "seed": 0,
        "sampler": {"guidance": 2.0},
        "generator": {"run": "runs/digits/stage2/fq_dual", "step": 2000},
    }
    (samples / "samples.json").write_text(json.dumps({"settings": settings}))
    figures = {
        "samples": {
            "recognised/judge": {"value": 0.934, "n": 500},
            "gis/judge": {"value": 8.5, "n": 500},
            "gfd/judge": {"value": 0.1234, "n": 500, "reference_n": 355},
        },
        "validation": {"recognised/judge": {"value": 0.98, "n": 355}, "is/judge": {"value": 9.0, "n": 355}},
    }
    evaluated = {
        **{"metrics": figures, "samples": {"n": 500}, "extractor": {"name": "judge", "sha256": None}},
        **{"reference": {"reference": "digits images"}, "notes": ["a <note>"]},
    }
    (samples / "metrics.json").write_text(json.dumps({"evaluate": evaluated}))
    return root / "runs"


def write_results(runs: Path, name: str = "ssq/table5", preset: str = "digits", **changes: Any) -> None:
    """Write the results of one experiment as `python -m experiments` does."""
    figures = [
        {
            **{"experiment": name, "row": row, "seed": seed, "metric": metric, "value": value, "n": 355},
            **{"protocol": "as told", "run": "a/run", "commit": "def", "machine": "a cluster"},
        }
        for row, columns in ROWS.items()
        for metric, values in zip(("val/rfd/judge", "gfd/judge"), columns, strict=True)
        for seed, value in enumerate(values)
    ]
    head = ["", "gFD (judge) ↓", "paper: gFID", "judge score ↑", "paper: IS", "recognised ↑", "joint NLL (bits) ↓"]
    rows = [[row, f"{columns[1][0]:g} ± 0.01", "3.80", "—", "248.28", "87 %", "50.5"] for row, columns in ROWS.items()]
    content = {
        **{"experiment": name, "title": "SSQ Table 5: stages | noise", "preset": preset},
        "tables": [{"caption": "6 of 6 runs", "head": head, "rows": rows}],
        **{"comparisons": [], "records": figures},
        **changes,
    }
    file = runs / "experiments" / "results" / f"{name}_{preset}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
