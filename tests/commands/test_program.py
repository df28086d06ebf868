"""Frame of the programs: exit codes, and which errors are printed as one sentence."""

from argparse import Namespace
from pathlib import Path

import pytest

from commands.program import new_parser, print_any_name, print_table, run, whole_number
from polytoken.errors import MissingFileError, UserError

PARSER = new_parser("commands.any", "Measures\nanything.\n\nMore.")


def failing(error: Exception):
    def work(given: Namespace) -> None:
        raise error

    return work


@pytest.mark.parametrize("error", [UserError("wrong"), MissingFileError("wrong"), PermissionError("wrong")])
def test_a_mistake_of_the_user_is_one_sentence(error: Exception, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        run(PARSER, failing(error), [])
    assert stop.value.code == 2 and capsys.readouterr().err == "error: wrong\n"


@pytest.mark.parametrize("error", [ValueError("bug"), KeyError("bug"), RuntimeError("bug")])
def test_a_fault_of_the_code_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match="bug"):
        run(PARSER, failing(error), [])


def test_the_exit_code_is_that_of_the_work() -> None:
    run(PARSER, lambda given: None, [])
    run(PARSER, lambda given: 0, [])
    with pytest.raises(SystemExit) as stop:
        run(PARSER, lambda given: 1, [])
    assert stop.value.code == 1


def test_a_whole_number(capsys: pytest.CaptureFixture) -> None:
    parser = new_parser("commands.any", "Measures.")
    parser.add_argument("--steps", type=whole_number(2))
    assert parser.parse_args(["--steps", "2"]).steps == 2
    for wrong in ("1", "-3", "2.5", "many"):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(["--steps", wrong])
        assert stop.value.code == 2
        assert f"argument --steps: expected a whole number of at least 2, got '{wrong}'" in capsys.readouterr().err


def test_the_first_paragraph_describes_the_program() -> None:
    assert PARSER.description == "Measures anything." and PARSER.prog == "python -m commands.any"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_long_name_takes_no_digit_of_a_table(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    row = [f"runs/{'x' * 90}", *(f"{number}.25" for number in range(1, 7))]
    print_table("Title", ["run", *"abcdef"], [row])
    lines = capsys.readouterr().out.splitlines()
    assert any(all(number in line for number in row[1:]) for line in lines)
    assert any(row[0] in line for line in lines) != terminal  # a file is as wide as it takes


def test_each_note_is_printed_once_below_the_table(capsys: pytest.CaptureFixture) -> None:
    print_table("Title", ["name", "value"], [["a", "1"], ["b", "2"]], ["few images", "few images"])
    printed = capsys.readouterr().out
    assert printed.count("note: few images") == 1 and printed.index("Title") < printed.index("note")


def test_a_name_that_is_no_unicode_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "out").open("w", encoding="utf-8") as out:
        monkeypatch.setattr("sys.stdout", out)
        print_any_name()
        print_table("\ud800", ["\ud800"], [["\udcff"]])
    assert "\\ud800" in (tmp_path / "out").read_text() and "\\udcff" in (tmp_path / "out").read_text()
