"""Fuzz target: mutated files of every kind that the project reads, each given to a program that reads it.

    python -m tests.fuzz --mutations 2000 --seed 0             (make fuzz)

Runs of two steps leave a small corpus. Every mutation runs in a fork of this process, in a copy of the corpus. It
passes if the program ends with exit code 0, or with 2 and at most ten lines, without a traceback, a child process, a
connection, a foreign module, a file outside of its directory, or more time and memory than `sandbox.py` says.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkdtemp

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # before torch: a fork of a pool of threads hangs

from tests.fuzz import corpus, mutations  # noqa: E402
from tests.fuzz.corpus import Kind  # noqa: E402
from tests.fuzz.sandbox import MEGABYTES, SECONDS, Outcome, watched


@dataclass(frozen=True)
class Result:
    """A mutation and how its program ended."""

    number: int
    kind: str
    what: str  # file, mutation and program
    outcome: Outcome


def fuzz(
    directory: Path, numbers: range, seed: int, jobs: int, seconds: float, kinds: Sequence[Kind]
) -> Iterator[Result]:
    """Run mutations, dealt evenly over the kinds of files, until the time is over.

    Args:
        directory: holds the corpus; made if it is missing.
        numbers: of the mutations; with the seed, each decides a mutation.
        seed: of all of them.
        jobs: at once.
        seconds: no mutation starts later.
        kinds: of files.
    """
    import torch

    torch.set_num_threads(1)
    if not (directory / "corpus").exists():
        corpus.make(directory / "corpus")
    _warm(directory, kinds)
    gc.freeze()
    end = time.monotonic() + seconds
    tasks = [(directory, seed, number, kinds[number % len(kinds)], end) for number in numbers]
    if jobs == 1:
        yield from filter(None, map(_one, tasks))
        return
    with get_context("fork").Pool(jobs) as pool:
        yield from filter(None, pool.imap_unordered(_one, tasks))


def _warm(directory: Path, kinds: Sequence[Kind]) -> None:
    """Run each program once: a fork has what this process has imported."""
    place = directory / "warm"
    shutil.copytree(directory / "corpus", place)
    readers = {program: arguments for kind in kinds for program, arguments in kind.readers}
    with corpus.inside(place):
        for program, arguments in readers.items():
            with suppress(SystemExit):
                program(list(arguments))
    shutil.rmtree(place)


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


def main(arguments: list[str] | None = None) -> int:
    """Run the mutations and print the table; returns 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutations", type=int, default=2000, help="mutated files (2000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first, to repeat one (0)")
    parser.add_argument("--seed", type=int, default=0, help="of all mutations (0)")
    parser.add_argument("--time", type=float, default=1200, help="seconds; no mutation starts later (1200)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at once (one a processor)")
    parser.add_argument("--directory", type=Path, help="keeps the corpus for another call (default: a temporary one)")
    options = parser.parse_args(arguments)
    directory, begun = (options.directory or Path(mkdtemp(prefix="fuzz_"))).resolve(), time.monotonic()
    directory.mkdir(parents=True, exist_ok=True)
    results = []
    numbers = range(options.first, options.first + options.mutations)
    for result in fuzz(directory, numbers, options.seed, options.jobs, options.time, corpus.KINDS):
        results.append(result)
        if faults := result.outcome.faults:
            words = " / ".join(result.outcome.text.strip().splitlines()[-1:])[:300]
            print(f"--first {result.number}: {result.what}: {', '.join(faults)}\n    {words}", flush=True)
            if options.mutations == 1:
                print(result.outcome.text)
    if options.directory is None:
        shutil.rmtree(directory)
    failed = sum(bool(result.outcome.faults) for result in results)
    print(table(sorted(results, key=lambda result: result.number)))
    took, done = time.monotonic() - begun, f"{len(results)} of {options.mutations}"
    print(f"seed {options.seed}: {done} mutations in {took:.0f} s, {failed} failed")
    print(f"limits of each: {SECONDS} s, {MEGABYTES} MB")
    return int(bool(failed) or len(results) < options.mutations)


if __name__ == "__main__":
    sys.exit(main())
