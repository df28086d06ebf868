"""What the README and `make help` promise."""

import os
import re
import subprocess

import pytest

from tests.support.commands import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


def make(*arguments: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_python_example_runs() -> None:
    (example,) = blocks("python")
    names: dict = {}
    exec(example, names)
    assert names["codes"].shape == (1, 2, 256)
    assert names["images"].shape == (1, 3, 256, 256)
    assert len([line for line in example.splitlines() if not line.startswith(("import", "from"))]) <= 5


def test_every_make_command_of_the_readme_would_run() -> None:
    commands = [line.split("#")[0].split() for block in blocks("bash") for line in block.splitlines()]
    targets = [command[1:] for command in commands if command and command[0] == "make"]
    assert ["demo"] in targets and ["test"] in targets
    for target in targets:
        result = make("-n", *target)
        assert result.returncode == 0, result.stderr


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (REPOSITORY / target).exists(), target


def test_help_explains_every_target() -> None:
    explained = set(re.findall(r"^  ([a-z-]+) ", make("help").stdout, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert phony and explained == set(phony.group(1).split())


def test_demo_is_a_graph_of_files() -> None:
    """The judge comes before the tokenizer that leans on it."""
    plan = make("-n", "-B", "demo").stdout
    judge, tokenizer = plan.index("configs/judge.yaml"), plan.index("configs/fq_dual.yaml")
    assert judge < tokenizer < plan.index("commands.summary")
    assert "presets/photos/tokenizer.yaml" in make("-n", "-B", "demo", "PRESET=photos").stdout
