"""A small file of every kind that the project reads, left by runs of a few steps, and the programs that read it."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed.checkpoint as sharded
import yaml
from datasets import Dataset, DatasetDict
from datasets import Image as ImageFeature
from PIL import Image

import cli
from commands import (
    class_vectors,
    codes,
    compute,
    consolidate,
    curve,
    dependency,
    evaluate,
    export,
    import_checkpoint,
    layers,
    probe,
    recovery,
    reference,
    summary,
    sweep,
    tokens_check,
    zero_shot,
)
from commands.program import new_parser, run
from commands.report.__main__ import main as report
from datamodules import CaptionedFolder, FolderSource, HubSource, ImageDataModule, WebDatasetSource
from datamodules.sources.base import ImageSource
from experiments import start
from experiments.__main__ import main as experiments
from experiments.specification import load
from experiments.tasks import expand
from polytoken.pretrained import from_pretrained
from polytoken.teachers import SmallVisionTransformer, Teacher
from polytoken.teachers.text import SmallTextTransformer
from tests.support.experiments import write_experiment
from tests.support.generated import write_representation_run
from tests.support.generator_recipes import tiny
from tests.support.own_images import write_shards
from tests.support.recipes import CONFIGS, digits, write_judge
from tests.support.released import small_state
from tests.support.reports import FIDELITY, write_measured_runs, write_results

Program = Callable[[list[str]], Any]

RUNS = Path("runs/digits")
TOKENIZER, TOKENS, STAGE1, STAGE2, SAMPLES = (
    RUNS / name / "vq" for name in ("tokenizer", "tokens", "stage1", "stage2", "samples")
)
MEASURED, IDEAL, TEACHERS = RUNS / "tokenizer/fq_dual", RUNS / "tokenizer/ideal", RUNS / "teacher"
NAMES = {str(digit): word for digit, word in enumerate("zero one two three four five six seven eight nine".split())}
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
SMALL = [
    *("--trainer.val_check_interval", "2", "--trainer.limit_val_batches", "1", "--data.init_args.batch_size", "4"),
    *("--model.init_args.tokenizer.init_args.channel_multipliers", "[1, 1, 1, 1]"),
    *("--model.init_args.tokenizer.init_args.latent_channels", "32"),
    *("--model.init_args.objective.adversarial.start_step", "1"),
    *("--model.init_args.objective.adversarial.discriminator.init_args.base_channels", "8"),
]


def _predict(stage: str) -> list[str]:
    files = (CONFIGS / f"{stage}.yaml", CONFIGS / f"presets/digits/{stage}.yaml")
    return ["predict", *(part for file in files for part in ("--config", str(file))), *QUIET]


def _fit(stage: str, steps: int, *more: str) -> list[str]:
    stage_of = ["--run.stage", f"{stage}/vq", *QUIET, "--trainer.max_steps", str(steps)]
    if stage == "tokenizer":
        return ["fit", *digits("vq", TEACHERS / "judge.safetensors"), *more, *SMALL, *stage_of]
    return ["fit", *tiny(stage, TOKENS), "--trainer.limit_val_batches", "1", *stage_of, *more]


FEW = ["--data.init_args.num_images", "12", "--data.init_args.batch_size", "6", "--data.init_args.part_size", "6"]
FIT_TOKENIZER = _fit("tokenizer", 4)
PREDICT_TOKENS = [*_predict("tokens"), "--model.init_args.tokenizer_run", str(TOKENIZER), "--run.stage", "tokens/vq"]
FIT_STAGE1, FIT_STAGE2 = _fit("stage1", 4), _fit("stage2", 4, "--model.init_args.init_from", str(STAGE1))
PREDICT_SAMPLES = [*_predict("sample"), *FEW, "--model.init_args.generator_run", str(STAGE2), "--run.stage"]
EVALUATE = ["--samples", str(SAMPLES / "samples.npz")]
LAYERS = ["--run", str(STAGE2), "--max-images", "12"]
SWEEP = ["--run", str(STAGE2), "--guidance", "1.5", "--num-images", "12", "--batch-size", "6"]
CURVE = ["--curve", "ours", str(STAGE2), "--num-images", "12", "--batch-size", "6"]
PROBE = ["--run", str(TOKENIZER), "--max-train", "40", "--neighbours", "3"]
RECOVER = ["--run", str(TOKENIZER), "--steps", "2", "--batch-size", "4", "--max-images", "12"]
ZERO_SHOT = ["--run", str(IDEAL), "--classes", str(TEACHERS / "classes.safetensors"), "--max-images", "20"]
JUDGED = ["--extractor", "judge", "--weights", str(TEACHERS / "judge.safetensors")]
CODES = ["--run", str(TOKENIZER), "--max-images", "12", "--delta", "4", *JUDGED]
MEASURE = ["--npz", str(SAMPLES / "samples.npz"), *JUDGED]
REFERENCE = RUNS / "reference/samples_judge.npz"
RELEASED = "released/vq_ds16_c2i.pth"
IMPORT = ["llamagen/vq_ds16_c2i", "--file", RELEASED, "--to", str(RUNS / "tokenizer/imported"), "--preset", "digits"]
TABLE = ["show", "paper/table.yaml", "--seeds", "1", "--root", "runs/experiments"]


def read_images(arguments: list[str]) -> None:
    """Read every batch of a source, as training and validation do."""
    parser = new_parser("tests.fuzz", None)
    parser.add_argument("kind", choices=("folder", "hub", "shards", "captions", "lines"))

    def work(given: Any) -> None:
        sources: dict[str, Callable[[], ImageSource]] = {
            "folder": lambda: FolderSource("images"),
            "hub": lambda: HubSource("hub"),
            "shards": lambda: WebDatasetSource("shards"),
            "captions": lambda: CaptionedFolder("captioned", "captions.json"),
            "lines": lambda: CaptionedFolder("captioned"),
        }
        source = sources[given.kind]()
        data = ImageDataModule(source, image_size=16, batch_size=2, num_workers=0, max_bad_fraction=1.0)
        data.setup("fit")
        for loader in (data.train_dataloader(), data.val_dataloader()):
            for batch in loader:
                assert batch["image"].isfinite().all()
        if isinstance(source, CaptionedFolder):
            for split in ("train", "validation"):
                found = source.split(split)  # type: ignore[arg-type]
                assert all(found.captions(index) for index in range(len(found)))

    with mock.patch.dict(os.environ, XDG_CACHE_HOME=str(Path.cwd())):  # of the index of shards
        run(parser, work, arguments)


def load_exported(arguments: list[str]) -> None:
    """Load the exported pipeline."""

    def work(given: Any) -> None:
        from_pretrained("exported")

    run(new_parser("tests.fuzz", None), work, arguments)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        name: in the summary.
        files: a pattern below the corpus; each mutation takes one of its files.
        readers: programs with their arguments, of which each mutation runs one.
        trusted: it may name any class, as a recipe does.
    """

    name: str
    files: str
    readers: tuple[tuple[Program, list[str]], ...]
    trusted: bool = False


