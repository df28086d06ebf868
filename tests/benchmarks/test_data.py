"""The benchmark of reading data at tiny sizes."""

import pytest

from benchmarks import data
from polytoken.specs import TokenSpec


def test_images_are_measured_with_and_without_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "PHOTOGRAPHS", data.PHOTOGRAPHS[:1])
    monkeypatch.setattr(data, "one_worker", lambda loader, name: float(next(iter(loader))[name].numel()))
    found = {result.name.removeprefix("images/96x80/16px/"): result for result in data.measure_images((96, 80), 16, 1)}
    assert {"decode", "transform", "both", "both_tar", "decode_draft", "both_draft"} <= found.keys()
    assert all(result.value > 0 for result in found.values())
    assert 0 < found["share_of_decoding"].value < 1
    assert 0 < found["draft_difference"].value < 20 and 20 < found["draft_psnr"].value < 60


def test_large_images_are_many_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "PHOTOGRAPHS", data.PHOTOGRAPHS[:2])
    (large,) = data.photographs(data.LARGE)
    first, second = data.photographs(data.SMALL)
    assert large.size == (2000, 1500)
    assert large.crop((0, 375, 500, 750)).tobytes() == first.tobytes()
    assert large.crop((500, 0, 1000, 375)).tobytes() == second.tobytes()


@pytest.mark.parametrize("spec", [TokenSpec((16, 16), ((2, 2),)), None])
def test_tokens_are_measured_by_the_path_of_training(spec: TokenSpec | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "one_worker", lambda loader, name: float(next(iter(loader))[name].numel()))
    read, worker, images = data.measure_tokens("tiny", spec, 8, 4, 1)
    assert read.value > 0 and read.of_bound == read.value / read.bound
    values = 8 if spec else 16**3
    assert worker.value == 4 * values and images.value == pytest.approx(read.value / values)


def test_headers_are_measured() -> None:
    (index,) = data.measure_headers(3, 1)
    assert index.value > 0 and index.unit == "headers/s"
