"""The benchmark of next-scale generation at a tiny size."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import machine, next_scale
from benchmarks.next_scale import Size
from polytoken.generators import NextScaleTrunkConfig, TrunkConfig

TINY = Size((1, 2, 3, 4), 16, 4, NextScaleTrunkConfig(1, 16, 2), TrunkConfig(16, 1, 2, ffn_multiple=16))


def test_both_generators_write_the_same_codes_in_their_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_scale, "read_rate", lambda: 1e9)
    monkeypatch.setattr(next_scale, "matrix_product_rate", lambda *_, **__: 1e9)
    with torch.inference_mode():
        found = {result.name: result for result in next_scale.measure("tiny", TINY, 1)}
    assert found["tiny/codes"].value == 30 * 2 * 4
    assert [found[f"tiny/{kind}/steps"].value for kind in ("next_scale", "raster")] == [4, 30]
    for type_name in ("float32", "bf16"):
        times = [found[f"tiny/{kind}/batch1/guidance2/{type_name}"] for kind in ("next_scale", "raster")]
        assert all(0 < time.bound < time.value for time in times)
        assert found[f"tiny/raster_over_next_scale/{type_name}"].value == pytest.approx(times[1].value / times[0].value)


def test_the_bound_of_a_step_is_reading_or_arithmetic() -> None:
    generator = next_scale.writers(TINY)["raster"]
    weights = sum(one.weight.numel() for one in generator.modules() if isinstance(one, torch.nn.Linear))
    assert next_scale.positions_of_steps(generator) == [1] * 30
    assert next_scale.bound(generator, [1, 1], 1e9, 1e99) == pytest.approx(2 * 4 * weights / 1e9)
    assert next_scale.bound(generator, [1, 3], 1e99, 1e9) == pytest.approx(4 * 2 * 2 * weights / 1e9)


def test_results_are_written_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    written = json.loads(machine.write_results("any", [machine.Result("one", 1.0, "s")]).read_text())
    assert written["results"][0]["value"] == 1.0 and written["versions"]["torch"] == str(torch.__version__)
    again = [machine.write_results("any", []).name.removesuffix(".json") for _ in range(2)]  # of a day
    assert [name.split("-any")[1] for name in again] == ["-2", "-3"]
