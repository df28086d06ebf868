"""Experiments of a few rows on the digits, and a program in place of cli.py."""

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

from artifacts.results import Record
from experiments.specification import Experiment, load

TEXT = dedent("""\
    title: Two rows
    paper: {name: P, table: "1", source: nowhere, columns: [rFID, gFID]}
    metrics:
      - {name: val/psnr, label: PSNR, direction: up, paper: rFID}
      - {name: val/usage/*, label: codes used, direction: up}
    presets: [digits]
    shared:
      tokenizer:
        trainer.max_steps: 2
        trainer.val_check_interval: 2
        trainer.limit_val_batches: 2
        data.init_args.batch_size: 4
    rows:
      - label: plain
        paper: {rFID: 3.5, gFID: 7}
        stages:
          - {stage: tokenizer, recipe: vq, preset_file: tokenizer}
      - label: without pictures
        stages:
          - stage: tokenizer
            recipe: vq
            preset_file: tokenizer
            overrides:
              model.init_args.objective.perceptual: null
              model.init_args.objective.adversarial: null
    """)

# Three rows on one tokenizer: a generator from scratch, and two second stages on one first stage.
STAGED = dedent("""\
    title: Three rows
    paper: {name: P, table: "2", source: nowhere, columns: [gFID]}
    metrics:
      - {name: gfd/judge, label: gFD, direction: down, paper: gFID}
      - {name: val/nll, label: NLL, direction: down}
      - {name: val/psnr, label: PSNR, direction: up}
    presets: [digits]
    shared:
      tokenizer: {trainer.max_steps: 2, model.init_args.objective.adversarial: null}
      stage2: {trainer.max_steps: 3}
    rows:
      - label: from scratch
        stages:
          - &tokenizer {stage: tokenizer, recipe: fq_dual, preset_file: tokenizer}
          - stage: tokens
          - {stage: generator, recipe: far_base}
          - stage: samples
      - label: staged
        paper: {gFID: 3.5}
        stages:
          - *tokenizer
          - stage: tokens
          - stage: stage1
          - {stage: stage2, overrides: {model.init_args.generator.init_args.noise: null}}
          - stage: samples
      - label: noisy
        stages:
          - *tokenizer
          - stage: tokens
          - stage: stage1
          - {stage: stage2, overrides: {data.init_args.batch_size: 8}}
          - stage: samples
    """)

# Writes the files of cli.py and of the evaluation; batches of 13 fail.
PROGRAM = dedent("""\
    import json, os, pathlib, sys, time, yaml

    def mark(run, *files):
        (run / "done.json").write_text(json.dumps({"command": "", "config": "", "files": dict.fromkeys(files, "0f")}))

    if sys.argv[1] == "--samples":
        figures = {"samples": {"gfd/judge": {"value": 7.5, "n": 40}}}
        about = {
            "samples": {"sha256": "0f", "settings": {"sampler": {"guidance": 2.0, "top_k": None}}},
            "extractor": {"name": "judge", "sha256": "0123456789"},
            "reference": {"reference": "validation images", "reference_n": 30},
            "notes": [],
        }
        record = {"evaluate": {"metrics": figures, **about}}
        pathlib.Path(sys.argv[2]).with_name("metrics.json").write_text(json.dumps(record))
        sys.exit()
    given = dict(zip(sys.argv[2::2], sys.argv[3::2]))  # the last --config counts
    overrides = yaml.safe_load(open(given["--config"]))
    run = pathlib.Path(given["--run.root"], given["--run.preset"], given["--run.stage"])
    print("started", flush=True)
    with open("starts.txt", "a") as starts:
        print(run, file=starts)
    if overrides.get("data", {}).get("init_args", {}).get("batch_size") == 13:
        print("Traceback\\nValueError: thirteen")
        sys.exit(3)
    while len(open("starts.txt").readlines()) < int(os.environ.get("MEET", 0)):
        time.sleep(0.01)
    time.sleep(float(os.environ.get("PAUSE", 0)))
    if os.environ.get("KILL"):
        (run / "checkpoints").mkdir()
        (run / "checkpoints/last.ckpt").touch()
        (run / "metrics.json").write_text('{"fit": {"metrics": {}}}')
        os.kill(os.getpid(), 9)
    kind = given["--run.stage"].split("/")[0]
    if kind == "tokens":
        for split in ("train", "validation"):
            (run / split).mkdir()
            (run / split / "manifest.json").touch()
        mark(run, "train/manifest.json", "validation/manifest.json")
    elif kind == "samples":
        (run / "samples.npz").touch()
        mark(run, "samples.npz")
    else:
        psnr = 20.0 + int(given["--seed_everything"])
        metrics = {"val/psnr": psnr, "val/usage/0": 0.5, "val/usage/1": 1.0} if kind == "tokenizer" else {}
        nll = {"stage1": {"val/nll": 4.0}, "stage2": {"val/nll": 2.0}, "generator": {"val/nll": None}}.get(kind, {})
        section = {"metrics": {**metrics, **nll}, **({"n": 30} if nll else {})}
        section |= {"global_step": 600, "commit": "abc", "machine": "a PC"}
        (run / "metrics.json").write_text(json.dumps({"validate": section}))
        mark(run, "metrics.json")
    """)


def write_experiment(directory: Path, *changes: tuple[str, str], text: str = TEXT) -> Path:
    """Write an experiment, with parts of its text replaced."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    file = directory / "paper" / "table.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def load_rows(place: Path, rows: list[dict[str, Any]], text: str = TEXT) -> Experiment:
    """The experiment of the text with other rows."""
    return load(str(write_experiment(place, text=text.split("rows:")[0] + f"rows: {json.dumps(rows)}\n")))


def psnr_records(**values: list[float]) -> list[Record]:
    """Records of `val/psnr` by row, a value for each seed."""
    return [
        Record(experiment="paper/table", row=row, seed=seed, metric="val/psnr", value=value)
        for row, column in values.items()
        for seed, value in enumerate(column)
    ]
