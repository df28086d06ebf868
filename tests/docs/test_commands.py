"""Every shell line of README and docs is accepted by the program that it starts.

The parser of cli.py composes lines that train, and `make -n` expands lines of make. The tests in `tests/end_to_end` run
the same stages at tiny sizes.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.support.commands import REPOSITORY, make
from tests.support.working_copy import link_repository

DOCS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
ELSEWHERE = {"sbatch": "tests/cluster", "sudo": "tests/cluster", "eval": "tests/cluster", "source": "a shell's own"}

PACKAGES = ("commands.app", "commands.report")
SAMPLES = ("theirs.npz", "reconstructions.npz")


def shell_lines() -> list[tuple[str, str]]:
    """(file, line) of all bash blocks; continued lines joined, comments dropped, variables of a block replaced."""
    found = []
    for file in DOCS:
        for block in re.findall(r"```bash\n(.*?)```", file.read_text(), re.DOTALL):
            variables: dict[str, str] = {}
            for line in block.replace("\\\n", " ").splitlines():
                line = re.sub(r"\s+# .*$", "", line).strip()
                if assigned := re.fullmatch(r"(\w+)=(\S+)", line):
                    variables[assigned[1]] = assigned[2]
                    continue
                for name, value in variables.items():
                    line = line.replace(f"${name}", value)
                if line and not line.startswith("#"):
                    found.append((file.name, line))
    return found


LINES = shell_lines()


def lines_of(program: str) -> list[str]:
    return sorted({line for _, line in LINES if line.startswith(program)})


def test_every_line_is_known() -> None:
    known = (
        "make ",
        "python cli.py ",
        "python -m ",
        "pip install .",
        ".venv/bin/uv pip install ",
        *(f"{name} " for name in ELSEWHERE),
    )
    assert LINES and not [line for _, line in LINES if not line.startswith(known)]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working copy with what an earlier line makes or the reader brings along: a preset, samples, runs."""
    here = link_repository(tmp_path_factory.mktemp("reader") / "here")
    shutil.copytree(here / "configs/presets/photos", here / "configs/presets/flowers")
    for file in ("runs/digits/stage1/vq/done.json", "runs/digits/tokenizer/slow/done.json", *SAMPLES):
        (here / file).parent.mkdir(parents=True, exist_ok=True)
        (here / file).touch()
    return here


@pytest.mark.parametrize("line", lines_of("make "))
def test_make_expands(line: str, reader: Path) -> None:
    assert make("-n", *shlex.split(line)[1:], cwd=reader)


@pytest.mark.parametrize("line", lines_of("python cli.py "))
def test_cli_composes_the_configuration(line: str, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    import cli

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    with pytest.raises(SystemExit) as left:
        cli.main([*shlex.split(line)[2:], "--print_config"])
    assert left.value.code in (None, 0), capsys.readouterr().err
    assert "class_path" in capsys.readouterr().out


@pytest.mark.parametrize("line", lines_of("python -m "))
def test_programs_accept_their_options(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, to save imports; that every row of an experiment composes is tested in tests/experiments."""
    name, *options = shlex.split(line)[2:]
    module = import_module(name if name.count(".") and name not in PACKAGES else f"{name}.__main__")
    if name == "experiments":
        monkeypatch.setattr(module, "check", lambda *_: None)
        if options[0] == "run":
            options.append("--dry-run")
    monkeypatch.chdir(tmp_path)
    try:
        code = module.main(options)
    except SystemExit as left:
        code = left.code
    error = capsys.readouterr().err
    # what an earlier line makes
    lacks = re.match("error: .*(there is no|is not there|no weights|no samples|no row)", error)
    assert code in (None, 0) or (code == 2 and (name, options[0]) != ("experiments", "run") and lacks), error
