import json
from pathlib import Path

import pytest

from commands.summary import main


def test_summary_prints_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"val/psnr": 24.987, "val/judge_accuracy": 0.992, "val/ssim": None, "val/psnr_raw": 1.0}
    metrics |= {f"val/usage/{number}": 0.5 for number in range(4)} | {"val/nll/2": 1.73, "val/rfd/judge": 0.25}
    (tmp_path / "metrics.json").write_text(json.dumps({"validate": {"metrics": metrics}}))
    main([str(tmp_path)])
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert printed == [
        "PSNR 24.99 dB",
        "Fréchet distance by judge 0.250",
        "reconstructions recognised 99.2%",
        *(f"codes of sub-code {number} in use 50%" for number in range(4)),
        "nats of sub-code 2 1.730",
    ]
    (tmp_path / "reconstructions.png").touch()
    main([str(tmp_path)])
    assert f"originals, each above its reconstruction: {tmp_path}" in capsys.readouterr().out
