"""A resumed run equals an uninterrupted one: the same images with the same pixels, batch by batch."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules import FolderSource, ImageDataModule
from tests.datamodules.memory import Diary, MemorySource, quiet_trainer
from tests.datamodules.test_listing import put

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

STEPS = 13  # of 5 an epoch: two epochs and a half


def data(num_workers: int = 0, **arguments: object) -> ImageDataModule:
    defaults = {"image_size": 8, "batch_size": 4, "seed": 3}
    source = arguments.pop("source", None) or MemorySource()
    return ImageDataModule(source, num_workers=num_workers, **(defaults | arguments))


def fit(datamodule: ImageDataModule, ckpt_path: Path | None = None, **trainer_arguments: object) -> list:
    diary = Diary()
    trainer_arguments.setdefault("max_steps", STEPS)
    trainer_arguments.setdefault("limit_val_batches", 0)
    trainer = quiet_trainer(**trainer_arguments)
    trainer.fit(diary, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
    return diary.batches


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[list, Path]:
    """The batches of a whole run, and a folder with a checkpoint taken after each of them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    every = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    return fit(data(), enable_checkpointing=True, callbacks=[every]), folder


def test_epochs_differ_in_order_and_drop_the_remainder(uninterrupted: tuple[list, Path]) -> None:
    batches, _ = uninterrupted
    assert len(batches) == STEPS
    first, second = ([index for indices, _ in batches[start : start + 5] for index in indices] for start in (0, 5))
    assert len(set(first)) == len(set(second)) == 20
    assert first != second


@pytest.mark.parametrize(("step", "num_workers"), [(1, 0), (3, 0), (3, 2), (5, 0), (5, 2), (6, 0), (9, 2), (10, 0)])
def test_resume_from_any_step(uninterrupted: tuple[list, Path], step: int, num_workers: int) -> None:
    batches, folder = uninterrupted
    assert fit(data(num_workers), folder / f"step={step}.ckpt") == batches[step:]


def test_workers_change_nothing(uninterrupted: tuple[list, Path]) -> None:
    assert fit(data(num_workers=2)) == uninterrupted[0]


def test_checkpoint_holds_plain_types(uninterrupted: tuple[list, Path]) -> None:
    state = torch.load(uninterrupted[1] / "step=3.ckpt", weights_only=True)["ImageDataModule"]
    assert state["class_to_idx"] == {"even": 0, "odd": 1}
    assert (state["batches_trained"], state["seed"], state["global_batch_size"], state["length"]) == (3, 3, 4, 22)


@pytest.mark.parametrize("driven_by", [{"max_steps": STEPS}, {"max_steps": -1, "max_epochs": 3}])
def test_resume_from_the_end_of_an_epoch(uninterrupted: tuple[list, Path], tmp_path: Path, driven_by: dict) -> None:
    callback = ModelCheckpoint(tmp_path, filename="{epoch}", save_on_train_epoch_end=True, save_top_k=-1)
    whole = fit(data(), enable_checkpointing=True, callbacks=[callback], **driven_by)
    assert whole[:STEPS] == uninterrupted[0]
    assert fit(data(2), tmp_path / "epoch=0.ckpt", **driven_by) == whole[5:]
    assert fit(data(), tmp_path / "epoch=1.ckpt", **driven_by) == whole[10:]


class SaveAfterValidation(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer, module) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / f"{len(module.batches)}.ckpt")


def test_resume_after_validation(uninterrupted: tuple[list, Path], tmp_path: Path) -> None:
    validation = {"limit_val_batches": 1, "val_check_interval": 2, "num_sanity_val_steps": 2}
    batches = fit(data(), callbacks=[SaveAfterValidation(tmp_path)], **validation)
    assert batches == uninterrupted[0]  # a validation before or in between changes nothing
    assert fit(data(), tmp_path / "2.ckpt", **validation) == batches[2:]
    assert fit(data(2), tmp_path / "7.ckpt", **validation) == batches[7:]


