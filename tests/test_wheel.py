"""The wheel holds only the library, and the README's Python examples run on it without the suite."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tests.support.commands import REPOSITORY
from tests.support.generated import write_runs

# importing one of these raises ImportError, as in an environment that has the wheel alone
SUITE = ("lightning", "torchvision", "torchmetrics", "timm", "lpips", "datasets", "sklearn", "rich", "jsonargparse")
WITHOUT = f"import sys\nfor name in {SUITE}: sys.modules[name] = None\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    place = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    (file,) = place.glob("*.whl")
    return zipfile.ZipFile(file)


def test_the_wheel_holds_every_module_of_the_library_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    modules = {name for name in wheel.namelist() if not name.startswith("polytoken-")}
    expected = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "polytoken").rglob("*.py")}
    assert modules == {*expected, "polytoken/py.typed"}  # the marker by which type checkers read the annotations


def test_the_library_needs_few_packages(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    required = Parser().parsestr(wheel.read(metadata).decode()).get_all("Requires-Dist") or []
    names = {re.split(r"[\s<>=\[;]", line)[0] for line in required if "extra ==" not in line}
    assert names == {"torch", "numpy", "safetensors", "msgspec", "pillow"}


@pytest.mark.slow
def test_the_readme_examples_run_on_the_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    (tmp_path / "docs/images").mkdir(parents=True)
    (tmp_path / "docs/images/three.png").write_bytes((REPOSITORY / "docs/images/three.png").read_bytes())
    root = tmp_path / "runs/digits"
    write_runs(root, image_size=32)
    for stage in ("tokenizer", "stage2"):
        (root / stage / "fq_dual").symlink_to(root / stage / "tiny")
    examples = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert len(examples[0].strip().splitlines()) == 5
    check = "assert codes.shape[:2] == (1, 2) and image.shape == (1, 3, 32, 32)\n"
    program = WITHOUT + examples[0] + check + examples[1]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-1500:]
    assert (tmp_path / "restored.png").is_file() and (tmp_path / "three.png").is_file()