_TOKENIZER_READERS = ((cli.main, PREDICT_TOKENS), (probe.main, PROBE), (tokens_check.main, [str(TOKENS)]))
_GENERATOR_READERS = (
    (cli.main, [*PREDICT_SAMPLES, "samples/new"]),
    (layers.main, LAYERS),
    (compute.main, ["--run", str(STAGE2)]),
)
_REPORT = ((report, []),)
KINDS = (
    Kind("recipe", "recipe.yaml", ((cli.main, _fit("tokenizer", 4, "--config", "recipe.yaml")),), trusted=True),
    Kind(
        "config.yaml",
        f"{RUNS}/*/*/config*.yaml",
        (
            (layers.main, LAYERS),
            (probe.main, PROBE),
            (report, []),
            (tokens_check.main, [str(TOKENS)]),
            (zero_shot.main, ZERO_SHOT),
            (cli.main, FIT_TOKENIZER),
        ),
    ),
    Kind("experiment", "paper/table.yaml", ((experiments, TABLE), (experiments, ["status", *TABLE[1:]]))),
    Kind(
        "tokenizer checkpoint", f"{TOKENIZER}/checkpoints/last.ckpt", ((cli.main, FIT_TOKENIZER), *_TOKENIZER_READERS)
    ),
    Kind(
        "generator checkpoint",
        f"{STAGE2}/checkpoints/last.ckpt",
        ((cli.main, FIT_STAGE2), *_GENERATOR_READERS, (curve.main, CURVE), (sweep.main, SWEEP)),
    ),
    Kind("init_from", f"{STAGE1}/checkpoints/last.ckpt", ((cli.main, [*FIT_STAGE2, "--run.stage", "stage2/new"]),)),
    Kind(
        "sharded checkpoint",
        "sharded/*",
        ((consolidate.main, ["sharded"]), (cli.main, [*FIT_TOKENIZER, "--ckpt_path", "sharded"])),
    ),
    Kind("judge", f"{TEACHERS}/judge.safetensors", ((evaluate.main, EVALUATE), (cli.main, FIT_TOKENIZER))),
    Kind("teacher", f"{TEACHERS}/high.safetensors", ((layers.main, LAYERS),)),
    Kind("foundation model", f"{TEACHERS}/dual.safetensors", ((zero_shot.main, ZERO_SHOT),)),
    Kind(
        "text tower",
        f"{TEACHERS}/text.safetensors",
        ((class_vectors.main, ["--text", f"{TEACHERS}/text.safetensors"]),),
    ),
    Kind("class vectors", f"{TEACHERS}/classes.safetensors", ((zero_shot.main, ZERO_SHOT),)),
    Kind(
        "class names",
        "names.yaml",
        ((class_vectors.main, ["--text", f"{TEACHERS}/text.safetensors", "--classes", "names.yaml"]),),
    ),
    Kind(
        "prompts",
        "prompts.txt",
        ((class_vectors.main, ["--text", f"{TEACHERS}/text.safetensors", "--prompts", "prompts.txt"]),),
    ),
    Kind(
        "token manifest",
        f"{TOKENS}/*/manifest.json",
        (
            (cli.main, FIT_STAGE1),
            (tokens_check.main, [str(TOKENS)]),
            (dependency.main, ["--store", str(TOKENS)]),
            (cli.main, PREDICT_TOKENS),
        ),
    ),
    Kind("verified.json", f"{TOKENS}/*/verified.json", ((cli.main, FIT_STAGE1),)),
    Kind(
        "token shard",
        f"{TOKENS}/*/*.arrow",
        ((cli.main, FIT_STAGE1), (tokens_check.main, [str(TOKENS)]), (dependency.main, ["--store", str(TOKENS)])),
    ),
    Kind(
        "samples.npz",
        f"{SAMPLES}/samples.npz",
        ((evaluate.main, EVALUATE), (reference.main, MEASURE), (cli.main, [*PREDICT_SAMPLES, "samples/vq"])),
    ),
    Kind(
        "samples.json",
        f"{SAMPLES}/samples.json",
        ((evaluate.main, EVALUATE), (cli.main, [*PREDICT_SAMPLES, "samples/vq"]), *_REPORT),
    ),
    Kind("sample parts", f"{RUNS}/samples/parts/parts/*", ((cli.main, [*PREDICT_SAMPLES, "samples/parts"]),)),
    Kind("reference", str(REFERENCE), ((evaluate.main, [*EVALUATE, "--reference", str(REFERENCE), "--force"]),)),
    Kind(
        "metrics.json",
        f"{RUNS}/*/*/metrics.json",
        (*_REPORT, (summary.main, [f"{RUNS}/tokenizer/fq_dual"]), (evaluate.main, EVALUATE), (cli.main, FIT_TOKENIZER)),
    ),
    Kind("kept.json", f"{STAGE2}/kept.json", ((cli.main, FIT_STAGE2), (curve.main, CURVE))),
    Kind("lineage.json", f"{RUNS}/*/vq/lineage.json", (*_REPORT, (cli.main, FIT_STAGE2))),
    Kind("probes.json", f"{TOKENIZER}/probes.json", (*_REPORT, (probe.main, PROBE))),
    Kind("codes.json", f"{TOKENIZER}/codes.json", (*_REPORT, (codes.main, CODES))),
    Kind("recovery.json", f"{TOKENIZER}/recovery.json", (*_REPORT, (recovery.main, RECOVER))),
    Kind("fidelity.json", f"{MEASURED}/fidelity.json", _REPORT),
    Kind("zero_shot.json", f"{IDEAL}/zero_shot.json", _REPORT),
    Kind("layers.json", f"{STAGE2}/layers.json", (*_REPORT, (layers.main, LAYERS))),
    Kind("sweep.json", f"{STAGE2}/sweep.json", (*_REPORT, (sweep.main, SWEEP))),
    Kind("curve.json", f"{STAGE2}/curve.json", (*_REPORT, (curve.main, CURVE))),
    Kind("dependency.json", f"{TOKENS}/dependency.json", (*_REPORT, (dependency.main, ["--store", str(TOKENS)]))),
    Kind("captions.json", f"{RUNS}/caption_stage2/vq/captions.json", _REPORT),
    Kind("exported configuration", "exported/**/config.json", ((load_exported, []),)),
    Kind("exported weights", "exported/*/model.safetensors", ((load_exported, []),)),
    Kind("released checkpoint", RELEASED, ((import_checkpoint.main, [*IMPORT, "--image-size", "32"]),)),
    Kind("experiment results", "runs/experiments/results/*/*.json", _REPORT),
    Kind(
        "stage of an experiment",
        "runs/experiments/digits/**/*.json",
        ((experiments, TABLE), (experiments, ["status", *TABLE[1:]])),
    ),
    Kind("events", f"{RUNS}/*/*/events*", _REPORT),
    Kind("picture", f"{RUNS}/*/*/*.png", _REPORT),
    Kind("image", "images/*/*/*.png", ((read_images, ["folder"]),)),
    Kind("hub data set", "hub/**/*.*", ((read_images, ["hub"]),)),
    Kind("tar shard", "shards/*.tar", ((read_images, ["shards"]),)),
    Kind("caption file", "captioned/captions.json", ((read_images, ["captions"]),)),
    Kind("caption lines", "captioned/captions.jsonl", ((read_images, ["lines"]),)),
)