def test_longer_run_after_max_steps_stopped_inside_an_epoch(uninterrupted: tuple[list, Path], tmp_path: Path) -> None:
    diary, trainer = Diary(), quiet_trainer(max_steps=7, limit_val_batches=0)
    trainer.fit(diary, datamodule=data())
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    assert diary.batches + fit(data(), tmp_path / "stopped.ckpt") == uninterrupted[0]


class FailOnce(Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_start(self, trainer, module, batch, batch_index) -> None:
        if len(module.batches) == 8:
            trainer.save_checkpoint(self.path)
            raise OSError("the GPU fell off the bus")


def test_a_batch_that_failed_is_trained_again(uninterrupted: tuple[list, Path], tmp_path: Path) -> None:
    with pytest.raises(OSError, match="fell off"):
        fit(data(2), callbacks=[FailOnce(tmp_path / "failed.ckpt")])
    assert fit(data(), tmp_path / "failed.ckpt") == uninterrupted[0][8:]


def test_reading_estimated_steps_early_loses_no_batch(uninterrupted: tuple[list, Path]) -> None:
    class Early(Diary):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            assert self.trainer.estimated_stepping_batches > 0
            return super().configure_optimizers()

    batches, folder = uninterrupted
    diary, trainer = Early(), quiet_trainer(max_epochs=3, limit_val_batches=0)
    # with workers the loader prefetches as soon as it is created
    trainer.fit(diary, datamodule=data(num_workers=2), ckpt_path=folder / "step=3.ckpt", weights_only=True)
    assert diary.batches[: STEPS - 3] == batches[3:]


def test_loading_does_not_touch_the_global_generator() -> None:
    datamodule = data(num_workers=2)
    before = torch.get_rng_state()
    next(iter(datamodule.train_dataloader()))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"batch_size": 2}, "global_batch_size was 4 and is 2"),
    ],
)
def test_another_order_is_rejected_inside_an_epoch(
    uninterrupted: tuple[list, Path], change: dict, message: str
) -> None:
    _, folder = uninterrupted
    with pytest.raises(ValueError, match=message):
        fit(data(**change), folder / "step=3.ckpt")
    fit(data(**change), folder / "step=5.ckpt")  # between epochs the user may change it


class Renamed(MemorySource):
    pass


def elsewhere(source: MemorySource) -> MemorySource:
    records = source.split("train")
    records.digest = lambda: "0" * 64
    source.split = lambda name: records if name == "train" else MemorySource().split(name)
    return source


@pytest.mark.parametrize("step", [3, 5, 13])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 9}, "data.image_size was 8 when the checkpoint was written, and is 9: restore it"),
        ({"crop_fraction": (0.5, 1.0)}, r"data.crop_fraction was \[0.8, 1.0\] when .*, and is \[0.5, 1.0\]"),
        ({"horizontal_flip": False}, "data.horizontal_flip was True when .*, and is False"),
        ({"source": Renamed()}, "data.source.class_path was .*MemorySource when .*, and is .*Renamed"),
        ({"source": MemorySource(length=24)}, "data.source was 22 images .* and is 24 images"),
        (
            {"source": elsewhere(MemorySource())},
            r"data.source was 22 images .* and is 22 images \(digest 000000000000\)",
        ),
    ],
)
def test_other_data_are_rejected_wherever_the_run_stands(
    uninterrupted: tuple[list, Path], step: int, change: dict, message: str
) -> None:
    """The last step is the end of the run, which has nothing left to train."""
    with pytest.raises(ValueError, match=message):
        fit(data(**change), uninterrupted[1] / f"step={step}.ckpt")


