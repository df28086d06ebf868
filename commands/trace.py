"""Figures of a trace of torch.profiler: heaviest operators, idle time of a GPU, launches and host synchronisations.

A trace is a list of events with a category, a name, a start and a duration in microseconds. The functions are pure, so
that an invented trace of a GPU tests them on a machine without one.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

WINDOW = "measured steps"  # annotation around the steps that the figures describe
HEAVIEST = 10
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
RUNTIME = ("cuda_runtime", "cuda_driver")
LAUNCH = re.compile(r"(cuda|cu|hip)(Module|Ext)?(Graph)?Launch")
SYNCHRONISATION = re.compile(r"(cuda|cu|hip)((Stream|Device|Event|Ctx)Synchronize|Memcpy$)")
# operators whose result decides on the host: each of them waits, if its tensor is on a GPU
HOST_READS = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
}

Event = dict[str, Any]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Operator:
    """An operator, or a kernel that no operator launched, in one step.

    Args:
        name: e.g. ``aten::addmm``.
        milliseconds: of its kernels on a GPU; on the CPU its own, without the operators that it calls.
        share: of all operators' time.
        calls: kernels on a GPU; calls on the CPU.
    """

    name: str
    milliseconds: float
    share: float
    calls: float


@dataclass(frozen=True)
class Figures:
    """Cost of a step, as a mean over the steps of a trace.

    Args:
        milliseconds: wall time, with the cost of tracing.
        loading: milliseconds of waiting for a batch.
        operators: operators of PyTorch dispatched, those that operators call included.
        launches: calls that start a kernel or a graph of kernels.
        kernels: kernels that a GPU ran.
        synchronisations: by name, calls in which the host waits for the GPU; without a GPU, operators that read a value
            or a shape on the host, which would wait if their tensor were on one.
        copies_to_host: copies from a GPU to the host.
        idle: share of the wall time in which the GPU runs no kernel, copy or fill; None without a GPU.
        heaviest: operators, the heaviest first.
    """

    milliseconds: float
    loading: float
    operators: float
    launches: float
    kernels: float
    synchronisations: dict[str, float]
    copies_to_host: float
    idle: float | None
    heaviest: list[Operator]

    @property
    def waits(self) -> float:
        """Synchronisations of all names."""
        return sum(self.synchronisations.values())


@contextmanager
def tracing(path: Path) -> Iterator[None]:
    """Write a trace of the block, gzipped JSON that Perfetto opens."""
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        if on_gpu:
            torch.cuda.synchronize()  # of earlier work, whose kernels are not the block's
        with record_function(WINDOW):
            yield
        if on_gpu:
            torch.cuda.synchronize()
    path.parent.mkdir(exist_ok=True)
    profiler.export_chrome_trace(str(path))


def read_events(path: Path) -> list[Event]:
    """The events of a trace that have a duration."""
    with gzip.open(path) as file:
        return [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X" and "dur" in event]


def figures(events: list[Event], steps: int) -> Figures:
    """Figures of a trace whose annotation `WINDOW` holds this many steps.

    The window ends with the last kernel that was launched in it.
    """
    (window,) = (event for event in events if event["name"] == WINDOW and event.get("cat") == "user_annotation")
    start, end = _interval(window)
    inside = [event for event in events if start <= event["ts"] < end or _on_device(event)]
    work = [event for event in inside if _on_device(event)]
    end = max([end, *(_interval(event)[1] for event in work)])
    calls = [event["name"] for event in inside if event.get("cat") in RUNTIME]
    operators = [event for event in inside if event.get("cat") == "cpu_op"]
    waits = [name for name in calls if SYNCHRONISATION.match(name)] if work else _host_reads(operators)
    loading = [event["dur"] for event in inside if event["name"].startswith("enumerate(DataLoader)")]
    return Figures(
        milliseconds=(end - start) / 1e3 / steps,
        loading=sum(loading) / 1e3 / steps,
        operators=sum(event["name"].startswith("aten::") for event in operators) / steps,
        launches=sum(bool(LAUNCH.match(name)) for name in calls) / steps,
        kernels=sum(event["cat"] == "kernel" for event in work) / steps,
        synchronisations={name: count / steps for name, count in Counter(waits).most_common()},
        copies_to_host=sum("DtoH" in event["name"] for event in work) / steps,
        idle=1 - union(map(_interval, work)) / (end - start) if work else None,
        heaviest=_ranked(_kernel_times(inside) if work else _own_times(operators), steps)[:HEAVIEST],
    )


def union(intervals: Iterable[Interval]) -> float:
    """Length of the union of intervals, in any order."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _interval(event: Event) -> Interval:
    return event["ts"], event["ts"] + event["dur"]


def _on_device(event: Event) -> bool:
    return event.get("cat") in DEVICE_WORK


def _host_reads(operators: list[Event]) -> list[str]:
    return [event["name"] for event in operators if event["name"] in HOST_READS]


def _ranked(times: Iterable[tuple[str, float]], steps: int) -> list[Operator]:
    """Operators by their total time; `times` are names and microseconds of single calls."""
    total: dict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    for name, microseconds in times:
        total[name] += microseconds
        calls[name] += 1
    everything = sum(total.values()) or 1.0
    ranked = sorted(total.items(), key=lambda item: -item[1])
    return [Operator(name, time / 1e3 / steps, time / everything, calls[name] / steps) for name, time in ranked]


def _own_times(operators: list[Event]) -> Iterator[tuple[str, float]]:
    """Name and own time of each operator: its duration without that of the operators that it calls."""
    threads = defaultdict(list)
    for event in operators:
        threads[event.get("pid"), event.get("tid")].append(event)
    for calls in threads.values():
        calls.sort(key=lambda event: (event["ts"], -event["dur"]))
        own = [event["dur"] for event in calls]
        open_calls: list[int] = []
        for index, event in enumerate(calls):
            while open_calls and _interval(calls[open_calls[-1]])[1] <= event["ts"]:
                open_calls.pop()
            if open_calls:
                own[open_calls[-1]] -= event["dur"]
            open_calls.append(index)
        yield from ((event["name"], time) for event, time in zip(calls, own, strict=True))


def _kernel_times(events: list[Event]) -> Iterator[tuple[str, float]]:
    """Time of each kernel, copy and fill, under the name of the operator that launched it.

    Those of a replayed graph have no operator: they keep their own names.
    """
    operators = {event["args"]["External id"]: event["name"] for event in events if event.get("cat") == "cpu_op"}
    replays = {
        event["args"].get("correlation")
        for event in events
        if event.get("cat") in RUNTIME and "GraphLaunch" in event["name"]
    }
    for event in events:
        if _on_device(event):
            replayed = event["args"].get("correlation") in replays
            name = None if replayed else operators.get(event["args"].get("External id"))
            yield name or short_name(event["name"]), event["dur"]


def short_name(kernel: str) -> str:
    """Name of a kernel without its return type, template arguments and parameters."""
    return re.split(r"[<(]", kernel.removeprefix("void "), maxsplit=1)[0].strip() or kernel