STAGES: tuple[tuple[Program, list[str]], ...] = (
    (cli.main, _fit("tokenizer", 2)),
    (cli.main, PREDICT_TOKENS),
    (cli.main, _fit("stage1", 2)),
    (cli.main, _fit("stage2", 2, "--model.init_args.init_from", str(STAGE1))),
    (cli.main, [*PREDICT_SAMPLES, "samples/vq"]),
    (cli.main, [*PREDICT_SAMPLES, "samples/parts", "--trainer.limit_predict_batches", "1"]),
    (evaluate.main, EVALUATE),
    (reference.main, [*MEASURE, "--output", str(REFERENCE), "--images", "4"]),
    (layers.main, LAYERS),
    (sweep.main, SWEEP),
    (curve.main, CURVE),
    (probe.main, PROBE),
    (codes.main, CODES),
    (recovery.main, RECOVER),
    (dependency.main, ["--store", str(TOKENS)]),
    (export.main, [str(STAGE2), "--to", "exported"]),
)


def quick(directory: Path) -> list[Kind]:
    """Kinds that an untrained corpus holds, with the programs that take half a second."""
    programs = (report, experiments, read_images, class_vectors.main, summary.main, import_checkpoint.main)
    found = [replace(kind, readers=tuple(one for one in kind.readers if one[0] in programs)) for kind in KINDS]
    return [kind for kind in found if kind.readers and any(directory.glob(kind.files))]


