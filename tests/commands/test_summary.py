import json
from pathlib import Path

import pytest

from commands.summary import main


def test_summary_prints_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"val/psnr": 24.987, "val/judge_accuracy": 0.992}
    (tmp_path / "metrics.json").write_text(json.dumps({"validate": {"metrics": metrics}}))
    main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert "PSNR" in printed and "24.99 dB" in printed and "99.2%" in printed
    assert "SSIM" not in printed
