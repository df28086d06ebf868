"""Any tokenizer × any generator: every recipe with every other, and the table of README.

Every pair is connected. Those that differ in the layout of their tokens, or in the family and the tokenizer, also train
and draw.
"""

from __future__ import annotations

import re
import subprocess
from functools import cache
from inspect import isabstract
from itertools import product
from pathlib import Path

import pytest

import polytoken.generators
from cli import CommandLine
from lightning_modules import GeneratorModule
from polytoken import loading
from polytoken.errors import UserError
from polytoken.generators import Head, LinearHead, NextScaleGenerator
from polytoken.tokenizers import Tokenizer
from tests.support.commands import REPOSITORY, make
from tests.support.matrix import drawn, generator, trained, write_tokens
from tests.support.recipes import TOKENIZERS, recipes_of, write_judge

GENERATORS = recipes_of("lightning_modules.GeneratorModule")
FITS = "✓"
REASONS = {
    "codes": "models codes, and the token store|holds latents of a tokenizer without codes",
    "one code per position": r"^LinearHead predicts one code per position and the data has \d: select one",
    "several scales": "^these codes have one scale, 4 × 4, and NextScaleGenerator predicts a scale from those before",
    "the grid of the teacher": "^teacher stand_in has a grid of 4 × 4 patches and the generator one of 3 × 3 positions",
}
"""Reason in the table, and pattern of the message that refuses the pair."""
EARLY = {
    "codes": "learns codes, and TOKENIZER {} has none",
    "one code per position": "predicts one code per position, and TOKENIZER {} has several",
    "several scales": "predicts a scale from those before, and TOKENIZER {} has one",
}
"""The same of make, before a tokenizer is trained; only the networks know their grids."""


def missing(tokenizer: Tokenizer, module: GeneratorModule, one_sub_code: bool) -> str | None:
    """Reason why a generator cannot learn a tokenizer's tokens, from their spec and its class; None if it can."""
    spec, family = tokenizer.spec, module.generator
    if family.models == "codes":
        if spec is None:
            return "codes"
        if isinstance(family, NextScaleGenerator) and len(spec.scales) == 1:
            return "several scales"
        if type(family.head) is LinearHead and spec.num_sub_codes > 1 and not one_sub_code:
            return "one code per position"
    aligned = module.alignment is not None
    return (
        "the grid of the teacher" if aligned and tokenizer.latent_shape[1:] != module.alignment.teacher.grid else None
    )


def columns(store: Path) -> dict[str, CommandLine]:
    """All recipes of generators, and far_base with the heads that no recipe has."""
    found = {recipe: generator(recipe, store) for recipe in GENERATORS}
    raster = [command.model.generator for command in found.values() if command.model.generator.is_causal]
    used = {type(network.head) for network in raster}
    for name in polytoken.generators.__all__:
        kind = getattr(polytoken.generators, name)
        if isinstance(kind, type) and issubclass(kind, Head) and kind not in used and not isabstract(kind):
            found[f"far_base with {name}"] = generator("far_base", store, name)
    return found


def layout(tokenizer: Tokenizer) -> tuple[int, int]:
    """Sub-codes and scales of its tokens: a generator trains and draws alike on all tokenizers that share them."""
    return (tokenizer.spec.num_sub_codes, len(tokenizer.spec.scales)) if tokenizer.spec else (0, 1)


def table(cells: dict[tuple[str, str], str]) -> str:
    """Markdown; tokenizers with equal rows share one, and so do generators with equal columns."""
    rows, names = groups(cells)
    lines = [["tokenizer", *map(listed, names)], ["---"] * (len(names) + 1)]
    lines += [[listed(row), *(cells[row[0], name[0]] for name in names)] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def groups(cells: dict[tuple[str, str], str]) -> tuple[list[list[str]], list[list[str]]]:
    """Tokenizers with equal rows, and generators with equal columns."""
    rows, names = ([*dict.fromkeys(pair[i] for pair in cells)] for i in range(2))
    return (
        grouped({row: tuple(cells[row, name] for name in names) for row in rows}),
        grouped({name: tuple(cells[row, name] for row in rows) for name in names}),
    )


def grouped(values: dict[str, tuple[str, ...]]) -> list[list[str]]:
    """Names of equal value together, in the order of their first."""
    order = [*dict.fromkeys(values.values())]
    return [[name for name, value in values.items() if value == wanted] for wanted in order]


def listed(names: list[str]) -> str:
    return ", ".join(re.sub(r"\w+", r"`\g<0>`", name, count=1) for name in names)


@pytest.mark.slow
def test_every_tokenizer_with_every_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load_tokenizer", cache(loading.load_tokenizer))
    judge = write_judge(Path("runs/digits/teacher/judge.safetensors"))
    stores = {recipe: write_tokens(recipe, judge) for recipe in TOKENIZERS}
    generators = columns(stores["fq_dual"])
    cells, seen = {}, set()
    for recipe, store in stores.items():
        tokenizer = loading.load_tokenizer(f"runs/digits/tokenizer/{recipe}", ())
        for name, command in generators.items():
            lacks = missing(tokenizer, command.model, name == "stage1")
            family = type(command.model.generator).__name__
            alike = {(name, layout(tokenizer)), (family, recipe)}
            try:
                if alike <= seen:
                    trained(command, store, steps=0)
                else:
                    assert drawn(command, store).size == (32, 32), f"{name} on {recipe}"
                    seen |= alike
            except UserError as refusal:
                assert lacks and re.search(REASONS[lacks], str(refusal)), f"{name} on {recipe}: {refusal}"
            else:
                assert lacks is None, f"{name} on {recipe}"
            cells[recipe, name] = f"needs {lacks}" if lacks else FITS
    check_make({(row[0], name[0]): cells[row[0], name[0]] for row, name in product(*groups(cells))})
    found = table(cells)
    assert found in (REPOSITORY / "README.md").read_text(), f"README.md needs this table:\n{found}"


def check_make(cells: dict[tuple[str, str], str]) -> None:
    """`make generator` refuses these pairs by the same reason, and plans the others."""
    for (recipe, name), cell in cells.items():
        lacks = cell.removeprefix("needs ")
        arguments = ("-n", "generator", f"GENERATOR={name}", f"TOKENIZER={recipe}")
        if lacks not in EARLY:
            assert f"--run.stage {name}/{recipe}" in make("-B", *arguments)
            continue
        with pytest.raises(subprocess.CalledProcessError) as stop:
            make(*arguments)
        assert EARLY[lacks].format(recipe) in stop.value.stderr
