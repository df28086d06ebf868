"""docs/papers.md accounts for every table, and its index of equations points at docstrings that cite the equation."""

from __future__ import annotations

import ast
import re
from typing import NamedTuple

import pytest

from tests.support.commands import REPOSITORY

PAPERS = REPOSITORY / "docs/papers.md"
NUMBERED = {
    "SSQ": range(1, 9),
    "FQGAN": range(1, 9),
    "iFSQ": range(1, 14),
    "Ideal": range(1, 14),
    "ImageFolder": range(1, 7),
}
TABLES = {"SSQ": 6, "FQGAN, FAR": 7, "iFSQ": 4, "ImageFolder": 9, "Ideal": 9}
LINK = re.compile(r"\[`(?P<symbol>[\w.]+)`\]\(\.\./(?P<file>[\w/]+\.py)\)")


class Entry(NamedTuple):
    paper: str
    equation: str
    symbol: str
    file: str


def rows() -> list[list[str]]:
    """Cells of the rows of the index: equations, meaning, place."""
    section = PAPERS.read_text().split("## Index of equations")[1]
    lines = [line for line in section.splitlines() if re.match(r"\| (SSQ|FQGAN|iFSQ|Ideal|ImageFolder) ", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def entries() -> list[Entry]:
    found = []
    for equations, _, place in rows():
        for link in LINK.finditer(place):
            for paper, names in re.findall(r"(SSQ|FQGAN|iFSQ|Ideal|ImageFolder) ((?:Algorithm )?\d+)", equations):
                found.append(Entry(paper, names, link["symbol"], link["file"]))
    return found


def docstring(file: str, symbol: str) -> str:
    """Docstring of a function, class or method; KeyError if the name does not exist."""
    nodes: list[ast.stmt] = ast.parse((REPOSITORY / file).read_text()).body
    node: ast.stmt | None = None
    for name in symbol.split("."):
        named = {n.name: n for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        node = named[name]
        nodes = node.body
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    return re.sub(r"\s+", " ", ast.get_docstring(node) or "")


def cited(text: str, paper: str) -> set[str]:
    """Equations of a paper that a docstring names: `SSQ eq. 1`, `iFSQ eqs. 1–4, 13`, `iFSQ Algorithm 1`."""
    names = {f"Algorithm {number}" for number in re.findall(rf"{paper} Algorithm (\d+)", text)}
    for listed in re.findall(rf"{paper} eqs?\.\s+((?:\d+(?:–\d+)?(?:,\s+|\s+and\s+)?)+)", text):
        for first, last in re.findall(r"(\d+)(?:–(\d+))?", listed):
            names |= {str(number) for number in range(int(first), int(last or first) + 1)}
    return names


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: f"{entry.paper} {entry.equation}")
def test_each_place_exists_and_cites_its_equation(entry: Entry) -> None:
    try:
        text = docstring(entry.file, entry.symbol)
    except (FileNotFoundError, KeyError):
        pytest.fail(f"docs/papers.md names {entry.symbol} in {entry.file}, which is gone")
    assert entry.equation in cited(text, entry.paper), f"{entry.file}: {entry.symbol} does not cite {entry}"


@pytest.mark.parametrize(("paper", "numbers"), NUMBERED.items())
def test_every_numbered_equation_is_in_the_index(paper: str, numbers: range) -> None:
    listed = {number for cells in rows() for number in re.findall(rf"{paper} (\d+)", cells[0])}
    assert {str(number) for number in numbers} <= listed


@pytest.mark.parametrize(("paper", "count"), TABLES.items())
def test_every_table_is_an_experiment_or_the_page_tells_what_it_is(paper: str, count: int) -> None:
    folder = REPOSITORY / "experiments" / paper.partition(",")[0].lower()
    made = {int(number) for path in folder.glob("table*.yaml") for number in re.findall(r"table(\d+)", path.stem)}
    (line,) = re.findall(rf"^\| {paper} \|.*$", PAPERS.read_text(), re.M)
    named = {
        int(number) for group in re.findall(r"Tables? (\d+(?: and \d+)*)", line) for number in group.split(" and ")
    }
    assert {*range(1, count + 1)} <= made | named


def test_a_citation_is_read_in_all_its_forms() -> None:
    text = "Losses (SSQ eq. 8, FQGAN eqs. 1–3, 7). See iFSQ Algorithm 1 and iFSQ eqs. 11 and 12."
    assert cited(text, "FQGAN") == {"1", "2", "3", "7"}
    assert cited(text, "SSQ") == {"8"}
    assert cited(text, "iFSQ") == {"Algorithm 1", "11", "12"}