def test_a_data_set_that_was_moved_is_the_same(tmp_path: Path) -> None:
    for index in range(6):
        put(tmp_path / "a" / "train" / f"{index % 2}" / "deep" / f"{index}.png")
    put(tmp_path / "a" / "val" / "0" / "x.png")
    before = data(source=FolderSource(str(tmp_path / "a")))
    state = before.state_dict()
    (tmp_path / "a").rename(tmp_path / "b")
    data(source=FolderSource(str(tmp_path / "b"))).load_state_dict(state)
    deep = tmp_path / "b" / "train" / "1" / "deep"
    (deep / "1.png").rename(deep / "7.png")
    with pytest.raises(ValueError, match=r"data.source was 6 images .* and is 6 images"):
        data(source=FolderSource(str(tmp_path / "b"))).load_state_dict(state)


@pytest.mark.parametrize(
    ("key", "value"),
    [("batches_trained", -1), ("global_batch_size", 0), ("length", "many"), ("class_to_idx", None), ("data", [1])],
)
def test_a_broken_state_is_one_sentence(key: str, value: object) -> None:
    datamodule = data()
    with pytest.raises(ValueError, match=rf"the checkpoint: ImageDataModule: \$.{key}: expected"):
        datamodule.load_state_dict({**datamodule.state_dict(), key: value})


def test_another_batch_size_starts_at_the_next_epoch(uninterrupted: tuple[list, Path], tmp_path: Path) -> None:
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    resumed = fit(
        data(batch_size=2),
        uninterrupted[1] / "step=10.ckpt",
        max_steps=15,
        enable_checkpointing=True,
        callbacks=[every],
    )
    images = [index for indices, _ in resumed for index in indices]
    assert images == [index for indices, _ in uninterrupted[0][10:] for index in indices][:10]
    state = torch.load(tmp_path / "step=12.ckpt", weights_only=True)["ImageDataModule"]
    assert state["images_trained"] == 10 * 4 + 2 * 2
    # and the adjusted position resumes as well
    assert fit(data(batch_size=2), tmp_path / "step=12.ckpt", max_steps=15) == resumed[2:]


def test_other_classes_are_rejected(uninterrupted: tuple[list, Path]) -> None:
    source = MemorySource()
    source.classes = {"even": 1, "odd": 0}
    with pytest.raises(ValueError, match="'even': class 0 in the checkpoint, 1 in the data"):
        fit(data(source=source), uninterrupted[1] / "step=5.ckpt")
    # evaluation on other data is allowed
    quiet_trainer().validate(
        Diary(), datamodule=data(source=source), ckpt_path=uninterrupted[1] / "step=5.ckpt", verbose=False
    )


def test_workers_survive_the_signals_of_a_cluster() -> None:
    module = data(num_workers=1)
    loader = module._loader(range(8), range(8), batch_size=2, collate=list)
    batches = iter(loader)
    first = next(batches)
    for signum in (signal.SIGUSR1, signal.SIGTERM):
        os.kill(loader.workers[0].pid, signum)
    time.sleep(0.2)  # a dead worker would raise in the main process
    assert [first, *batches] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_killed_worker_is_reported() -> None:
    loader = data(num_workers=1)._loader(range(100), range(100), batch_size=2, collate=list)
    batches = iter(loader)
    next(batches)
    worker = loader.workers[0].pid
    with pytest.raises(RuntimeError, match=rf"DataLoader worker \(pid\(?s?\)? ?{worker}\)"):
        os.kill(worker, signal.SIGKILL)
        list(batches)


def test_a_killed_worker_is_reported_despite_torchs_own_error(caplog: pytest.LogCaptureFixture) -> None:
    """torch's SIGCHLD handler raises while the data module waits for the worker to end."""

    class Worker:
        pid, exitcode = 7, None

        def __init__(self) -> None:
            self.sentinel, end = os.pipe()
            os.close(end)

        def join(self) -> None:
            self.exitcode = -signal.SIGKILL
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    module = data(num_workers=1)
    loader = module._loader(range(8), range(8), batch_size=2, collate=list)
    loader.workers = [Worker()]
    module.on_exception(ConnectionResetError())
    assert "the data worker with process id 7 was ended by SIGKILL" in caplog.text
