"""Writer of generated images: parts while sampling, one npz file and a grid in the end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from artifacts.lock import hold
from artifacts.provenance import commit, versions
from artifacts.run_files import SamplePart, Samples
from artifacts.samples import SamplesFile, write_samples
from callbacks.checkpoint.run_record import differences
from callbacks.measure.plots import image_table
from callbacks.predict.agreement import of_rank_zero
from polytoken import records
from polytoken.errors import ExistingFileError, UserError
from polytoken.files import file_sha256, real_path, remove, replacing
from polytoken.images import save_png
from polytoken.ranges import within
from polytoken.streams import Pending

NETWORKS = ("settings.generator.", "settings.tokenizer.")


class SampleWriter(pl.Callback):
    """Writes what a SamplingModule generates: ``samples.npz``, ``samples.json`` and ``grid.png``.

    Each rank writes whole parts of the images to ``parts/``, each with its SHA-256, and rank 0 joins them in the end.
    Another predict with the same settings samples only parts that are missing or no longer as they were written,
    nothing if the npz exists, and everything if the run was trained further.
    ``samples.npz`` holds ``arr_0`` uint8 (n, H, W, 3) and ``arr_1`` int64 (n,), as ADM's evaluator reads them.
    ``samples.json`` records the settings, and ``grid.png`` shows a few images of each class.

    Args:
        output: the directory; None is that of the run.
        grid_rows: classes in the grid, evenly chosen.
        grid_columns: images of each class.
    """

    def __init__(self, output: str | None = None, grid_rows: int = 10, grid_columns: int = 10) -> None:
        within(1, 1000, self, grid_rows=grid_rows, grid_columns=grid_columns)
        self.output = output
        self.grid_rows = grid_rows
        self.grid_columns = grid_columns
        self._pending: tuple[Pending[Any], int] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the parts that exist, and leave them out of the data.

        Raises:
            ExistingFileError: the directory holds samples of other settings.
            UserError: its npz is not the one that was written.
        """
        if stage != "predict":
            raise UserError(f"SampleWriter writes the images of predict and cannot run in {stage}: leave it out")
        self._data = trainer.datamodule  # type: ignore[attr-defined]
        self._directory = Path(self.output or trainer.default_root_dir)
        settings = {**pl_module.settings(), **self._data.settings(), "precision": str(trainer.precision)}
        self._settings = records.decode(records.encode(settings), dict[str, Any], "settings")  # as read from the file
        self._class_names = pl_module.class_names
        self._labels = self._data.labels(pl_module.num_classes, pl_module.class_names)
        self._rows: list[Tensor] = []
        self._pending = None
        self._finished, done = of_rank_zero(trainer, self._take_over)
        self._data.leave_out(done)

    def _take_over(self) -> tuple[bool, list[int]]:
        """Lock the directory, and clear it of other samples; returns if all is there, and the parts that are."""
        hold(self._directory)
        parts = range(self._data.num_parts)
        outdated = self._outdated()
        if not outdated and self._npz.exists() and self._record.exists():
            self._check_npz()
            rank_zero_info(f"{self._npz} exists, with these settings: nothing to do. Delete it to sample again.")
            shutil.rmtree(self._parts, ignore_errors=True)  # a kill during the clean-up leaves parts behind
            return True, list(parts)
        if outdated:
            rank_zero_info(f"{self._directory} holds samples of earlier weights of the same run: sampling again.")
            shutil.rmtree(self._parts, ignore_errors=True)
        whole = [part for part in parts if self._is_whole(part)]
        if whole:
            rank_zero_info(f"{self._parts} holds {len(whole)} of {len(parts)} parts: sampling the others.")
        for part in set(parts) - set(whole):
            remove(self._part(part))  # damaged
        records.write(self._parts / "settings.json", {"settings": self._settings})
        for old in (self._npz, self._record) if outdated else (self._record,):
            old.unlink(missing_ok=True)
        return False, whole

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Pending[Any],
        batch: dict[str, Tensor],
        *_: Any,
    ) -> None:
        """Take over the batch before, whose images, uint8 (B, H, W, 3), were decoded while this one was drawn."""
        self._take_pending()
        self._pending = outputs, int(batch["index"][-1])

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the last batch."""
        self._take_pending()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take over the batch before an interruption, which may complete a part."""
        if not isinstance(exception, RuntimeError):  # an error of the GPU would only be raised again
            self._take_pending()

    def _take_pending(self) -> None:
        """Collect the pending images, and save a part after its last image."""
        if self._pending is None:
            return
        (images, last), self._pending = self._pending, None
        self._rows.append(images.wait().cpu())
        number, position = divmod(last, self._data.part_size)
        if position == len(self._data.part(number)) - 1:
            path = self._part(number)
            with replacing(path) as unfinished, unfinished.open("wb") as file:
                np.save(file, torch.cat(self._rows).numpy())
            records.write(path.with_suffix(".json"), {"sha256": file_sha256(path)})
            self._rows = []

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Join the parts of all ranks, here since a rank without parts runs no other hook."""
        if self._finished:
            return
        trainer.strategy.barrier("samples")
        missing = [part for part in range(self._data.num_parts) if not self._part(part).exists()]
        if missing:  # trainer.limit_predict_batches
            rank_zero_info(f"{len(missing)} of {self._data.num_parts} parts are missing: start again to sample them.")
        elif trainer.is_global_zero:
            self._join()
        trainer.strategy.barrier("samples joined")

    def deliver(self) -> list[Path]:
        """The images and the record of their settings."""
        return [self._npz, self._record]

    def _join(self) -> None:
        shape = self._read(0).shape[1:]
        write_samples(self._npz, self._pieces(), self._labels, shape)
        save_png(self._directory / "grid.png", self._grid())
        records.write(
            self._record,
            {
                "settings": self._settings,
                "sha256": file_sha256(self._npz),
                "class_names": self._class_names,
                "versions": versions("torch", "lightning"),
                "commit": commit(),
            },
        )
        shutil.rmtree(self._parts)
        rank_zero_info(f"{len(self._labels)} samples: {self._npz}, shown in {self._directory / 'grid.png'}")

    def _pieces(self) -> Iterator[np.ndarray]:
        for part in range(self._data.num_parts):
            if not self._is_whole(part):
                raise UserError(
                    f"{self._part(part)} is not the file that was written: start predict again, which samples it again"
                )
            yield self._read(part)

    def _grid(self) -> np.ndarray:
        """The first images of a few classes, a row each."""
        classes = np.unique(self._labels)
        chosen = classes[np.unique(np.linspace(0, len(classes) - 1, self.grid_rows).round().astype(int))]
        rows = []
        for label in chosen:
            indices = np.flatnonzero(self._labels == label)[: self.grid_columns]
            rows.append([self._image(int(index)) for index in indices])
        return image_table(rows, row_labels=[self._class_names[int(label)] for label in chosen])

    def _image(self, index: int) -> Tensor:
        part, position = divmod(index, self._data.part_size)
        return torch.from_numpy(np.array(self._read(part)[position])).permute(2, 0, 1)

    def _read(self, part: int) -> np.ndarray:
        path = self._part(part)
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{path} cannot be read as an array: delete it, and start predict again") from error

    def _is_whole(self, part: int) -> bool:
        """True if a part exists as it was written; the note of its digest is written last."""
        note = self._part(part).with_suffix(".json")
        try:
            return records.read(note, SamplePart)["sha256"] == file_sha256(self._part(part))
        except (UserError, FileNotFoundError):
            return False

    def _check_npz(self) -> None:
        SamplesFile(self._npz)
        if records.read(self._record, Samples).get("sha256") != file_sha256(self._npz):
            raise UserError(
                f"{self._npz} is not the file that {self._record.name} describes: restore it, or delete "
                f"{self._directory} and sample again"
            )

    def _outdated(self) -> bool:
        """True if existing samples are of earlier weights of the same runs; raises if other settings differ."""
        record = next((path for path in (self._record, self._parts / "settings.json") if path.exists()), None)
        remedy = "Delete the directory, or sample into another one by --run.stage samples/NEW_NAME."
        if record is None:
            if self._npz.exists():
                raise ExistingFileError(f"{self._npz} exists without a samples.json of its settings. {remedy}")
            return False
        try:
            written = records.read(record, Samples)["settings"]
        except UserError as error:
            raise UserError(f"{error}. {remedy}") from error
        changed = differences(written, self._settings, "settings")
        # several paths may name one run: its weights decide
        other = [change for change in changed if not change[0].startswith(NETWORKS)]
        if not other and not any(key.endswith((".sha256", ".fingerprint")) for key, _, _ in changed):
            return False
        moved = [change for change in changed if change[0].endswith(".run") and not _same_place(*change[1:])]
        if other or moved:
            key, old, new = (other or moved)[0]
            raise ExistingFileError(
                f"{self._directory} holds samples of other settings: {key.removeprefix('settings.')} was {old} and is "
                f"{new}. {remedy}"
            )
        return True

    @property
    def _npz(self) -> Path:
        return self._directory / "samples.npz"

    @property
    def _record(self) -> Path:
        return self._directory / "samples.json"

    @property
    def _parts(self) -> Path:
        return self._directory / "parts"

    def _part(self, part: int) -> Path:
        return self._parts / f"{part:05d}.npy"


def _same_place(one: Any, other: str) -> bool:
    return isinstance(one, str) and "\0" not in one and real_path(one) == real_path(other)
