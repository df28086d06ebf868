"""A finished stage compared with what make asks: nothing to do, more steps, or a refusal that names the differences."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from artifacts import yaml_files
from artifacts.completion import text_digest
from commands import stage
from commands.stage import COMPARED, starts
from polytoken.errors import UserError
from tests.support.commands import TOY, exit_code

RUN = Path("runs/default/toy")
ASKED = ["fit", "--config", "toy.yaml", "--trainer.max_steps", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "argv", ["cli.py"])
        shutil.copy(TOY, "toy.yaml")
        assert exit_code(*ASKED) == 0
    return place


@pytest.fixture(autouse=True)
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of a finished run: all its files are new."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def uncomposed(monkeypatch: pytest.MonkeyPatch) -> None:
    def compose(arguments: list[str]) -> None:
        raise AssertionError("a configuration was composed, which takes seconds")

    monkeypatch.setattr("commands.cli.composed.compose", compose)


def test_the_same_again_is_nothing_to_do(uncomposed: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert not starts(RUN, ASKED, named=True)
    assert capsys.readouterr().out == f"{RUN} is finished, with these settings: nothing to do\n"
    assert not starts(RUN, ASKED, named=False) and capsys.readouterr().out == ""
    for place in (("--run.stage", "toy_2"), ("--run.stage=toy_2",), ("--run.root=other",), ("--run.preset", "other")):
        assert starts(RUN, [*ASKED, *place], named=True), "another place"
    (RUN / "checkpoints/last.ckpt").unlink()
    assert starts(RUN, ASKED, named=False), "not finished"


def test_a_comment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("toy.yaml").write_text(f"# a comment\n{Path('toy.yaml').read_text()}")
    assert not starts(RUN, ASKED, named=True)
    monkeypatch.setattr("commands.cli.composed.compose", None)
    assert not starts(RUN, ASKED, named=True), "the comparison is kept"
    assert not starts(RUN, ASKED, named=False)


@pytest.mark.parametrize("name", ["devices", "num_nodes"])
def test_other_devices_change_nothing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*ASKED, f"--trainer.{name}", "2"]
    for _ in range(2):  # the second answer is the recorded one
        assert not starts(RUN, asked, named=True)
        said = capsys.readouterr().out
        assert said.startswith(f"{RUN} is finished, with these settings but trained on 1 process(es), not on the 2")
        assert "data.batch_size counts per process, so that a run on 2 has another global batch: RUN=name makes" in said
    assert not starts(RUN, asked, named=False) and capsys.readouterr().out == ""
    done = json.loads((RUN / "done.json").read_text())
    (RUN / "done.json").write_text(json.dumps({**done, "command": "predict"}))
    (RUN / COMPARED).unlink()
    assert not starts(RUN, asked, named=True)
    assert "with these settings: nothing to do" in capsys.readouterr().out, "a prediction is the same on any number"


def test_the_same_number_of_processes_is_no_difference(capsys: pytest.CaptureFixture[str]) -> None:
    assert not starts(RUN, [*ASKED, "--trainer.devices", "1", "--trainer.strategy", "auto"], named=True)
    assert capsys.readouterr().out == f"{RUN} is finished, with these settings: nothing to do\n"
    assert not starts(RUN, [*ASKED, "--run.stage", "toy_2", "--run.stage=toy"], named=True), "the last place counts"


def test_more_steps_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert starts(RUN, [*ASKED[:-1], "3"], named=True)
    assert "resumes from step 1 to 3" in capsys.readouterr().out
    assert not starts(RUN, [*ASKED[:-1], "3"], named=False), "ARGS of another target"
    with pytest.raises(UserError, match="trainer.max_steps 1 → 3, processes 1 → 2"):  # of another global batch
        starts(RUN, [*ASKED[:-1], "3", "--trainer.devices", "2"], named=True)


def test_more_steps_do_not_go_on_without_the_args_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    """A start takes the arguments of now, so that these are compared as well."""
    file, now, rate = Path("toy.yaml"), ASKED[:3], ("--model.optimizer.learning_rate", "0.5")
    long = file.read_text()
    file.write_text(long.replace("max_steps: 6", "max_steps: 1"))
    shutil.rmtree(RUN)
    assert exit_code(*now, *rate) == 0
    file.write_text(long)
    capsys.readouterr()
    assert not starts(RUN, now, named=False)
    said = capsys.readouterr().out
    assert said.startswith(f"note: {RUN} stays as it was made") and "learning_rate 0.5 → 0.02" in said
    assert starts(RUN, [*now, *rate], named=False)


def test_other_settings_are_refused_with_the_differences() -> None:
    others = ("--model.optimizer.learning_rate", "0.5", "--data.batch_size", "3")
    said = f"^{RUN} is finished with other settings .there → asked: model.optimizer.learning_rate 0.02 → 0.5, data"
    with pytest.raises(UserError, match=said + ".*RUN=name makes a variant"):
        starts(RUN, [*ASKED, *others], named=True)
    assert not starts(RUN, ASKED, named=True) and not starts(RUN, [*ASKED, *others], named=False)
    many = ("log_every_n_steps", "gradient_clip_val", "accumulate_grad_batches", "limit_val_batches", "overfit_batches")
    given = [word for name in many for word in (f"--trainer.{name}", "4")]
    with pytest.raises(UserError, match="and 2 more.: RUN") as stop:
        starts(RUN, [*ASKED[:-1], "3", *given, "--seed_everything", "7"], named=True)
    assert str(stop.value).count(" → ") == 1 + 5


def test_a_changed_file_is_noticed_of_a_stage_that_others_need(capsys: pytest.CaptureFixture[str]) -> None:
    file = Path("toy.yaml")
    file.write_text(file.read_text().replace("learning_rate: 0.02", "learning_rate: 0.03"))
    for _ in range(2):
        assert not starts(RUN, ASKED, named=False)
        said = capsys.readouterr().out
        assert said.startswith(f"note: {RUN} stays as it was made") and "learning_rate 0.02 → 0.03" in said
    file.unlink()
    with pytest.raises(UserError, match="there is no config file 'toy.yaml'"):
        starts(RUN, ASKED, named=True)


def test_a_term_that_is_no_longer_asked_for_is_a_change() -> None:
    config = yaml_files.read(RUN / "config.yaml")
    config["model"]["init_args"]["objective"]["second"] = config["model"]["init_args"]["objective"]["recon"]
    text = yaml.safe_dump(config)
    (RUN / "config.yaml").write_text(text)
    done = json.loads((RUN / "done.json").read_text())
    del done["origin"]
    (RUN / "done.json").write_text(json.dumps({**done, "config": text_digest(text)}))
    with pytest.raises(UserError, match="other settings .there → asked: model.objective.second ToyTerm → <not set>."):
        starts(RUN, ASKED, named=True)


def test_a_changed_base_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("")
    monkeypatch.setattr(stage, "BASE_CONFIG", base)
    asked: list[list[str]] = []
    recorded = yaml_files.read(RUN / "config.yaml")
    monkeypatch.setattr("commands.cli.composed.compose", lambda given: asked.append(given) or recorded)
    assert not starts(RUN, ASKED, named=True) and asked == [ASKED]


def test_an_input_that_was_made_again(capsys: pytest.CaptureFixture[str], uncomposed: None) -> None:
    done = json.loads((RUN / "done.json").read_text())
    done["origin"]["inputs"] = {"runs/default/earlier": "0" * 64}
    (RUN / "done.json").write_text(json.dumps(done))
    assert not starts(RUN, ASKED, named=False), "an earlier stage that is gone"
    shutil.copytree(RUN, "runs/default/earlier")
    for named in (True, False):
        with pytest.raises(UserError, match=f"^{RUN} was trained with runs/default/earlier, which was .* delete {RUN}"):
            starts(RUN, ASKED, named=named)
    (RUN / "done.json").write_text(json.dumps({**done, "command": "predict"}))
    assert starts(RUN, ASKED, named=False), "a prediction is written again"
    assert "runs/default/earlier was made again since" in capsys.readouterr().out


def test_a_run_without_origin_is_compared_if_it_is_named(uncomposed: None) -> None:
    done = json.loads((RUN / "done.json").read_text())
    del done["origin"]
    (RUN / "done.json").write_text(json.dumps(done))
    assert not starts(RUN, ASKED, named=False)
    with pytest.raises(AssertionError, match="composed"):
        starts(RUN, ASKED, named=True)
    (RUN / "config.yaml").unlink()
    assert not starts(RUN, ASKED, named=True)


def test_a_broken_comparison_is_made_again() -> None:
    (RUN / COMPARED).write_text("{")
    assert starts(RUN, [*ASKED[:-1], "3"], named=True)


def test_the_command_takes_the_place_of_the_program(monkeypatch: pytest.MonkeyPatch, capfd, uncomposed: None) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr("os.execvp", lambda file, words: called.append(words))
    command = ["srun", "sh", "-c", 'exec "$@"', "rank", "python", "cli.py", *ASKED]
    stage.main([str(RUN), "--named", "--", *command])
    stage.main(["runs/default/other", "--", *command])
    assert called == [command]


def test_a_line_without_a_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--"], ["--", "echo", "hi"]):
        with pytest.raises(SystemExit) as stop:
            stage.main([str(RUN), *words])
        assert stop.value.code == 2 and "no cli.py follows after --: make -n prints" in capsys.readouterr().err


def test_classes_are_shown_by_their_names() -> None:
    assert stage._text([{"class_path": "a.Term", "init_args": {"x": 1}}, None]) == "[Term, none]"
