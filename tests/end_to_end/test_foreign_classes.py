"""A checkpoint that names a class of another package: refused in a sentence, and the other package is not imported."""

from pathlib import Path

import pytest
import torch

from polytoken.loading import load_generator, load_tokenizer
from polytoken.pipeline import GenerationPipeline
from tests.support.commands import exit_code
from tests.support.generated import write_runs
from tests.support.generator_recipes import tiny, write_digit_codes
from tests.support.recipes import CONFIGS

SAYS = "names the class evil_module.Evil, and only classes of polytoken"


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the module ``evil_module`` writes when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "ran"


def name_foreign_class(run: Path, *place: str) -> None:
    """Put the class into the recorded model section, as the value at ``place``."""
    file = run / "checkpoints/last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    section = checkpoint["model_config"]["init_args"]
    for name in place[:-1]:
        section = section[name]
    section[place[-1]] = {"class_path": "evil_module.Evil"}
    torch.save(checkpoint, file)


def test_a_generator(ran: Path, capsys: pytest.CaptureFixture) -> None:
    run = write_runs(Path("runs/digits"))
    name_foreign_class(run, "generator", "init_args", "head")
    for load in (load_generator, GenerationPipeline.from_run):
        with pytest.raises(ValueError, match=SAYS):
            load(run)
    files = (CONFIGS / "sample.yaml", CONFIGS / "presets/digits/sample.yaml")
    sample = [part for file in files for part in ("--config", str(file))]
    assert exit_code("predict", *sample, "--model.generator_run", str(run)) == 2
    assert SAYS in capsys.readouterr().err
    spec = load_tokenizer("runs/digits/tokenizer/tiny").spec
    codes = write_digit_codes(Path("codes"), spec)
    begin = ("--model.init_from", str(run), "--model.generator.trunk.depth", "1")
    assert exit_code("fit", *tiny("stage2", codes), *begin, "--model.generator.trunk.dim", "16") == 2
    assert SAYS in capsys.readouterr().err
    assert not ran.exists()


@pytest.mark.parametrize("place", [("tokenizer",), ("tokenizer", "init_args", "quantizer")])
def test_a_tokenizer(ran: Path, place: tuple[str, ...], capsys: pytest.CaptureFixture) -> None:
    run = write_runs(Path("runs/digits"))
    tokenizer = Path("runs/digits/tokenizer/tiny")
    name_foreign_class(tokenizer, *place)
    for load, path in ((load_tokenizer, tokenizer), (GenerationPipeline.from_run, run)):
        with pytest.raises(ValueError, match=SAYS):
            load(path)
    files = (CONFIGS / "tokens.yaml", CONFIGS / "presets/digits/tokens.yaml")
    extract = [part for file in files for part in ("--config", str(file))]
    assert exit_code("predict", *extract, "--model.tokenizer_run", str(tokenizer)) == 2
    assert SAYS in capsys.readouterr().err
    assert not ran.exists()
