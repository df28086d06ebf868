"""The curricula of the drill: their stages, tiny presets, progress on disk, and results."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from artifacts.samples import SamplesFile
from artifacts.token_store import stores
from polytoken.files import file_sha256
from tests.support.working_copy import change, lay_over, link_repository

RUNS = Path("runs/digits")
STEPS, VALIDATION = 60, 12  # updates of each training, and from one validation to the next; a checkpoint precedes each
IMAGES, PART = 60, 10  # samples, and samples in a part
SHARD = 128  # images in a shard
ONCE = re.compile(r"config_resume_\d+\.yaml|events\.out\..*|hparams\.yaml|timing\.json")  # files of each start


@dataclass(frozen=True)
class Stage:
    """A stage of a curriculum: its name, the file that `make` builds, and its directory, without `runs/digits`."""

    name: str
    goal: str
    place: str

    @property
    def trains(self) -> bool:
        """True for a fit."""
        return self.goal.endswith("done.json") and self.name not in ("tokens", "samples")


@dataclass(frozen=True)
class Curriculum:
    """A tokenizer and a generator, each the name of a recipe."""

    tokenizer: str
    generator: str

    @property
    def names(self) -> tuple[str, str]:
        """Arguments of make."""
        return f"TOKENIZER={self.tokenizer}", f"GENERATOR={self.generator}"

    @property
    def samples(self) -> str:
        """Directory of the samples."""
        return f"samples/{self.tokenizer}" + ("" if self.generator == "stage2" else f"_{self.generator}")

    @property
    def stages(self) -> list[Stage]:
        """The stages in their order; the last writes the metrics of the samples."""
        represents = self.tokenizer == "ideal"
        teachers = ("judge", "perceptual", "mid", "high", *(("dual",) if represents else ()))
        places = {name: f"teacher/{name}" for name in teachers}
        trained = ("tokenizer", "tokens", *(("stage1",) if self.generator == "stage2" else ()), self.generator)
        places |= {name: f"{name}/{self.tokenizer}" for name in trained} | {"samples": self.samples}
        stages = [Stage(name, f"{place}/done.json", place) for name, place in places.items()]
        if represents:
            measured = f"tokenizer/{self.tokenizer}"
            stages.append(Stage("classes", "teacher/classes.safetensors", "teacher"))
            stages += [Stage(name, f"{measured}/{name}.json", measured) for name in ("probes", "zero_shot")]
        return [*stages, Stage("evaluate", f"{self.samples}/metrics.json", self.samples)]


CURRICULA = {
    "fq_dual": Curriculum("fq_dual", "stage2"),
    "imagefolder": Curriculum("imagefolder", "next_scale"),
    "ifsq": Curriculum("ifsq", "dit"),
    "ideal": Curriculum("ideal", "llamagen_ideal"),
}


def prepare(directory: Path, curriculum: Curriculum) -> None:
    """A working copy whose presets take seconds."""
    link_repository(directory)
    presets = directory / "configs/presets/digits"
    quiet = {"trainer": {"enable_progress_bar": False}}
    for file in presets.glob("*.yaml"):
        config = yaml.safe_load(file.read_text())
        if "max_steps" in config.get("trainer", {}):
            every = {"max_steps": STEPS, "val_check_interval": VALIDATION, "limit_val_batches": 2}
            lay_over(config, {"trainer": every})
        if "batch_size" in config.get("data", {}).get("init_args", {}) and file.stem not in ("tokens", "sample"):
            lay_over(config, {"data": {"init_args": {"batch_size": 8}}, **quiet})
        if "warmup_steps" in config.get("model", {}).get("init_args", {}).get("optimizer", {}):
            config["model"]["init_args"]["optimizer"]["warmup_steps"] = 2
        file.write_text(yaml.safe_dump(config))
    adversarial = {"objective": {"adversarial": {"start_step": STEPS // 2}}}
    change(presets / "tokenizer.yaml", {"model": {"init_args": adversarial}})
    trunk = {"dim": 32, "depth": 2, "num_heads": 2, "ffn_multiple": 32}
    change(presets / "generator.yaml", {"model": {"init_args": {"generator": {"init_args": {"trunk": trunk}}}}})
    few = {"data": {"init_args": {"num_images": IMAGES, "batch_size": PART, "part_size": PART}}}
    steps = {"sampler": {"steps": 4}} if curriculum.generator == "dit" else {}
    change(presets / "sample.yaml", few | quiet | {"model": {"init_args": {"sampler": {"guidance": 2.0}, **steps}}})
    change(presets / "tokens.yaml", quiet)
    writer = {"class_path": "callbacks.TokenWriter", "init_args": {"images_per_shard": SHARD}}
    change(directory / "configs/tokens.yaml", {"trainer": {"callbacks+": [writer]}})


def reached(stage: Stage, runs: Path) -> int:
    """Number of steps, shards or parts that a stage has written; other stages write only their result."""
    place = runs / stage.place
    if stage.trains:
        for name in ("last.ckpt", "previous.ckpt"):  # a checkpoint is put in place in two steps
            with suppress(FileNotFoundError):
                return int(torch.load(place / "checkpoints" / name, mmap=True, weights_only=True)["global_step"])
        return 0
    if stage.name == "tokens":
        return len([*place.rglob("*.arrow")])
    if stage.name == "samples":  # joining the parts counts as one more
        return IMAGES // PART + 1 if (place / "samples.json").exists() else len([*place.glob("parts/*.npy")])
    return int((runs / stage.goal).exists())


def result(curriculum: Curriculum, runs: Path) -> dict[str, Any]:
    """All in which two curricula must agree."""
    found: dict[str, Any] = {}
    for stage in curriculum.stages:
        place = runs / stage.place
        if stage.trains:
            state = torch.load(place / "checkpoints/last.ckpt", weights_only=True)
            averages = [value["average"] for name, value in state["callbacks"].items() if name.startswith("EMA")]
            found[f"{stage.name}: weights"] = [state["state_dict"], *averages]
            found[f"{stage.name}: metrics"] = _read(place / "metrics.json")["validate"]["metrics"]
    found["codes"] = [
        shard.sha256 for store in stores(runs / "tokens" / curriculum.tokenizer, True) for shard in store.shards
    ]
    found["samples"] = SamplesFile(runs / curriculum.samples / "samples.npz").digest()
    found["evaluate: metrics"] = _read(runs / curriculum.samples / "metrics.json")["evaluate"]["metrics"]
    found["teachers"] = {file.name: file_sha256(file) for file in sorted((runs / "teacher").glob("*.safetensors"))}
    for name, key in (("probes", "probes"), ("zero_shot", "rows")):
        file = runs / "tokenizer" / curriculum.tokenizer / f"{name}.json"
        found |= {name: _read(file)[key]} if file.exists() else {}
    files = (path.relative_to(runs) for path in runs.rglob("*") if path.is_file())
    found["names of files"] = sorted(str(path) for path in files if not ONCE.fullmatch(path.name))
    return found


def equal(one: Any, other: Any) -> bool:
    """True if two values are equal bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def _read(file: Path) -> Any:
    return json.loads(file.read_text())
