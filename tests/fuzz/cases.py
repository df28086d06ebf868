"""Mutations of the corpus: each in a copy of its own, given to a program in the sandbox."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from tests.fuzz import corpus, mutations
from tests.fuzz.corpus import Kind
from tests.fuzz.sandbox import Outcome, watched


@dataclass(frozen=True)
class Result:
    """A mutation and how its program ended."""

    number: int
    kind: str
    what: str  # file, mutation and program
    outcome: Outcome


def warm(directory: Path, kinds: Sequence[Kind]) -> None:
    """Run each program once on the corpus: a fork has what this process has imported."""
    place = directory / "warm"
    shutil.copytree(directory / "corpus", place)
    readers = {program: arguments for kind in kinds for program, arguments in kind.readers}
    with corpus.inside(place):
        for program, arguments in readers.items():
            with suppress(SystemExit):
                program(list(arguments))
    shutil.rmtree(place)


def fuzz(
    directory: Path, numbers: range, seed: int, jobs: int, seconds: float, kinds: Sequence[Kind]
) -> Iterator[Result]:
    """Run mutations, dealt evenly over the kinds of files, until the time is over.

    Args:
        directory: holds the corpus.
        numbers: of the mutations; with the seed, each decides a mutation.
        seed: of all of them.
        jobs: at once.
        seconds: no mutation starts later.
        kinds: of files.
    """
    end = time.monotonic() + seconds
    tasks = [(directory, seed, number, kinds[number % len(kinds)], end) for number in numbers]
    if jobs == 1:
        yield from filter(None, map(_one, tasks))
        return
    with get_context("fork").Pool(jobs) as pool:
        yield from filter(None, pool.imap_unordered(_one, tasks))


def _one(task: tuple[Path, int, int, Kind, float]) -> Result | None:
    directory, seed, number, kind, end = task
    if time.monotonic() > end:
        return None
    draw = random.Random(f"{seed}:{number}")
    place = directory / f"case_{number}"
    shutil.copytree(directory / "corpus", place, copy_function=os.link)
    (place / "tmp").mkdir()
    try:
        files = sorted(place.glob(kind.files))
        path = draw.choice(files)
        shutil.copy2(path, place / "tmp/copy")
        path.unlink()  # the link, not the corpus
        (place / "tmp/copy").rename(path)
        program, arguments = draw.choice(kind.readers)
        name = path.relative_to(place)
        mutation = mutations.mutate(path, draw)
        outcome = watched(lambda: program(list(arguments)), place, kind.trusted)
    finally:
        shutil.rmtree(place)
    return Result(
        number, kind.name, f"{name}, {mutation}, {program.__module__} {arguments[0] if arguments else ''}", outcome
    )


def table(results: list[Result]) -> str:
    """A Markdown row for each kind: mutations, exit codes, peak memory, failures."""
    by_kind: dict[str, list[Outcome]] = defaultdict(list)
    for result in results:
        by_kind[result.kind].append(result.outcome)
    by_kind["all"] = [result.outcome for result in results]
    lines = [
        "| file | mutations | code 0 | code 2 | others | peak MB | failed |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for kind, found in by_kind.items():
        codes = Counter(outcome.code for outcome in found)
        numbers = [
            len(found),
            codes[0],
            codes[2],
            len(found) - codes[0] - codes[2],
            max(one.megabytes for one in found),
        ]
        lines.append(f"| {kind} | {' | '.join(map(str, numbers))} | {sum(bool(one.faults) for one in found)} |")
    return "\n".join(lines)
