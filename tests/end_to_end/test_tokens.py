"""From a tokenizer's run to a token store and to batches of codes, with the user's commands."""

from pathlib import Path

import pytest
import torch

from artifacts.token_store import TokenStore
from commands import tokens_check
from datamodules import TokenDataModule
from lightning_modules import ExtractionModule
from polytoken.fingerprint import fingerprint
from polytoken.loading import load_tokenizer
from tests.support.commands import REPOSITORY, exit_code
from tests.support.runs import trained_tokenizer

TOKENS = "runs/digits/tokens/fq_dual"
ARGUMENTS = [
    *("--config", str(REPOSITORY / "configs/tokens.yaml")),
    *("--config", str(REPOSITORY / "configs/presets/digits/tokens.yaml")),
    *("--trainer.enable_progress_bar", "false"),
    *("--trainer.callbacks.images_per_shard", "256"),
]


class PowerCut(Exception):
    """An exception that no command reports as a sentence."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("place")
    trained_tokenizer(directory)
    return directory


@pytest.fixture(autouse=True)
def working_directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.argv", ["cli.py"])


def digests(split: str) -> list[str]:
    return [shard.sha256 for shard in TokenStore.open(Path(TOKENS) / split, verify=True).shards]


@pytest.mark.slow
def test_predict_writes_the_store_and_a_second_start_completes_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    seen: list[int] = []
    predict_step = ExtractionModule.predict_step

    def counted(self: ExtractionModule, batch: dict, batch_index: int, dataloader_idx: int = 0) -> dict:
        if len(seen) == 9:
            raise PowerCut
        seen.append(len(batch["index"]))
        return predict_step(self, batch, batch_index, dataloader_idx)

    monkeypatch.setattr(ExtractionModule, "predict_step", counted)
    with pytest.raises(PowerCut):
        exit_code("predict", *ARGUMENTS)
    assert not (place / TOKENS / "train").exists()
    monkeypatch.setattr(ExtractionModule, "predict_step", predict_step)
    assert exit_code("predict", *ARGUMENTS) == 0
    resumed = digests("train"), digests("validation")
    for split in ("train", "validation"):
        (place / TOKENS / split / "manifest.json").unlink()
        for shard in (place / TOKENS / split).glob("*"):
            shard.unlink()
    assert exit_code("predict", *ARGUMENTS) == 0
    assert (digests("train"), digests("validation")) == resumed

    data = TokenDataModule(TOKENS, batch_size=64, num_workers=0)
    tokenizer = load_tokenizer(data.tokenizer_run)
    assert data.spec == tokenizer.spec and data.num_classes == 10
    assert data.tokenizer_fingerprint == fingerprint(tokenizer)
    batch = next(iter(data.val_dataloader()))
    assert batch["codes"].shape == (64, 2, 16)

    capsys.readouterr()
    tokens_check.main([TOKENS, "--images", "4"])
    said = capsys.readouterr().out
    assert "train: 1442 images, 1 view(s) of each, checksums correct; PSNR" in said and "codes equal 100.0%" in said
    assert (place / TOKENS / "tokens_check.png").is_file()

    tokens = TokenStore.tokens
    with monkeypatch.context() as wrong:
        wrong.setattr(TokenStore, "tokens", lambda self, row, view: (tokens(self, row, view) + 1) % 64)
        with pytest.raises(SystemExit) as stop:
            tokens_check.main([TOKENS])
        assert stop.value.code == 1
        assert "do not match the images" in capsys.readouterr().err

    checkpoint = place / "runs/digits/tokenizer/fq_dual/checkpoints/last.ckpt"
    state = torch.load(checkpoint, weights_only=True)
    state["callbacks"]["EMA"]["average"]["tokenizer.decoder.conv_out.bias"] += 1
    torch.save(state, checkpoint)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        tokens_check.main([TOKENS])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "what runs/digits/tokenizer/fq_dual holds now is another one" in error


def test_bad_input_is_reported_in_one_sentence(place: Path, capsys: pytest.CaptureFixture) -> None:
    assert exit_code("predict", *ARGUMENTS, "--model.tokenizer_run", "runs/nowhere") == 2
    error = capsys.readouterr().err
    assert "error: there is no checkpoint runs/nowhere: train this run first" in error and "Traceback" not in error
    with pytest.raises(SystemExit) as stop:
        tokens_check.main(["runs/nowhere"])
    assert stop.value.code == 2
    assert "error: the token store runs/nowhere/train is not there: `make tokens`" in capsys.readouterr().err
