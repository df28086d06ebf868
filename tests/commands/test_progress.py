import re
import sys

import pytest

from commands import progress
from commands.progress import track


def test_a_log_gets_lines_and_a_terminal_a_bar(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(track(range(3), "batches")) == [0, 1, 2]
    assert capsys.readouterr().out == "", "nothing within the first minute"
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)
    assert list(track(iter("ab"), "letters", 2)) == ["a", "b"]
    assert list(track(iter("a"), "letters")) == ["a"]
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"letters: 1/2 · ETA \d+ s", lines[0]) and lines[2] == "letters: 1"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert list(track([1, 2], "numbers")) == [1, 2]
    assert "numbers: 1/2" not in capsys.readouterr().out
