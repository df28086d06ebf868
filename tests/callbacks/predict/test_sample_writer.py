"""Samples as files: complete, resumable, shared among ranks, and never of mixed settings."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor

from artifacts.samples import SamplesFile
from callbacks.predict.agreement import of_rank_zero
from callbacks.predict.sample_writer import SampleWriter, _same_place
from datamodules.labels import LabelDataModule
from lightning_modules.sampling import SamplingModule
from polytoken import records
from polytoken.errors import RunError, UserError
from polytoken.files import file_sha256
from polytoken.images import from_uint8, resize_displayed, to_uint8
from polytoken.sampling import CategoricalSampler
from polytoken.streams import Pending
from tests.support.generated import write_runs
from tests.support.ranks import two_ranks
from tests.support.validation import quiet_trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("runs") / "digits")


TRAINER = ("devices", "strategy")


class Counting(SamplingModule):
    """Counts its samples, and fails at a given batch."""

    fails_at: int | None = None

    def setup(self, stage: str) -> None:
        self.sampled: list[int] = []

    def predict_step(self, batch: dict[str, Tensor], batch_index: int) -> Pending:
        if self.fails_at is not None and self.fails_at in batch["index"]:
            raise InterruptedError
        self.sampled += batch["index"].tolist()
        return super().predict_step(batch, batch_index)


def predict(directory: Path, run: Path, fails_at: int | None = None, **changes: Any) -> Counting:
    settings = {"num_images": 23, "batch_size": 5, "part_size": 10, "seed": 3, "guidance": 2.0, **changes}
    module = Counting(str(run), CategoricalSampler(guidance=settings.pop("guidance")), settings.pop("seed"))
    module.fails_at = fails_at
    trainer = quiet_trainer(
        directory, [SampleWriter()], **{name: settings.pop(name) for name in TRAINER if name in settings}
    )
    trainer.predict(module, LabelDataModule(**settings), return_predictions=False)
    return module


@pytest.fixture(scope="module")
def directory(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("samples")
    assert sorted(predict(directory, run).sampled) == list(range(23))
    return directory


def images(directory: Path) -> np.ndarray:
    return np.concatenate(list(SamplesFile(directory / "samples.npz").batches(7))).astype(int)


def test_npz_grid_and_record_are_written(directory: Path, run: Path) -> None:
    assert sorted(path.name for path in directory.glob("[!.]*")) == ["grid.png", "samples.json", "samples.npz"]
    with np.load(directory / "samples.npz", allow_pickle=False) as archive:
        assert archive["arr_0"].shape == (23, 16, 16, 3) and archive["arr_0"].dtype == np.uint8
        assert archive["arr_1"].tolist() == [index % 10 for index in range(23)]
    record = json.loads((directory / "samples.json").read_text())
    assert record["sha256"] == file_sha256(directory / "samples.npz")
    assert record["class_names"] == [str(digit) for digit in range(10)]
    settings = record["settings"]
    assert settings["sampler"]["guidance"] == 2.0 and settings["seed"] == 3 and settings["num_images"] == 23
    assert settings["generator"]["sha256"] == file_sha256(run / "checkpoints/last.ckpt")
    picture = np.asarray(Image.open(directory / "grid.png"))
    assert picture.shape[0] >= 10 * 64 and picture.shape[1] >= 3 * 64


def test_images_are_written_in_order(directory: Path, run: Path) -> None:
    module = SamplingModule(str(run))
    for index in (0, 9, 22):
        alone = module.generator.images(torch.tensor([index % 10]), CategoricalSampler(guidance=2.0), 3, index)
        assert abs(alone[0].int().numpy() - images(directory)[index]).max() <= 1


def test_images_are_written_at_another_size(run: Path) -> None:
    """Those of the tokenizer, resized in 8 bits; the record says so."""
    batch = {"label": torch.tensor([3, 4]), "index": torch.tensor([0, 1])}
    plain, reduced = (SamplingModule(str(run), image_size=size) for size in (None, 8))
    whole = from_uint8(plain.predict_step(batch, 0).wait().permute(0, 3, 1, 2))
    found = reduced.predict_step(batch, 0).wait()
    assert torch.equal(found, to_uint8(resize_displayed(whole, 8)).permute(0, 2, 3, 1))
    assert reduced.settings()["image_size"] == 8 and "image_size" not in plain.settings()
    with pytest.raises(UserError, match="image_size is 0; it must be from 8 to 4,096"):
        SamplingModule(str(run), image_size=0)


def test_a_finished_file_is_not_sampled_again(directory: Path, run: Path) -> None:
    before = file_sha256(directory / "samples.npz")
    assert predict(directory, run).sampled == []
    assert predict(directory, run, batch_size=3).sampled == []  # affects memory only
    assert file_sha256(directory / "samples.npz") == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"guidance": 1.0}, "sampler.guidance was 2.0 and is 1.0"),
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"num_images": 24}, "num_images was 23 and is 24"),
        ({"classes": [1]}, "classes was balanced and is"),
    ],
)
def test_samples_of_other_settings_are_rejected(directory: Path, run: Path, changes: dict, says: str) -> None:
    with pytest.raises(FileExistsError, match=says):
        predict(directory, run, **changes)


def test_an_interrupted_prediction_resumes_bit_for_bit(run: Path, directory: Path, tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        predict(tmp_path, run, fails_at=16)
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["00000.json", "00000.npy", "settings.json"]
    assert not (tmp_path / "samples.npz").exists()
    with pytest.raises(FileExistsError, match="seed was 3 and is 4"):
        predict(tmp_path, run, seed=4)
    assert predict(tmp_path, run).sampled == list(range(10, 23))
    assert (images(tmp_path) == images(directory)).all()
    assert (tmp_path / "samples.json").exists() and not (tmp_path / "parts").exists()


def test_limit_predict_batches_keeps_the_parts(run: Path, tmp_path: Path) -> None:
    module = Counting(str(run), CategoricalSampler(guidance=2.0), 3)
    trainer = quiet_trainer(tmp_path, [SampleWriter()], limit_predict_batches=3)
    trainer.predict(module, LabelDataModule(23, batch_size=5, part_size=10))
    assert (tmp_path / "parts/00000.npy").exists() and not (tmp_path / "samples.npz").exists()
    assert predict(tmp_path, run).sampled == list(range(10, 23))


def test_a_damaged_part_that_is_left_out_is_missing(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        predict(tmp_path, run, fails_at=20)
    replace(tmp_path / "parts/00001.npy")
    (tmp_path / "parts/00002.npy").mkdir()
    trainer = quiet_trainer(tmp_path, [SampleWriter()], limit_predict_batches=1)
    data = LabelDataModule(23, batch_size=5, part_size=10)
    trainer.predict(Counting(str(run), CategoricalSampler(guidance=2.0), 3), data)
    assert [path.name for path in sorted(tmp_path.glob("parts/*.npy"))] == ["00000.npy"]
    assert not (tmp_path / "samples.npz").exists()


@pytest.mark.parametrize("error", [UserError("refused"), RunError("no space")])
def test_what_rank_zero_refuses_is_raised_on_every_rank(error: Exception) -> None:
    def refuse() -> None:
        raise error

    sent: list[Exception] = []
    strategy = SimpleNamespace(broadcast=lambda value: sent.append(value) or value)
    with pytest.raises(type(error), match=str(error)):
        of_rank_zero(SimpleNamespace(is_global_zero=True, strategy=strategy), refuse)
    assert sent == [error]
    strategy.broadcast = lambda value: error
    with pytest.raises(type(error), match=str(error)):
        of_rank_zero(SimpleNamespace(is_global_zero=False, strategy=strategy), lambda: None)


def replace(part: Path) -> None:
    pixels = np.load(part)
    pixels[0, 0, 0] ^= 1
    np.save(part, pixels)


def test_a_replaced_part_is_sampled_again(run: Path, directory: Path, tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        predict(tmp_path, run, fails_at=20)
    replace(tmp_path / "parts/00001.npy")
    assert predict(tmp_path, run).sampled == list(range(10, 23))
    assert (images(tmp_path) == images(directory)).all()


def test_a_part_replaced_before_the_join_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    join = SampleWriter._join
    monkeypatch.setattr(SampleWriter, "_join", lambda writer: (replace(tmp_path / "parts/00002.npy"), join(writer)))
    with pytest.raises(UserError, match=r"parts/00002.npy is not the file that was written: start predict again"):
        predict(tmp_path, run)
    assert not (tmp_path / "samples.npz").exists() and not (tmp_path / "samples.json").exists()
    monkeypatch.undo()
    assert predict(tmp_path, run).sampled == [20, 21, 22]


def test_replaced_samples_are_refused(run: Path, directory: Path, tmp_path: Path) -> None:
    for name in ("samples.npz", "samples.json"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    with np.load(tmp_path / "samples.npz") as archive:
        np.savez(tmp_path / "samples.npz", arr_0=archive["arr_0"] ^ 1, arr_1=archive["arr_1"])
    with pytest.raises(UserError, match="samples.npz is not the file that samples.json describes"):
        predict(tmp_path, run)


def test_samples_without_a_record_are_not_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "samples.npz").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="without a samples.json"):
        predict(tmp_path, run)
    assert (tmp_path / "samples.npz").read_bytes() == b"precious"


def test_a_killed_join_is_repeated(run: Path, directory: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda path: (_ for _ in ()).throw(InterruptedError))
        with pytest.raises(InterruptedError):
            predict(tmp_path, run)
    assert predict(tmp_path, run).sampled == []
    assert (images(tmp_path) == images(directory)).all() and not (tmp_path / "parts").exists()


def test_a_missing_class_is_reported(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"class 10, and the generator knows the 10 classes 0 … 9"):
        predict(tmp_path, run, classes=[3, 10])


@pytest.mark.cluster
def test_two_ranks_write_the_file_of_one(run: Path, directory: Path, tmp_path: Path) -> None:
    predict(tmp_path, run, **two_ranks())
    assert (images(tmp_path) == images(directory)).all()
    assert (SamplesFile(tmp_path / "samples.npz").labels == SamplesFile(directory / "samples.npz").labels).all()
    # as if killed before the record was written, with a part missing: one rank has nothing to do
    (tmp_path / "parts").mkdir()
    (tmp_path / "samples.json").rename(tmp_path / "parts/settings.json")
    with np.load(tmp_path / "samples.npz") as archive:
        for part in (0, 2):
            path = tmp_path / f"parts/{part:05d}.npy"
            np.save(path, archive["arr_0"][part * 10 : part * 10 + 10])
            records.write(path.with_suffix(".json"), {"sha256": file_sha256(path)})
    predict(tmp_path, run, **two_ranks())
    assert (images(tmp_path) == images(directory)).all() and not (tmp_path / "parts").exists()


def test_samples_of_a_run_trained_further_are_replaced(tmp_path: Path) -> None:
    run = write_runs(tmp_path / "runs")
    predict(tmp_path / "out", run)
    before = images(tmp_path / "out")
    file = run / "checkpoints/last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["global_step"] = 8
    checkpoint["state_dict"]["generator.class_embedding.weight"].neg_()
    torch.save(checkpoint, file)
    assert predict(tmp_path / "out", run).sampled == list(range(23))
    assert (images(tmp_path / "out") != before).any()
    with pytest.raises(FileExistsError, match="generator.run was"):
        predict(tmp_path / "out", write_runs(tmp_path / "others", num_subspaces=1))


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_a_precision_that_rounds_the_decoder_is_refused(precision: str, run: Path, tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", devices=1, precision=precision, logger=False, default_root_dir=tmp_path)
    with pytest.raises(UserError, match=f"trainer.precision={precision} rounds the tokens.*: sample with 32-true"):
        trainer.predict(SamplingModule(str(run)), LabelDataModule(2), return_predictions=False)
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("recorded", [["runs"], None, 7, "a\0b", "elsewhere"])
def test_a_recorded_run_that_is_no_path_is_another_run(recorded: object) -> None:
    assert not _same_place(recorded, "runs")
    assert _same_place("runs/../runs", "runs")