def make(directory: Path, trained: bool = True) -> None:
    """Write the corpus into a new directory.

    Args:
        directory: the working directory of the programs.
        trained: also the files that runs of two steps leave, which take a minute.
    """
    directory.mkdir(parents=True)
    torch.manual_seed(0)
    with inside(directory):
        write_judge(TEACHERS / "judge.safetensors")
        _text_tower()
        _written_by_people()
        _released()
        if trained:
            for program, arguments in STAGES:
                program(arguments)
            _sharded()
            _zero_shot()
        _results()
        _stages()
        report([])


@contextmanager
def inside(directory: Path) -> Iterator[None]:
    """The working directory and the command line of a program, and nothing printed."""
    here = Path.cwd()
    os.chdir(directory)
    silent = io.StringIO()
    try:
        with mock.patch.object(sys, "argv", ["cli.py"]), redirect_stdout(silent), redirect_stderr(silent):
            yield
    finally:
        os.chdir(here)


def _text_tower() -> None:
    """A dual encoder and class vectors."""
    dual, text = TEACHERS / "dual.safetensors", TEACHERS / "text.safetensors"
    SmallVisionTransformer(16, patch_size=8, width=32, depth=3, num_heads=4, pooling="attention").save(dual)
    tower = SmallTextTransformer(32, depth=1, num_heads=4)
    tower.save(text, Teacher("stand_in", str(dual)).identity, NAMES, ["{}", "the digit {}"])
    class_vectors.main(["--text", str(text)])


