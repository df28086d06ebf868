"""Limits of YAML files: every broken or hostile one is refused in two lines, at once and in little memory."""

import time
from pathlib import Path

import pytest

from artifacts import yaml_files
from polytoken.errors import MissingFileError, UserError

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)
HOSTILE = {
    "billion laughs": (LAUGHS.encode(), "its aliases stand for more than 100,000 values"),
    "a list in itself": (b"a: &a [1, *a]\n", r"the alias \*a holds itself"),
    "a map in itself": (b"a: &a {b: {c: *a}}\n", r"the alias \*a holds itself"),
    "nesting": (b"[" * 4000, "nested more than 100 deep"),
    "nested lists": (b"- " * 4000 + b"x", "nested more than 100 deep"),
    "latin-1": ("a: é".encode("latin-1"), "not UTF-8 text"),
    "UTF-16": ("a: é".encode("utf-16"), "not UTF-8 text"),
    "NUL": (b'a: "\0"', "unacceptable character|special characters"),
    "a tag of Python": (b"a: !!python/object/apply:os.mkdir [ran]", "could not determine a constructor"),
    "a date that is none": (b"a: 2001-99-99", "month must be in 1..12"),
    "half": (b"a: [1", "expected"),
    "half a character": (b'a: "\\ud800"', "an escape that is half of a character"),
    "an unknown alias": (b"a: *b", "found undefined alias"),
    "size": (b"#" * (5 << 20), "larger than 4 MiB"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files(kind: str, tmp_path: Path) -> None:
    content, says = HOSTILE[kind]
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    start = time.process_time()
    for read in (yaml_files.read, yaml_files.compose):
        with pytest.raises(UserError, match=says) as refused:
            read(file)
        assert "recipe.yaml" in str(refused.value) and len(str(refused.value).splitlines()) <= 2
    assert time.process_time() - start < 5


def test_aliases_and_ordinary_files(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("a: &a {x: 1}\nb: [*a, *a, {<<: *a, y: é}]\n", encoding="utf-8")
    assert yaml_files.read(file) == {"a": {"x": 1}, "b": [{"x": 1}, {"x": 1}, {"x": 1, "y": "é"}]}
    with pytest.raises(MissingFileError, match="there is no file"):
        yaml_files.read(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        yaml_files.read(tmp_path)
