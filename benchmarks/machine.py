"""Environment of a benchmark: machine, versions, commit, rate of a matrix product, memory."""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch

from artifacts.provenance import commit
from polytoken import records

RESULTS = Path(__file__).parent / "results"
PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}
READ_MEGABYTES = {"cpu": 256, "cuda": 4096}


@dataclass
class Result:
    """One measurement and its bound.

    Args:
        name: what was measured, e.g. ``tokenizer/fq_dual_f16/forward/batch1/float32``.
        value: the measured value.
        unit: its unit.
        bound: the best this machine could do, or the most that is allowed, measured or set in the same run.
        of_bound: value over bound.
    """

    name: str
    value: float
    unit: str
    bound: float | None = None
    of_bound: float | None = None


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--device`: the GPU by default, if there is one."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default, help="default here: %(default)s")


def use(device: str) -> None:
    """Make this the default device, and multiply float32 on it as ``cli.py fit`` does (TF32 on a GPU)."""
    if device == "cuda":  # not on the CPU: a default device slows every call of torch
        torch.set_default_device(device)
        torch.set_float32_matmul_precision("high")


def device_in_use() -> str:
    """The device set by :func:`use`."""
    return torch.get_default_device().type


def wait() -> None:
    """Wait for the GPU."""
    if device_in_use() == "cuda":
        torch.cuda.synchronize()


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, GPU work included."""
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def matrix_product_rate(dtype: torch.dtype, size: int | None = None, repeats: int = 5) -> float:
    """FLOP/s of a size³ matrix product, median over some calls."""
    size = size or PRODUCT_SIZE[device_in_use()]
    first, second = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    first @ second
    return 2 * size**3 / statistics.median(seconds(lambda: first @ second) for _ in range(repeats))


def read_rate(repeats: int = 3) -> float:
    """Bytes/s of all threads together reading memory beyond the caches, median over some sums."""
    memory = torch.ones(READ_MEGABYTES[device_in_use()] * 2**18)
    memory.sum()
    return memory.nbytes / statistics.median(seconds(memory.sum) for _ in range(repeats))


def time_against_rate(function: Callable[[], object], dtype: torch.dtype, repeats: int) -> tuple[float, float]:
    """Median seconds of a call, and the median matrix-product rate measured between the calls.

    The two alternate, so that a slower machine slows both.
    """
    function()
    times, rates = [], []
    for _ in range(repeats):
        rates.append(matrix_product_rate(dtype))
        times.append(seconds(function))
    return statistics.median(times), statistics.median(rates)


def resident_bytes() -> int:
    """Memory of this process; on a GPU, of its tensors."""
    return torch.cuda.memory_allocated() if device_in_use() == "cuda" else _status_bytes("VmRSS")


def peak_bytes(function: Callable[[], object]) -> int:
    """Peak memory of this process during one call, read after a reset of the high-water mark."""
    if device_in_use() == "cuda":
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    function()
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: memory can be measured on Linux only")


def write_results(what: str, results: list[Result]) -> Path:
    """Print the results and write them to ``benchmarks/results/<date>-<what>[-gpu][-<number>].json``, a new file."""
    for result in results:
        share = "" if result.of_bound is None else f"{result.of_bound:8.1%} of {result.bound:.4g}"
        print(f"{result.name:<58}{result.value:>12.4g} {result.unit:<10}{share}")
    record = {**environment(), "results": [asdict(result) for result in results]}
    name = f"{date.today().isoformat()}-{what}{'-gpu' if device_in_use() == 'cuda' else ''}"
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    path = next(path for path in (RESULTS / f"{name}.json" for name in names) if not path.exists())
    records.write(path, record)
    return path


def environment() -> dict[str, Any]:
    """Machine, versions and commit, for the head of a file of results."""
    machine = {"processor": _processor(), "cores": torch.get_num_threads(), "system": platform.platform()}
    if device_in_use() == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    return {"machine": machine, "versions": versions, "commit": commit()}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
