import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningCLI

from artifacts.token_manifest import TokenStoreError
from commands.cli.errors import explain, reordered, where
from polytoken.errors import ExistingFileError, SettingError, UserError
from tests.support.commands import REPOSITORY, TOY, exit_code, program

QUANTIZER = "model.init_args.tokenizer.init_args.quantizer"
NESTED = "model: {{init_args: {{tokenizer: {{init_args: {{quantizer: {{{}}}}}}}}}}}"

# Mistakes in a config file, and the expected messages.
FILES = {
    "trainer: {max_stepz: 3}": ["trainer.max_stepz", "line 1", "did you mean max_steps?"],
    "trainr: {max_steps: 3}": ["trainr", "line 1", "did you mean trainer?"],
    "run: {stagee: x}": ["run.stagee", "did you mean stage?"],
    "ckpt_pth: x": ["ckpt_pth", "did you mean ckpt_path?"],
    "model:\n  init_args:\n    optimizer:\n      learning_rat: 1": [
        "model.init_args.optimizer.learning_rat",
        "line 4",
        "did you mean learning_rate?",
    ],
    NESTED.format("init_args: {codebook_sise: 5}"): [f"{QUANTIZER}.init_args.codebook_sise", "mean codebook_size?"],
    "model: {init_args: {objective: {recon: {init_args: {wieght: 1}}}}}": ["recon.init_args.wieght", "mean weight?"],
    "data: {init_args: {batchsize: 3}}": ["data.init_args.batchsize", "did you mean batch_size?"],
    "trainer: {callbacks+: [{class_path: lightning.pytorch.callbacks.ModelSummary, init_args: {max_dept: 1}}]}": [
        "trainer.callbacks[0].init_args.max_dept",
        "did you mean max_depth?",
    ],
    "model: {class_path: tests.support.toy.ToyModul}": [
        "'tests.support.toy.ToyModul' does not exist",
        "toy.ToyModule?",
    ],
    "model: {class_path: test.support.toy.ToyModule}": ["does not exist", "did you mean tests.support.toy.ToyModule?"],
    NESTED.format("class_path: tests.support.toy.ToyQuantiser"): [f"{QUANTIZER}.class_path", "toy.ToyQuantizer?"],
    "model: {class_path: tests.support.toy.ToyData}": [
        "model.class_path",
        "not correspond to a subclass of LightningM",
    ],
    "trainer: {max_steps: abc}": ["trainer.max_steps: expected int, got 'abc'", "line 1"],
    "trainer: {precision: 17}": ["trainer.precision: expected", "bf16-mixed", "got '17'"],
    NESTED.format("init_args: {codebook_size: many}"): [
        f"{QUANTIZER}.init_args.codebook_size: expected int, got 'many'"
    ],
    NESTED.format("init_args: {distance: cosin}"): ["expected 'cosine', 'euclidean', got 'cosin'"],
    "run: [a\ntrainer: x": ["not YAML", "line 2"],
}

COMMAND_LINES = {
    "--trainer.max_stepz 3": ["trainer.max_stepz", "on the command line", "did you mean max_steps?"],
    "--trainr.max_steps 3": ["trainr is not", "on the command line", "did you mean trainer?"],
    "--bogus": ["bogus is not an option"],
    "--trainer.max_steps=abc": ["trainer.max_steps: expected int, got 'abc'", "on the command line"],
    "--model.tokenizer.quantizer.codebook_sise=3": ["codebook_sise", "on the command line", "mean codebook_size?"],
    "--lr 1e-3": ["lr is not an option", "did you mean --model.optimizer.learning_rate?"],
    "--batch-size 3": ["batch-size is not", "did you mean --data.batch_size?"],
    "--model.optimizer.lr 3": ["model.optimizer.lr is not", "did you mean --model.optimizer.learning_rate?"],
    "--model TokenizerModul": ["model: expected class path", "got 'TokenizerModul'", "did you mean TokenizerModule?"],
    "--model.tokenizer.quantizer ToyQuantiser": ["got 'ToyQuantiser'", "on the command line"],
    "--model.tokenizer.quantizer FactorisedQuantizer": ["FactorisedQuantizer'", "mean FactorizedQuantizer?"],
    "--model.tokenizer.quantizer tests.support.toy.ToyQuantiser": [
        "model.tokenizer.quantizer.class_path: 'tests.support.toy.ToyQuantiser' does not exist",
        "on the command line",
        "did you mean tests.support.toy.ToyQuantizer?",
    ],
    "--data.batchsize 3": ["data.batchsize", "on the command line", "did you mean batch_size?"],
    "--model.init_args.objective 3": ["model.init_args.objective: expected", "got '3'"],
    "--trainer.logger lightning.pytorch.loggers.WandbLogger": ["whose package is missing: ", "'wandb", "pip install"],
    "--trainer.logger yess": ["trainer.logger: expected class path", "got 'yess'"],
    "--config nowhere.yaml": ["no config file 'nowhere.yaml'"],
    "--config mistaken.yaml": ["no config file 'mistaken.yaml'", "did you mean mistake.yaml?"],
    "--config": ["expected one argument"],
    "--run.stage ../elsewhere": ["run.stage is '../elsewhere'"],
    "--run.stage null": ["run.stage is not set"],
    "--ckpt_path no.ckpt": ["no.ckpt"],
    "--trainer.strategy bogus": ["strategy='bogus'"],
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])


