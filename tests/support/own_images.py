"""Images of a user: trees of files of odd sizes, and presets that are made for them in a directory of the test."""

import re
import shlex
import tarfile
from importlib import import_module
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.commands import REPOSITORY, exit_code, make
from tests.support.working_copy import copy_configs


def write_tree(root: Path, images: int = 20) -> Path:
    """As ImageNet: three classes, a fifth of the images in val/, sizes of 70 to 300 px, nested folders."""
    draw = np.random.default_rng(0)
    for number, name in enumerate(("n01", "n02", "n03")):
        for index in range(images):
            height, width = draw.integers(70, 300, 2)
            pixels = np.full((height, width, 3), 60 * number + 40, dtype=np.uint8)
            pixels[: height // 2, :, number] = draw.integers(255)
            folder = root / ("train" if index % 5 else "val") / name / ("more/2024" if index % 2 else "")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{index}.JPEG")
    return root


def write_saved(root: Path, tree: Path) -> None:
    """The images of such a tree as a data set that the Hugging Face library has saved, with both splits."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["n01", "n02", "n03"])})
    tables = {}
    for split, folder in (("train", "train"), ("validation", "val")):
        files = sorted((tree / folder).rglob("*.JPEG"))
        labels = [file.relative_to(tree / folder).parts[0] for file in files]
        tables[split] = Dataset.from_dict({"image": [*map(str, files)], "label": labels}, features=features)
    DatasetDict(tables).save_to_disk(str(root))


def write_shards(root: Path, counts: dict[str, int]) -> Path:
    """Tar shards as WebDataset's, two a split: images of 60 × 40 px and the numbers of their classes."""
    root.mkdir()
    for split, count in counts.items():
        for shard in range(2):
            with tarfile.open(root / f"{split}-{shard:04d}.tar", "w") as archive:
                for index in range(shard, count, 2):
                    image = BytesIO()
                    Image.new("RGB", (60, 40), (index, 0, 0)).save(image, "JPEG")
                    for name, content in ((f"{index}.jpg", image.getvalue()), (f"{index}.cls", b"%d" % (index % 3))):
                        entry = tarfile.TarInfo(name)
                        entry.size = len(content)
                        archive.addfile(entry, BytesIO(content))
    return root


def truncate(file: Path) -> None:
    """Leave the start of a file."""
    file.write_bytes(file.read_bytes()[:200])


def own_repository(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a directory with the Makefile and a copy of the configs, where presets may be written."""
    for name in ("Makefile", "scripts"):
        (place / name).symlink_to(REPOSITORY / name)
    copy_configs(place)
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    for module in ("commands.preset", "commands.new_preset"):
        monkeypatch.setattr(f"{module}.PRESETS", place / "configs/presets")
    return place


def run_make(*arguments: str) -> None:
    """Run the programs that a make command starts, in this process: each start would take ten seconds."""
    said = make("-n", *arguments, cwd=Path())
    started = re.findall(r"^\.venv/bin/python (.*)$", said.replace("\\\n", " "), re.MULTILINE)
    assert started, said
    for line in started:
        words = shlex.split(line)
        if "commands.stage" in words:  # nothing is finished here: it starts the command behind it
            words = words[words.index("--") + 2 :]
        if words[0] == "cli.py":
            assert exit_code(*words[1:]) == 0, line
        else:
            module = import_module(words[1])
            module = module if hasattr(module, "main") else import_module(f"{words[1]}.__main__")
            module.main(words[2:])
