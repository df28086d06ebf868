"""The table of docs/reproduce.md is what `make check` estimates from the configurations."""

import re
import shlex
import sys

import pytest

from commands.cli.composed import compose
from commands.estimates import estimates
from tests.support.commands import REPOSITORY, make

PAGE = (REPOSITORY / "docs/reproduce.md").read_text()
IMAGES = 1_281_167  # of ImageNet's training split


def rows(head: str) -> dict[str, list[str]]:
    """Rows of the table with this head, by their first cell."""
    table = PAGE[PAGE.index(head) :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {first: others for first, *others in cells}


@pytest.mark.parametrize("paper", ["SSQ", "iFSQ, autoregressive", "Ideal", "ImageFolder"])
def test_the_table_holds_the_estimates(paper: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    choices = rows("| paper | teachers |")[paper][1].strip("`").split()
    plan = make("-n", "check", "PRESET=imagenet", *choices).replace("\\\n", " ")
    stages = [shlex.split(part) for part in re.split(r"\s--\s", plan)[1:]]
    tokenizer, tokens, generator, _ = estimates(*map(compose, stages), IMAGES)
    images, time, crops, disk, steps = rows("| paper | tokenizer: images |")[paper]
    assert tokenizer.work == f"{images} images" and tokens.work == f"{crops} crops"
    count, batch = re.findall(r"\d[\d,]*", steps)[:2]
    assert generator.work == f"{count} steps of {batch} images"
    assert time == ("" if tokenizer.seconds is None else f"{tokenizer.seconds / 8 / 3600:.0f} h")
    assert disk == ("" if tokens.size is None else tokens.row(8)[3])