def said(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert exit_code("fit", "--config", TOY, *arguments) == 2
    text = capsys.readouterr().err
    text = text[text.index("error: ") :]
    assert len(text.splitlines()) <= 10
    assert "usage:" not in text and "Union" not in text and "Traceback" not in text
    return text


@pytest.mark.parametrize("content", FILES)
def test_a_mistake_in_a_file_is_located(content: str, capsys: pytest.CaptureFixture) -> None:
    Path("mistake.yaml").write_text(content)
    text = said(capsys, "--config", "mistake.yaml")
    for part in [*FILES[content], "in mistake.yaml"]:
        assert part in text, text


def test_a_missing_file_is_named_before_the_imports_of_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise AssertionError('imported')")
    done = program("fit", "--config", "configs/fq_duel.yaml", cwd=REPOSITORY, PYTHONPATH=str(tmp_path))
    expected = "error: there is no config file 'configs/fq_duel.yaml'\n  did you mean configs/fq_dual.yaml?\n"
    assert (done.returncode, done.stderr) == (2, expected)


@pytest.mark.parametrize("content", ["", "# a comment alone", "- 1", "text"])
def test_a_file_without_keys_is_named(content: str, capsys: pytest.CaptureFixture) -> None:
    Path("mistake.yaml").write_text(content)
    assert said(capsys, "--config", "mistake.yaml").startswith("error: mistake.yaml has no keys at its top: write")


@pytest.mark.parametrize("arguments", COMMAND_LINES)
def test_a_mistake_on_the_command_line_is_located(arguments: str, capsys: pytest.CaptureFixture) -> None:
    Path("mistake.yaml").write_text("")
    text = said(capsys, *arguments.split())
    for part in COMMAND_LINES[arguments]:
        assert part in text, text


def test_missing_argument_and_missing_model(capsys: pytest.CaptureFixture) -> None:
    Path("model.yaml").write_text("model:\n  class_path: tests.support.toy.ToyModule")
    assert exit_code("fit", "--config", "model.yaml") == 2
    assert "tokenizer is not set, and has no default" in capsys.readouterr().err
    assert exit_code("fit") == 2
    assert "model is not set, and has no default: a recipe sets it" in capsys.readouterr().err


def test_no_command_at_all_is_no_traceback(capsys: pytest.CaptureFixture) -> None:
    assert exit_code() == 2
    assert capsys.readouterr().err.startswith("error: there is no command: take one of fit, validate, test, predict")


@pytest.mark.parametrize(
    "name, meant", [("fitt", "fit"), ("train", "fit"), ("sample", "predict"), ("eval", "validate")]
)
def test_a_misspelt_command_is_reported(name: str, meant: str, capsys: pytest.CaptureFixture) -> None:
    assert exit_code(name) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: there is no command {name}: take one of 'fit', ")
    assert said.endswith(f"did you mean {meant}?\n")


def test_a_missing_setting_is_named_with_the_option_that_sets_it(capsys: pytest.CaptureFixture) -> None:
    files = ("configs/sample.yaml", "configs/presets/digits/sample.yaml")
    assert exit_code("predict", *(word for file in files for word in ("--config", str(REPOSITORY / file)))) == 2
    said = capsys.readouterr().err
    assert said == "error: model.generator_run is not set, and has no default: add --model.generator_run\n"


def test_a_preset_file_of_other_recipes_is_named(capsys: pytest.CaptureFixture) -> None:
    files = ("configs/fq_dual.yaml", "configs/presets/digits/representation.yaml")
    assert exit_code("fit", *(word for file in files for word in ("--config", str(REPOSITORY / file)))) == 2
    said = capsys.readouterr().err
    assert "is not an option of polytoken.quantizers.FactorizedQuantizer" in said and "did you mean" not in said
    assert "representation.yaml, line" in said and "a preset file of other recipes? make -n tokenizer" in said


def test_an_option_of_other_code_is_that_of_the_recipe(capsys: pytest.CaptureFixture) -> None:
    Path("recipe.yaml").write_text(NESTED.format("init_args: {branch: {init_args: {codebook_size: 5}}}"))
    places = ["fit", "--config", "recipe.yaml", "--codebook_size", "3"]
    text = explain("unrecognized arguments: --codebook_size", places, ["model"])
    assert text.endswith("did you mean --model.tokenizer.quantizer.branch.codebook_size?")


def test_a_constructor_that_rejects_a_value_is_quoted(capsys: pytest.CaptureFixture) -> None:
    assert said(capsys, "--model.tokenizer.width", "-1") == "error: width is -1; it must be positive.\n"


def test_a_fault_of_the_code_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code("fit", "--config", TOY, "--model.tokenizer.width", "0")


@pytest.mark.parametrize(
    "argument, ours", [("accumulate_grad_batches", "accumulate_steps"), ("gradient_clip_val", "gradient_clip")]
)
def test_trainer_arguments_for_automatic_optimization(argument: str, ours: str, capsys: pytest.CaptureFixture) -> None:
    text = said(capsys, "--model.manual", "true", f"--trainer.{argument}", "2")
    assert f"trainer.{argument}" in text and f"model.{ours}" in text


def test_the_deepest_branch_is_the_one_that_was_meant() -> None:
    message = (
        'Parser key "model":\n  Does not validate\n  Errors:\n'
        "    - Expected a <class 'NoneType'>\n"
        "    - Problem with given class_path 'a.B':\n"
        "        Parser key \"width\":\n          Expected a <class 'int'>. Got value: x\n"
    )
    assert explain(message, ["fit"], []) == "model.width: expected int, got 'x'"


def test_an_option_that_one_class_rejects_as_unrecognized() -> None:
    message = (
        'Parser key "model":\n  Errors:\n'
        "    - Problem with given class_path 'tests.support.toy.ToyTokenizer':\n"
        "        unrecognized arguments: --widht.init_args.x=None\n"
    )
    text = explain(message, ["fit", "--model.widht.init_args.x=null"], ["model"])
    assert text.startswith("model.widht is not an option of tests.support.toy.ToyTokenizer\n  on the command line")
    assert "did you mean width?" in text


def test_a_null_that_jsonargparse_turns_into_a_word() -> None:
    message = 'Parser key "a":\n  - Expected a dot import path string: None\n  Given value: None\n'
    assert "write it in a file" in explain(message, ["fit", "--a", "null"], ["a"])


class Refuses(Callback):
    """Raises errors that a run may raise: our own, and those of a fault."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_batch_start(self, *_: Any) -> None:
        if self.what == "a mistake":
            raise TokenStoreError("shard 3 is missing: write the store again")
        if self.what == "an old file":
            raise ExistingFileError("there are samples of other settings")
        if self.what == "a mistake found on the way from a fault":
            try:
                torch.zeros(2) @ torch.zeros(3)
            except RuntimeError as error:
                raise UserError("the weights do not fit") from error
        if self.what == "numpy":
            np.zeros(3).reshape(2)
        if self.what == "torch":
            torch.zeros(2) @ torch.zeros(3)
        if self.what == "a library":
            torch.optim.SGD([], 0.1)  # a `raise` outside our code, e.g. in a .venv below this project
        if self.what == "the system":
            Path("nowhere").read_text()
        if self.what == "a fault":
            raise KeyError("shard")


def exit_code_of(what: str) -> int:
    callback = f"{{class_path: {__name__}.Refuses, init_args: {{what: {what}}}}}"
    Path("refuses.yaml").write_text(f"trainer: {{callbacks+: [{callback}]}}")
    return exit_code("fit", "--config", TOY, "--config", "refuses.yaml", "--trainer.logger", "false")


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("a mistake", "shard 3 is missing: write the store again"),
        ("an old file", "there are samples of other settings"),
        ("a mistake found on the way from a fault", "the weights do not fit"),
    ],
)
def test_a_user_error_while_running_is_one_sentence(what: str, sentence: str, capsys: pytest.CaptureFixture) -> None:
    assert exit_code_of(what) == 2
    text = capsys.readouterr().err
    assert f"error: {sentence}\n" in text and "Traceback" not in text


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("numpy", ValueError),
        ("torch", RuntimeError),
        ("a library", ValueError),
        ("the system", FileNotFoundError),
        ("a fault", KeyError),
    ],
)
def test_a_fault_while_running_keeps_its_traceback(what: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        exit_code_of(what)


NUMBERS = {
    "--seed_everything -5": ["cli: seed_everything is -5; it must be from 0 to", "on the command line"],
    "--seed_everything 1%s" % (30 * "0"): ["seed_everything is 1000", "must be from 0 to 4,294,967,295"],
    "--trainer.gradient_clip_val -1": ["trainer: gradient_clip_val is -1", "it must be above 0"],
    "--trainer.accumulate_grad_batches 0": ["accumulate_grad_batches is 0; it must be at least 1"],
    "--trainer.check_val_every_n_epoch 0": ["check_val_every_n_epoch is 0; it must be at least 1"],
    "--trainer.val_check_interval 0": ["val_check_interval is 0; it must be above 0"],
    "--trainer.devices abc": ["devices"],
    "--trainer.devices -1": ["devices"],
}


@pytest.mark.parametrize("arguments", NUMBERS)
def test_numbers_that_undo_training(arguments: str, capsys: pytest.CaptureFixture) -> None:
    assert exit_code("fit", "--config", TOY, "--trainer.accelerator", "cpu", *arguments.split()) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in NUMBERS[arguments]), error


def test_a_number_out_of_range_is_placed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("trainer:\n  gradient_clip_val: .nan\n")
    assert exit_code("fit", "--config", TOY, "--config", str(file)) == 2
    assert f"trainer.gradient_clip_val, in {file}, line 2" in capsys.readouterr().err
    several = tmp_path / "several.yaml"
    several.write_text("model:\n  a: {weight: 1.0}\n  b:\n    weight: -1\n")
    assert "model.b.weight" in where(SettingError("weight", -1.0, ""), ["--config", str(several)])
    assert where(SettingError("weight", 5.0, ""), ["--config", str(several)]) == ""


def test_a_setting_of_the_model_out_of_range_is_placed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recipe = [f"--config={REPOSITORY}/configs/{name}" for name in ("fq_dual.yaml", "presets/digits/tokenizer.yaml")]
    file = tmp_path / "wrong.yaml"
    key = f"{QUANTIZER}.init_args.num_branches"
    file.write_text(NESTED.format("init_args: {\n  num_branches: 0}"))
    assert exit_code("fit", *recipe, "--config", str(file)) == 2
    expected = "error: FactorizedQuantizer: num_branches is 0; it must be at least 1"
    assert f"{expected}\n  {key}, in {file}, line 2\n" in capsys.readouterr().err
    assert exit_code("fit", *recipe, f"--{key}", "-1") == 2
    assert f"num_branches is -1; it must be at least 1\n  {key}, on the command line" in capsys.readouterr().err


def test_a_model_that_exceeds_the_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(LightningCLI, "instantiate_classes", lambda self: torch.empty(2**60, dtype=torch.uint8))
    assert exit_code("fit", "--config", TOY) == 2
    assert "the memory of this machine does not hold the model" in capsys.readouterr().err


def test_configs_may_stand_before_the_command() -> None:
    """As in the usage line of `cli.py --help`."""
    commands = ("fit", "validate")
    assert reordered(["--config", "a", "-c=b", "fit", "--x", "1"], commands) == [
        *("fit", "--config", "a", "-c=b", "--x", "1")
    ]
    for already in (["fit", "--config", "validate"], ["--help"], ["--config"], ["--config", "fit"], []):
        assert reordered(already, commands) == already
    assert exit_code("--config", TOY, "fit", "--trainer.max_steps", "1") == 0


def test_a_recipe_without_a_preset_names_it(capsys: pytest.CaptureFixture) -> None:
    recipe = str(Path(TOY).parents[2] / "configs" / "fq_dual.yaml")
    assert exit_code("fit", "--config", recipe) == 2
    error = capsys.readouterr().err
    assert "source is not set, and has no default; a preset sets data and sizes, and none is given" in error
    assert re.search(r"\(--config configs/presets/…: .*digits, .*imagenet, .*photos.*\)", error)
