from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from callbacks.checkpoint.run_record import RunRecord, differences, recorded_model
from polytoken.loading import MODEL_CONFIG


def start(directory: Path, command: str, config: str, resumes: bool = False, **trainer: Any) -> RunRecord:
    record = RunRecord(directory, command, resumes, config, {"class_path": "a.B"})
    record.setup(SimpleNamespace(**{"is_global_zero": True, "fast_dev_run": 0} | trainer), None, command)
    return record


def test_every_start_writes_its_own_file(tmp_path: Path) -> None:
    start(tmp_path / "run", "fit", "died before its first checkpoint")
    start(tmp_path / "run", "fit", "first")
    for config in ("second", "third"):
        start(tmp_path / "run", "fit", config, resumes=True)
    for config in ("a", "b"):
        start(tmp_path / "run", "validate", config, resumes=True)
    texts = {path.name: path.read_text() for path in (tmp_path / "run").iterdir()}
    assert texts == {
        "config.yaml": "first",
        "config_resume_1.yaml": "second",
        "config_resume_2.yaml": "third",
        "config_validate.yaml": "b",
    }


def test_other_ranks_and_fast_dev_run_write_nothing(tmp_path: Path) -> None:
    start(tmp_path, "fit", "x", is_global_zero=False)
    start(tmp_path, "fit", "x", fast_dev_run=1)
    assert not list(tmp_path.iterdir())


def test_the_model_section_is_read_back(tmp_path: Path) -> None:
    checkpoint: dict[str, Any] = {"state_dict": {"w": torch.ones(3)}}
    start(tmp_path, "fit", "x").on_save_checkpoint(None, None, checkpoint)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    (tmp_path / "sharded.ckpt").mkdir()
    torch.save({MODEL_CONFIG: {"class_path": "c.D"}}, tmp_path / "sharded.ckpt" / "meta.pt")
    assert recorded_model(tmp_path / "last.ckpt") == {"class_path": "a.B"}
    assert recorded_model(tmp_path / "foreign.ckpt") is None
    assert recorded_model(tmp_path / "sharded.ckpt") == {"class_path": "c.D"}


def test_differences_name_the_keys() -> None:
    old = {"class_path": "a.B", "init_args": {"width": 4, "betas": [0.9, 0.95], "gone": 2, "null": None}}
    new = {"class_path": "a.B", "init_args": {"width": 5, "betas": [0.9, 0.99], "fresh": 1, "new": None}}
    assert differences(old, old) == []
    assert differences(old, new) == [
        ("model.init_args.width", 4, 5),
        ("model.init_args.betas[1]", 0.95, 0.99),
        ("model.init_args.gone", 2, "<not set>"),
        ("model.init_args.fresh", "<not set>", 1),
    ]
    assert differences([1], [1, 2]) == [("model", [1], [1, 2])]
