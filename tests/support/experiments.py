"""An experiment of two rows on the digits, and a program that stands in for cli.py."""

from pathlib import Path
from textwrap import dedent

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

# Writes what a fit writes, after as many starts as TRAIN says; a row with batches of 13 fails.
PROGRAM = dedent("""\
    import json, os, pathlib, sys, yaml

    given = dict(zip(sys.argv[2::2], sys.argv[3::2]))  # the last --config counts
    overrides = yaml.safe_load(open(given["--config"]))
    run = pathlib.Path(given["--run.root"], given["--run.preset"], given["--run.stage"])
    print("started", flush=True)
    with open("starts.txt", "a") as starts:
        print(run, file=starts)
    if overrides["data"]["init_args"]["batch_size"] == 13:
        print("Traceback\\nValueError: thirteen")
        sys.exit(3)
    if os.environ.get("KILL"):
        (run / "checkpoints").mkdir()
        (run / "checkpoints/last.ckpt").touch()
        (run / "metrics.json").write_text('{"fit": {"metrics": {}}}')
        os.kill(os.getpid(), 9)
    psnr = 20.0 + int(given["--seed_everything"])
    metrics = {"val/psnr": psnr, "val/usage/0": 0.5, "val/usage/1": 1.0}
    (run / "metrics.json").write_text(json.dumps({"validate": {"metrics": metrics}}))
    """)


def write_experiment(directory: Path, *changes: tuple[str, str]) -> Path:
    """The experiment, with some of its text replaced."""
    text = TEXT
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    file = directory / "paper" / "table.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file
