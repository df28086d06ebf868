"""Figures of invented traces, of a GPU and of a CPU, and of a real one."""

from pathlib import Path

import pytest
import torch

from commands.trace import WINDOW, Event, figures, read_events, short_name, tracing, union

GEMM = "void cutlass::Kernel2<cutlass_80_tensorop_bf16>(Params)"


def event(cat: str, name: str, start: float, duration: float, **args: int) -> Event:
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": duration, "pid": 1, "tid": 1, "args": args}


def operator(name: str, start: float, duration: float, number: int) -> Event:
    return event("cpu_op", name, start, duration, **{"External id": number})


def kernel(name: str, start: float, duration: float, number: int, correlation: int) -> Event:
    return event("kernel", name, start, duration, correlation=correlation, **{"External id": number})


# two steps from 100 to 1,100 µs, whose last kernel ends at 1,200; the synchronisations before and after are not theirs
GPU = [
    event("cuda_runtime", "cudaDeviceSynchronize", 50, 10, correlation=1),
    event("user_annotation", WINDOW, 100, 1000),
    event("gpu_user_annotation", WINDOW, 150, 1050),
    event("user_annotation", "enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", 100, 40),
    operator("aten::linear", 200, 60, 1),
    operator("aten::addmm", 210, 40, 2),
    event("cuda_runtime", "cudaLaunchKernel", 220, 5, correlation=10),
    kernel(GEMM, 300, 200, 2, 10),
    operator("aten::copy_", 400, 50, 3),
    event("cuda_runtime", "cudaMemcpyAsync", 410, 5, correlation=11),
    event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 450, 100, correlation=11, **{"External id": 3}),
    event("cuda_runtime", "cudaStreamSynchronize", 420, 130, correlation=12),
    operator("replay", 600, 20, 4),
    event("cuda_runtime", "cudaGraphLaunch", 605, 5, correlation=13),
    kernel("triton_poi_fused_add_0", 700, 100, 4, 13),
    kernel(GEMM, 750, 250, 4, 13),
    event("cuda_driver", "cuLaunchKernelEx", 1050, 5, correlation=14),
    kernel("triton_red_fused_1", 1100, 100, 5, 14),
    event("cuda_runtime", "cudaDeviceSynchronize", 1150, 60, correlation=15),
]


def test_the_figures_of_a_gpu() -> None:
    found = figures(GPU, steps=2)
    assert found.milliseconds == pytest.approx(0.55)
    assert found.loading == pytest.approx(0.02)
    assert found.idle == pytest.approx(1 - (250 + 300 + 100) / 1100)
    assert (found.launches, found.kernels, found.copies_to_host) == (1.5, 2.0, 0.5)
    assert found.synchronisations == {"cudaStreamSynchronize": 0.5} and found.waits == 0.5
    assert found.operators == 1.5


def test_a_kernel_counts_for_its_operator_unless_a_graph_replays_it() -> None:
    heaviest = {one.name: one for one in figures(GPU, steps=2).heaviest}
    assert [*heaviest] == [
        "cutlass::Kernel2",
        "aten::addmm",
        "aten::copy_",
        "triton_poi_fused_add_0",
        "triton_red_fused_1",
    ]
    assert heaviest["aten::addmm"].milliseconds == pytest.approx(0.1) and heaviest["aten::addmm"].calls == 0.5
    assert heaviest["cutlass::Kernel2"].share == pytest.approx(250 / 750)


def test_the_own_time_of_an_operator_is_without_those_that_it_calls() -> None:
    calls = [
        event("user_annotation", WINDOW, 0, 100),
        operator("aten::linear", 0, 50, 1),
        operator("aten::t", 5, 10, 2),
        operator("aten::transpose", 7, 4, 3),
        operator("aten::addmm", 20, 25, 4),
        operator("aten::item", 60, 10, 5),
        operator("aten::_local_scalar_dense", 61, 8, 6),
        {**operator("aten::mm", 10, 80, 7), "tid": 2},  # of the backward pass, on a thread of its own
    ]
    found = figures(calls, steps=1)
    own = {one.name: round(one.milliseconds * 1e3) for one in found.heaviest}
    assert own == {
        "aten::mm": 80,
        "aten::addmm": 25,
        "aten::linear": 15,
        "aten::_local_scalar_dense": 8,
        "aten::t": 6,
        "aten::transpose": 4,
        "aten::item": 2,
    }
    assert found.idle is None and found.synchronisations == {"aten::_local_scalar_dense": 1}


@pytest.mark.parametrize(
    ("intervals", "length"),
    [([], 0), ([(0, 2), (5, 6)], 3), ([(1, 4), (0, 2)], 4), ([(0, 9), (1, 2), (3, 10)], 10), ([(0, 1), (1, 2)], 2)],
)
def test_the_union_of_intervals(intervals: list[tuple[float, float]], length: float) -> None:
    assert union(intervals) == length


def test_names_of_kernels_are_short() -> None:
    assert short_name("void at::native::elementwise<4, Foo<int> >(int, Foo)") == "at::native::elementwise"
    assert short_name("Memcpy DtoH (Device -> Pinned)") == "Memcpy DtoH"
    assert short_name("triton_poi_fused_add_0") == "triton_poi_fused_add_0"


def test_a_real_trace_has_the_operators_of_its_block(tmp_path: Path) -> None:
    path, ones = tmp_path / "new/trace.json.gz", torch.ones(64, 64)
    with tracing(path):
        for _ in range(2):
            assert (ones @ ones).sum().item() == 64**3
    found = figures(read_events(path), steps=2)
    assert {"aten::mm", "aten::sum"} <= {one.name for one in found.heaviest}
    assert 0 < sum(one.milliseconds for one in found.heaviest) <= found.milliseconds
    if found.idle is None:
        assert found.synchronisations == {"aten::_local_scalar_dense": 1}
