"""The marker of a finished stage."""

import json
from pathlib import Path

import pytest

from artifacts.completion import begin, changed, completion, finish


def test_the_marker_lists_the_files_with_their_digests(tmp_path: Path) -> None:
    run = tmp_path / "teacher/judge"
    (run / "checkpoints/last.ckpt").mkdir(parents=True)  # a sharded checkpoint
    (run / "checkpoints/last.ckpt/0.distcp").write_text("a")
    (tmp_path / "teacher/judge.safetensors").write_text("b")
    assert completion(run) is None
    assert finish(run, "fit", "lr: 1", [run / "checkpoints/last.ckpt", tmp_path / "teacher/judge.safetensors"], 7)
    marker = completion(run)
    assert marker is not None and (marker["command"], marker["step"]) == ("fit", 7)
    assert [*marker["files"]] == ["checkpoints/last.ckpt/0.distcp", "../judge.safetensors"]
    assert changed(run, marker) == []
    (run / "checkpoints/last.ckpt/0.distcp").write_text("c")
    assert changed(run, marker) == [run / "checkpoints/last.ckpt/0.distcp"]
    (tmp_path / "teacher/judge.safetensors").unlink()
    assert completion(run) is None, "a file is gone"
    begin(run)
    assert not (run / "done.json").exists()
    begin(run)


@pytest.mark.parametrize("files", [[], ["there", "gone"]])
def test_no_marker_without_all_files(tmp_path: Path, files: list[str]) -> None:
    (tmp_path / "there").touch()
    assert not finish(tmp_path, "predict", "", [tmp_path / file for file in files])
    assert not (tmp_path / "done.json").exists()


@pytest.mark.parametrize("content", ["", "[]", json.dumps({"command": "fit", "config": "", "files": [1]})])
def test_a_broken_marker_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "done.json").write_text(content)
    assert completion(tmp_path) is None and (tmp_path / "done.json.broken").exists()