def _written_by_people() -> None:
    """A recipe, an experiment, names, prompts, images in files and in shards, and captions."""
    Path("evil_module.py").write_text("open('ran', 'w').close()\n")
    optimizer = {"learning_rate": 1e-3, "betas": [0.9, 0.95]}
    recipe = {"trainer": {"max_steps": 4}, "data": {"init_args": {"batch_size": 4}}}
    Path("recipe.yaml").write_text(yaml.safe_dump({**recipe, "model": {"init_args": {"optimizer": optimizer}}}))
    write_experiment(Path())
    Path("names.yaml").write_text(yaml.safe_dump(NAMES))
    Path("prompts.txt").write_text("{}\nthe digit {}\n")
    for number in range(12):
        folder = Path("images", ("train", "val")[number % 2], ("cat", "dog")[number // 6])
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 24), (number * 20, 90, 60)).save(folder / f"{number}.png")
    rows = {"image": [str(path) for path in sorted(Path("images").rglob("*.png"))], "label": [0, 1] * 6}
    table = Dataset.from_dict(rows).cast_column("image", ImageFeature())
    DatasetDict({"train": table, "validation": table}).save_to_disk("hub")
    write_shards(Path("shards"), {"train": 8, "val": 6})
    shutil.copytree("images/train/cat", "captioned")
    files, texts = sorted(path.name for path in Path("captioned").iterdir()), ["a dog", "a brown dog"]
    splits = dict(zip(files, ("train", "test", "train"), strict=True))
    lines = [{"image": file, "captions": texts, "split": split} for file, split in splits.items()]
    Path("captioned/captions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    sentences = [{"raw": text} for text in texts]
    listed = [{"filename": file, "split": split, "sentences": sentences} for file, split in splits.items()]
    Path("captioned/captions.json").write_text(json.dumps({"images": listed}))


def _released() -> None:
    """A small tokenizer in the format of LlamaGen's training."""
    weights = small_state("llamagen_vq_ds16", {128: 8, 256: 16, 512: 32, 16384: 64}, {})
    Path(RELEASED).parent.mkdir()
    torch.save({"model": weights, "args": Namespace(vq_model="VQ-16"), "steps": 3}, RELEASED)


def _sharded() -> None:
    """The tokenizer's checkpoint in shards."""
    state = torch.load(TOKENIZER / "checkpoints/last.ckpt", weights_only=True)
    meta = {key: value for key, value in state.items() if key not in ("state_dict", "optimizer_states")}
    sharded.save({"state_dict": state["state_dict"], "lr": 0.5}, checkpoint_id="sharded", no_dist=True)
    torch.save(meta, "sharded/meta.pt")


def _zero_shot() -> None:
    """A representation tokenizer on the dual encoder, and its classification."""
    write_representation_run(IDEAL, {"name": "stand_in", "weights": str(TEACHERS / "dual.safetensors")})
    source = {"class_path": "datamodules.DigitsSource", "init_args": {"size": 16}}
    arguments = {"source": source, "image_size": 16, "num_workers": 0}
    data = {"class_path": "datamodules.ImageDataModule", "init_args": arguments}
    (IDEAL / "config.yaml").write_text(yaml.safe_dump({"run": {"preset": "digits"}, "data": data}))
    zero_shot.main(ZERO_SHOT)


def _results() -> None:
    """Input of a report; short curves, since each takes a report a tenth of a second."""
    for events in RUNS.glob("*/*/events*"):
        events.unlink()
    write_measured_runs(Path())
    write_results(Path("runs"))
    (MEASURED / "fidelity.json").write_text(json.dumps(FIDELITY))
    captions = RUNS / "caption_stage2/vq/captions.json"
    captions.parent.mkdir(parents=True)
    captions.write_text(json.dumps([{"image": "1.png", "generated": "a dog", "references": ["a cat"]}]))
    measured = {"metrics": {"val/bleu": 0.5}, "global_step": 2}
    (captions.parent / "metrics.json").write_text(json.dumps({"validate": measured}))


def _stages() -> None:
    """Stages of the experiment as its runs leave them."""
    for task in expand(load("paper/table.yaml")):
        for stage in task.runs:
            start.write(stage, task.row.label)
            shutil.copy(RUNS / "tokenizer/fq_dual/metrics.json", stage.directory)
    experiments(TABLE)
