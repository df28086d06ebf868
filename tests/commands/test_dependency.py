"""Dependency of stored codes: the table, the files, grouped codes, and validation of the input."""

import json
from pathlib import Path

import pytest
import torch

from artifacts.dependency import Dependency
from commands import dependency
from polytoken import records
from polytoken.fingerprint import fingerprint
from polytoken.loading import load_tokenizer
from polytoken.metrics.dependency import dependencies
from polytoken.specs import TokenSpec
from tests.support.generated import write_runs
from tests.support.token_store import LATENTS, codes_of, plan_of, write_stores


def measured(root: Path, *options: str) -> Dependency:
    dependency.main(["--store", str(root), *options])
    return records.read(root / "dependency.json", Dependency)


def test_table_files_and_codes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    spec = TokenSpec((16, 12), ((1, 1), (2, 2)))
    root = write_stores(tmp_path / "fq_dual", 30, spec=spec)
    found = measured(root, "--shuffles", "3", "--picture", str(tmp_path / "all.png"))
    plan = plan_of("train", 30, spec=spec)
    codes = torch.stack([torch.from_numpy(codes_of(plan, image)) for image in range(30)])
    assert found["entries"] == list(dependencies(codes, spec.scales, 3))
    assert (found["images"], found["views"], found["groups"], found["spec"]) == (30, 3, [16, 12], spec)
    assert "Miller" in found["estimator"]
    for picture in (root / "dependency.png", tmp_path / "all.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "neighbours, sub-code 1" in printed and "sub-codes 0 and 1" in printed and "baseline" in printed
    assert measured(root, "--split", "validation")["images"] == 7
    assert measured(root, "--max-images", "10")["images"] == 10
    assert dependency.means(found).keys() == {"neighbours", "branches"}


def test_large_codebooks_are_grouped_with_their_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_runs(tmp_path / "runs/digits")
    run = tmp_path / "runs/digits/tokenizer/tiny"
    tokenizer = load_tokenizer(run)
    origin = {"tokenizer_run": str(run), "tokenizer_fingerprint": fingerprint(tokenizer)}
    root = write_stores(tmp_path / "tiny", spec=tokenizer.spec, latent_shape=(8, 2, 2), **origin)
    found = measured(root, "--groups", "3", "--shuffles", "2")
    assert found["groups"] == [3, 3]
    assert all(one.entropy < 1.7 for one in found["entries"]), "at most log2 3 bits, and the correction"
    capsys.readouterr()
    other = write_stores(tmp_path / "other", spec=tokenizer.spec, latent_shape=(8, 2, 2), tokenizer_run=str(run))
    assert "is another one" in refusal(other, capsys, "--groups", "3")


def refusal(root: Path, capsys: pytest.CaptureFixture, *options: str) -> str:
    with pytest.raises(SystemExit) as stop:
        dependency.main(["--store", str(root), *options])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_invalid_input_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # away from the tokenizer of a demo
    root = write_stores(tmp_path / "codes")
    assert "--groups is 1" in refusal(root, capsys, "--groups", "1")
    assert "--seed is -1" in refusal(root, capsys, "--seed", "-1")
    assert "no checkpoint" in refusal(root, capsys, "--groups", "4")
    latents = write_stores(tmp_path / "latents", **LATENTS)
    assert "holds latents" in refusal(latents, capsys)
    assert "holds latents" in refusal(root, capsys, "--store", str(root), str(latents), "--shuffles", "2")
    column = write_stores(tmp_path / "column", spec=TokenSpec((16,), ((2, 1),)))
    assert "no neighbouring positions" in refusal(column, capsys)
    assert "has one image" in refusal(write_stores(tmp_path / "one", 1), capsys)
    assert "is not there" in refusal(tmp_path / "nowhere", capsys)
    assert not (root / "dependency.json").exists()
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({"entries": [{"kind": "other"}]}))
    with pytest.raises(ValueError, match="entries"):
        records.read(broken, Dependency)


def test_stores_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = [str(write_stores(tmp_path / preset / "var")) for preset in ("digits", "photos")]
    drawn: list[list[str]] = []
    monkeypatch.setattr(dependency, "draw", lambda found, path: drawn.append(list(found)))
    options = ("--max-images", "4", "--shuffles", "2", "--picture", str(tmp_path / "all.png"))
    dependency.main(["--store", *stores, *options])
    assert drawn == [["var"], ["var"], stores]
