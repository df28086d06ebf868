"""The marker of a finished stage."""

import json
from pathlib import Path

import pytest

from artifacts.completion import begin, changed, completion, finish
from artifacts.origin import origin_of, outputs


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


def test_the_inputs_of_a_run_are_the_finished_stages_that_its_configuration_names(tmp_path: Path) -> None:
    def made(name: str, text: str) -> str:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "file").write_text(text)
        finish(tmp_path / name, "fit", text, [tmp_path / name / "file"])
        return str(tmp_path / name)

    store, teacher, own = made("tokens", "a"), made("teacher/mid", "b"), made("tokenizer", "c")
    first = made("stage1", "e")
    (tmp_path / "unfinished").mkdir()
    config = {"store": store, "list": [{"weights": f"{teacher}.safetensors"}], "output": f"{own}.safetensors", "n": 1}
    config |= {
        "init": f"{first}/checkpoints/best.ckpt",
        "other": str(tmp_path / "unfinished"),
        "long": "/" + "x" * 5000,
    }
    origin = origin_of(["fit"], [Path(__file__), tmp_path / "gone"], config, tmp_path / "tokenizer")
    assert [*origin["inputs"]] == [store, teacher, first] and origin["arguments"] == ["fit"]
    assert [len(digest) for digest in origin["configs"].values()] == [64, 0]
    before = outputs(Path(store))
    finish(tmp_path / "tokens", "predict", "another configuration", [tmp_path / "tokens/file"])
    assert outputs(Path(store)) == before == origin["inputs"][store]
    made("tokens", "d")
    assert outputs(Path(store)) != before
