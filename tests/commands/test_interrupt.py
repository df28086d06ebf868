"""A Ctrl-C ends every program in one line, even during its imports."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import REPOSITORY, TOY

PROGRAMS = {
    "cli": [str(REPOSITORY / "cli.py"), "fit", "--config", TOY],
    "evaluate": ["-m", "commands.evaluate"],
    "experiments": ["-m", "experiments", "list"],
    "stage": ["-m", "experiments.start", "x"],
    "benchmark": ["-m", "benchmarks.tokenizer"],
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_ctrl_c_during_the_imports(program: str, tmp_path: Path) -> None:
    interrupt = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
    # the first of them that the program imports sends the signal
    for name in ("torch", "numpy", "msgspec"):
        (tmp_path / f"{name}.py").write_text(interrupt)
    done = subprocess.run(
        [sys.executable, *PROGRAMS[program]],
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        # a shell's background jobs ignore Ctrl-C, and so would the program
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert done.returncode == -signal.SIGINT
    assert done.stderr == "\nstopped: what was written before is whole, and the same command starts again\n"
