"""The pass over a GPU, at tiny sizes on any device."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import PUBLISHED, TINY, Bench, Measurement
from benchmarks.machine import Result

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(gpu, "release", lambda: None)  # collects the garbage of all tests
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.slow
def test_one_part_of_each_kind(tmp_path: Path) -> None:
    kinds = (
        "rates",
        "decoding/far_base/bf16/batch1/eager",
        "decoding/far_base/bf16/batch1/graph",
        "training/tokenizer/bf16/batch2/eager",
        "training/llamagen_b/bf16/batch2/compiled",
    )
    parts = ((name, measure) for name, measure in Bench(TINY, DEVICE).parts() if name in kinds)
    gpu.run(parts, {"commit": None}, 100, tmp_path / "gpu.json")
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert not [part for part in record["parts"] if "error" in part]
    assert {part["name"] for part in record["parts"]} == {*kinds}
    found = {result["name"]: result for part in record["parts"] for result in part["results"]}
    for name in kinds[1:]:
        assert found[f"{name}/time"]["value"] > 0 and found[f"{name}/operators"]["value"] > 10
        share = found[f"{name}/{'mfu' if 'training' in name else 'bandwidth'}"]
        assert share["of_bound"] == pytest.approx(share["value"] / share["bound"])


def test_every_part_is_there_once_in_order_of_importance() -> None:
    names = [name for name, _ in Bench(PUBLISHED, DEVICE).parts()]
    assert len(names) == len({*names}) == 1 + 2 * 2 * 4 * 2 + 4 * 2
    assert names[:3] == ["rates", "decoding/far_base/bf16/batch1/eager", "decoding/far_base/bf16/batch1/graph"]
    assert all("float32" in name for name in names[-16:])


def test_a_pass_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gpu.json"
    seen: list[int] = []

    def fail() -> list[Result]:
        seen.append(len(json.loads(path.read_text())["parts"]))
        raise ValueError("no memory\nwith details")

    def last() -> list[Result]:
        monkeypatch.setattr(time, "monotonic", lambda: float("inf"))
        return [Result("b/time", 2.0, "s")]

    parts: list[tuple[str, Measurement]] = [
        ("a", lambda: [Result("a/time", 1.0, "s")]),
        ("fails", fail),
        ("hangs", lambda: time.sleep(60)),  # type: ignore[list-item, return-value]
        ("b", last),
        ("late", fail),
    ]
    monkeypatch.setattr(gpu, "PART_SECONDS", 0.05)
    monkeypatch.setattr(gpu, "round", lambda *_: 0.0, raising=False)
    gpu.run(iter(parts), {"commit": "c"}, 100, path)
    record = json.loads(path.read_text())
    assert seen == [1] and record["commit"] == "c"
    assert [part.get("error") for part in record["parts"]] == [
        None,
        "ValueError: no memory",
        "CutOffError: cut off after 0 s",
        None,
        "TimeoutError: left out: the time was used up",
    ]
    assert record["parts"][3]["results"][0]["value"] == 2.0


@pytest.mark.skipif(DEVICE.type == "cuda", reason="there is a GPU")
def test_without_a_gpu_only_the_tiny_pass_runs(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "there is no GPU here: add --tiny" in capsys.readouterr().err
