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
import shutil
import sys
import time
from pathlib import Path
from tempfile import mkdtemp

from tests.fuzz.sandbox import MEGABYTES, SECONDS


def main(arguments: list[str] | None = None) -> int:
    """Run the mutations and print the table; returns 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutations", type=int, default=2000, help="mutated files (2000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first, to repeat one (0)")
    parser.add_argument("--seed", type=int, default=0, help="of all mutations (0)")
    parser.add_argument("--time", type=float, default=1200, help="seconds; no mutation starts later (1200)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at once (one a processor)")
    parser.add_argument("--quick", action="store_true", help="only files that no trained run leaves")
    parser.add_argument("--kind", help="only files of this kind, such as 'released checkpoint'")
    parser.add_argument("--directory", type=Path, help="keeps the corpus for another call (default: a temporary one)")
    options = parser.parse_args(arguments)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # before torch: a fork of a pool of threads hangs

    from tests.fuzz import cases, corpus

    directory, begun = (options.directory or Path(mkdtemp(prefix="fuzz_"))).resolve(), time.monotonic()
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "corpus").exists():
        corpus.make(directory / "corpus", trained=not options.quick)
    kinds = corpus.quick(directory / "corpus") if options.quick else corpus.KINDS
    kinds = [kind for kind in kinds if options.kind in (None, kind.name)]
    if not kinds:
        parser.error(f"there is no kind {options.kind!r}: {', '.join(kind.name for kind in corpus.KINDS)}")
    cases.warm(directory, kinds)
    gc.freeze()
    results = []
    numbers = range(options.first, options.first + options.mutations)
    for result in cases.fuzz(directory, numbers, options.seed, options.jobs, options.time, kinds):
        results.append(result)
        if faults := result.outcome.faults:
            words = " / ".join(result.outcome.text.strip().splitlines()[-1:])[:300]
            print(f"--first {result.number}: {result.what}: {', '.join(faults)}\n    {words}", flush=True)
            if options.mutations == 1:
                print(result.outcome.text)
    if options.directory is None:
        shutil.rmtree(directory)
    failed = sum(bool(result.outcome.faults) for result in results)
    print(cases.table(sorted(results, key=lambda result: result.number)))
    took, done = time.monotonic() - begun, f"{len(results)} of {options.mutations}"
    print(f"seed {options.seed}: {done} mutations in {took:.0f} s, {failed} failed")
    print(f"limits of each: {SECONDS} s, {MEGABYTES} MB")
    return int(bool(failed) or len(results) < options.mutations)


if __name__ == "__main__":
    sys.exit(main())
