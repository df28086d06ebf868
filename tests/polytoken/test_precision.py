"""TF32 is used in training only, not for codes or metrics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
from torch import backends

from polytoken.precision import float32_weights, full_precision
from polytoken.quantizers.vector import VectorQuantizer
from tests.configs.test_cluster import parsed
from tests.support.precision import caller_in_bfloat16

CPU = torch.device("cpu")
NEWER = {  # from the general to the particular
    "": backends,
    "cudnn": backends.cudnn,
    "cuda.matmul": backends.cuda.matmul,
    "cudnn.conv": backends.cudnn.conv,
    "cudnn.rnn": backends.cudnn.rnn,
    "mkldnn.matmul": backends.mkldnn.matmul,
    "mkldnn.conv": backends.mkldnn.conv,
    "mkldnn.rnn": backends.mkldnn.rnn,
}


def found() -> dict[str, Any]:
    """All settings; None where the older getter raises since the newer ones contradict it."""
    settings: dict[str, Any] = {name: setting.fp32_precision for name, setting in NEWER.items()}
    for name, getter in (
        ("matmul", torch.get_float32_matmul_precision),
        ("allow_tf32", lambda: backends.cudnn.allow_tf32),
    ):
        try:
            settings[name] = getter()
        except RuntimeError:
            settings[name] = None
    return settings | {name: getattr(backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")}


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Settings of a fresh process, except that the convolutions no longer follow the general setting."""
    yield
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True
    for name, setting in NEWER.items():
        setting.fp32_precision = "tf32" if name in ("cudnn.conv", "cudnn.rnn") else "none"
    assert found()["matmul"] == "highest" and found()["allow_tf32"] is True


def test_autocast_and_tf32_are_off_inside_the_context() -> None:
    torch.set_float32_matmul_precision("high")
    with pytest.raises(KeyError), torch.autocast("cpu", torch.bfloat16), full_precision(CPU):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32 and not torch.is_autocast_enabled("cpu")
        raise KeyError
    assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32


def test_a_device_may_be_named() -> None:
    for name in ("cpu", "cuda", "cuda:1", "meta"):
        with full_precision(name):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("high", {}),
        ("medium", {}),
        ("high", {"cuda.matmul": "ieee"}),
        ("highest", {"": "tf32"}),
        (None, {"": "tf32"}),
        (None, {"": "bf16"}),
        (None, {"": "ieee", "cuda.matmul": "tf32"}),
        (None, {"cuda.matmul": "tf32"}),
        (None, {"cudnn": "ieee"}),
        (None, {"cudnn": "tf32"}),
        (None, {"cudnn.conv": "ieee"}),
        (None, {"mkldnn.matmul": "bf16", "mkldnn.conv": "bf16"}),
    ],
)
def test_each_form_of_the_settings_is_switched_off_and_restored(older: str | None, newer: dict[str, str]) -> None:
    if older is not None:
        torch.set_float32_matmul_precision(older)
    for name, value in newer.items():
        NEWER[name].fp32_precision = value
    before = found()
    with full_precision(CPU):
        inside = found()
        assert {inside[name] for name in NEWER} == {"ieee"} and inside["matmul"] == "highest"
        assert not inside["allow_tf32"]
        VectorQuantizer(4, 2)(torch.randn(1, 2, 3, 3))
    assert found() == before


def test_operations_still_follow_the_general_setting_afterwards() -> None:
    backends.fp32_precision = "tf32"
    with full_precision(CPU):
        pass
    backends.fp32_precision = "ieee"
    assert backends.cuda.matmul.fp32_precision == backends.mkldnn.conv.fp32_precision == "ieee"


def test_the_callers_choice_of_cudnn_kernels_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("enabled", False), ("benchmark", True), ("deterministic", True)):
        monkeypatch.setattr(backends.cudnn, name, value)
    before = found()
    with full_precision(CPU):
        inside = found()
    for name in ("enabled", "benchmark", "deterministic"):
        assert inside[name] == before[name] == found()[name]


def test_tf32_is_off_until_the_last_thread_leaves() -> None:
    torch.set_float32_matmul_precision("high")
    before, entered, leave = found(), Event(), Event()

    def other() -> None:
        with full_precision(CPU):
            entered.set()
            assert leave.wait(60)

    thread = Thread(target=other)
    with full_precision(CPU):
        thread.start()
        assert entered.wait(60)
    inside = found()
    leave.set()
    thread.join()
    assert inside["matmul"] == "highest" and inside["cudnn.conv"] == "ieee"
    assert found() == before


def test_the_default_dtype_is_float32_until_the_last_thread_leaves() -> None:
    """A second thread would take float32 for the caller's, or go on to build in the caller's."""
    entered, leave, built = Event(), Event(), []

    def other() -> None:
        with float32_weights():
            entered.set()
            assert leave.wait(60)
            built.append(torch.zeros(1).dtype)

    thread = Thread(target=other)
    with caller_in_bfloat16():
        with float32_weights():
            thread.start()
            assert entered.wait(60)
        leave.set()
        thread.join()
    assert built == [torch.float32]


def test_nested_entries_restore_nothing() -> None:
    torch.set_float32_matmul_precision("high")
    with full_precision(CPU):
        with torch.autocast("cpu", torch.bfloat16), full_precision(CPU):
            assert not torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "high"


def test_it_holds_in_a_compiled_function_of_several_graphs() -> None:
    torch.compiler.reset()
    torch.set_float32_matmul_precision("high")
    before, inside = found(), []

    @torch.compiler.disable
    def look() -> None:
        inside.append(found())

    def square(values: torch.Tensor) -> torch.Tensor:
        with full_precision(values.device):
            look()
            return values @ values

    values, compiled = torch.randn(3, 3), torch.compile(square, backend="eager")
    for _ in range(2):
        assert torch.equal(compiled(values), values @ values)
        assert inside[-1]["matmul"] == "highest" and found() == before


def test_codes_are_looked_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_float32_matmul_precision("high")
    seen: list[str] = []

    def nearest(rows: torch.Tensor, *_: object) -> torch.Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return torch.zeros(len(rows), dtype=torch.int64)

    monkeypatch.setattr("polytoken.quantizers.vector.nearest_codes", nearest)
    VectorQuantizer(4, 2)(torch.randn(1, 2, 3, 3))
    assert seen == ["highest"]


@pytest.mark.parametrize(
    ("recipe", "command", "cuda", "expected"),
    [
        ("far_base.yaml", "fit", True, "high"),
        ("far_base.yaml", "fit", False, "highest"),
        ("tokens.yaml", "predict", True, "highest"),
    ],
)
def test_a_gpu_trains_in_tf32(
    recipe: str, command: str, cuda: bool, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    preset = "generator" if command == "fit" else "tokens"
    parsed(monkeypatch, tmp_path, recipe, f"presets/imagenet/{preset}.yaml", command=command)
    assert torch.get_float32_matmul_precision() == expected
