"""configs/tokens.yaml with every preset."""

from pathlib import Path

import pytest

import cli
from callbacks import TokenWriter
from tests.support.commands import exit_code
from tests.support.recipes import CONFIGS
from tests.support.tokenizers import tiny_tokenizer


@pytest.mark.parametrize(("preset", "views"), [("digits", 1), ("photos", 2), ("imagenet", 10)])
def test_the_token_recipe_is_instantiated_under_each_preset(
    preset: str, views: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the tokenizer is parsed and instantiated; nothing runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["cli.py"])
    asked: list[str] = []
    monkeypatch.setattr(
        "lightning_modules.extraction.load_tokenizer", lambda run: asked.append(run) or tiny_tokenizer()
    )
    built: list[cli.CommandLine] = []

    def stop(self: cli.CommandLine) -> None:
        built.append(self)
        raise SystemExit(0)

    monkeypatch.setattr(cli.CommandLine, "before_predict", stop, raising=False)
    Path("images/train/n01").mkdir(parents=True)
    arguments = ["--config", str(CONFIGS / "tokens.yaml"), "--config", str(CONFIGS / f"presets/{preset}/tokens.yaml")]
    arguments += ["--trainer.devices", "1", "--data.init_args.num_workers", "0"]
    arguments += ["--data.init_args.source.init_args.root", "images"] if preset == "imagenet" else []
    assert exit_code("predict", *arguments) == 0
    assert asked == [f"runs/{preset}/tokenizer/fq_dual"]
    (command,) = built
    (writer,) = (callback for callback in command.trainer.callbacks if isinstance(callback, TokenWriter))
    assert writer.images_per_shard % command.datamodule.validation_batch_size == 0
    assert command.trainer.default_root_dir.endswith(f"runs/{preset}/tokens/fq_dual")
    assert len(command.datamodule.split_views("train").names) == views
    assert command.datamodule.split_views("validation").names == ("centre of 1",)
