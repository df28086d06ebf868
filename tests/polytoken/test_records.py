from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from polytoken import records
from polytoken.errors import MissingFileError, UserError
from polytoken.specs import TokenSpec


class Section(msgspec.Struct):
    metrics: dict[str, float | None]
    global_step: int = 0


class Metrics(msgspec.Struct):
    validate: Section | None = None


@dataclass(frozen=True)
class Plan:
    spec: TokenSpec
    views: tuple[str, ...]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b'{"validate": {"metrics": []}}', r"metrics.json: \$\.validate\.metrics: expected object, got array"),
        (b'{"validate": {}}', r"metrics.json: \$\.validate: object missing required field metrics"),
        (b"[1]", r"metrics.json: \$: expected object, got array"),
        (b"null", r"metrics.json: \$: expected object, got null"),
        (
            b'{"validate": {"metrics": {"psnr": "20"}}}',
            r"\$\.validate\.metrics\[...\]: expected float . null, got str",
        ),
        (b'{"validate": {"metrics": {}, "global_step": 1' + b"0" * 5000 + b"}}", r"global_step: .*out of range"),
        (b'{"validate": {"metrics": {"psnr": 1e999}}}', "number out of range"),
        (b'{"validate": {"metrics": {"psnr": 2', "is not valid JSON: input data was truncated"),
        (b"", "is not valid JSON: input data was truncated"),
        ('{"validate": {"metrics": {"\xe9": 1}}}'.encode("latin-1"), "is not valid JSON: not UTF-8 text"),
        (b'{"other": ' + b"[" * 100_000, "is nested too deeply"),
        ({"validate": {"metrics": 3}}, r"\$\.validate\.metrics: expected object, got int"),
    ],
)
def test_broken_records_are_one_sentence(data: bytes | dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        records.decode(data, Metrics, "metrics.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_dataclasses_round_trip(tmp_path: Path) -> None:
    plan = Plan(TokenSpec((16, 8), ((4, 4),)), ("centre",))
    records.write(tmp_path / "plan.json", plan)
    assert records.read(tmp_path / "plan.json", Plan) == plan
    plain = {"codebook_sizes": [16, 8], "scales": [[4, 4]]}
    assert records.decode({"spec": plain, "views": ["centre"]}, Plan, "checkpoint") == plan


def test_nan_becomes_null_and_unknown_fields_are_ignored(tmp_path: Path) -> None:
    records.write(tmp_path / "metrics.json", {"validate": {"metrics": {"psnr": float("nan")}, "later": 1}})
    assert records.read(tmp_path / "metrics.json", Metrics) == Metrics(Section({"psnr": None}))


def test_invalid_unicode_is_rejected() -> None:
    with pytest.raises(UserError, match="not valid Unicode"):
        records.encode({"class": "\ud800"})


def test_unreadable_files_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingFileError, match="metrics.json does not exist"):
        records.read(tmp_path / "metrics.json", Metrics)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        records.read(tmp_path, Metrics)
    monkeypatch.setattr(records, "LIMIT", 1 << 20)
    (tmp_path / "metrics.json").write_bytes(b" " * (1 << 20) + b"{}")
    with pytest.raises(UserError, match="larger than 1 MiB"):
        records.read(tmp_path / "metrics.json", Metrics)


def test_a_broken_derived_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.json"
    (tmp_path / "weights").touch()
    with caplog.at_level(logging.WARNING):
        assert records.read_derived(path, Metrics) is None
        assert records.read_derived(tmp_path / "weights" / "metrics.json", Metrics) is None, "its parent is a file"
    assert not caplog.text
    (tmp_path / "weights").unlink()
    path.write_text("{")
    with caplog.at_level(logging.WARNING):
        assert records.read_derived(path, Metrics) is None
    assert "metrics.json is not valid JSON" in caplog.text and "metrics.json.broken" in caplog.text
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json.broken"]


def test_data_that_a_recursive_reader_does_not_survive() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    wide: Any = [1]
    for _ in range(30):
        wide = [wide] * 9
    circle: dict[str, Any] = {}
    circle["x"] = [circle]
    for value, says in ((deep, "nested more than 100 deep"), (wide, "more than 10,000,000"), (circle, "100 deep")):
        with pytest.raises(UserError, match=f"last.ckpt .*{says}"):
            records.check_size({"a": value}, "last.ckpt")
    records.check_size({"a": [(1, {"b": None})] * 1000, "c": {1, 2}}, "last.ckpt")
