"""Similarity of a tokenizer's subspaces to one another and to foundation models (SSQ appendix A.2, Fig. 6)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from callbacks.measure.measurement import SubsetMeasurement
from callbacks.measure.plots import draw_matrix, new_plot, publish, render
from polytoken import records
from polytoken.errors import UserError
from polytoken.metrics.gather import gather_rows
from polytoken.metrics.similarity import SubspaceCosines, cknna, linear_cka
from polytoken.specs import Encoding


class AffinityMatrix(SubsetMeasurement):
    """Draws and logs two tables: subspace × subspace, and subspace × teacher.

    ``cosine/i_j`` and ``squared_cosine/i_j`` are means over positions, of the code vectors of two subspaces of equal
    width at the same position. ``cknna/i_<teacher>`` and ``cka/i_<teacher>`` compare a subspace with a teacher of the
    objective, both averaged over positions. Writes ``affinity.png``, and ``affinity.json`` with k, the number of images
    and all entries; CKNNA compares only at equal k and equal numbers of images.

    Args:
        max_images: upper bound of the images, evenly spread over the set; memory grows with their square.
        k: neighbours of CKNNA.
        teacher_features: features of a teacher: the mean of its patches, or its class token.
    """

    reads_inputs = True  # as its teachers do in training

    def __init__(
        self, max_images: int = 2048, k: int = 10, teacher_features: Literal["cls", "patches"] = "patches"
    ) -> None:
        super().__init__(max_images)
        if k < 2 or max_images <= max(k, 3):
            raise UserError(
                f"AffinityMatrix: k is {k} and max_images {max_images}; CKNNA needs a k of 2 or more, and more images "
                f"than {max(k, 3)}."
            )
        self.k = k
        self.teacher_features = teacher_features

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset, and load the teachers that training did not need."""
        super().begin(trainer, pl_module)
        self._teachers = pl_module.objective.teachers
        for teacher in self._teachers.values():
            teacher.prepare(pl_module.device)
        self._num_subspaces = len(pl_module.tokenizer.subspace_channels)
        self._cosines = SubspaceCosines(self._num_subspaces).to(pl_module.device)
        self._subspaces: list[list[Tensor]] = [[] for _ in range(self._num_subspaces)]
        self._guides: dict[str, list[Tensor]] = {name: [] for name in self._teachers}
        self._tables: dict[str, Tensor] = {}

    def measure(self, images: Tensor, reconstruction: Tensor, labels: Tensor, encoding: Encoding) -> None:
        self._cosines.update(encoding.subspaces)
        for kept, subspace in zip(self._subspaces, encoding.subspaces, strict=True):
            kept.append(subspace.float().mean((2, 3)))
        for name, teacher in self._teachers.items():
            (features,) = teacher.features(images, full_precision=True)
            pooled = features.cls if self.teacher_features == "cls" else features.patches.mean((1, 2))
            self._guides[name].append(pooled.float())

    def results(self) -> dict[str, Tensor]:
        """Upper triangle of the first table, and all entries of the second."""
        if not self._num_subspaces:
            return {}
        subspaces = [gather_rows(kept, self._cosines.device) for kept in self._subspaces]
        guides = [gather_rows(kept, self._cosines.device) for kept in self._guides.values()]
        self._num_images = len(subspaces[0])
        # torchmetrics makes the table of a single subspace a scalar
        tables = [table.reshape(self._num_subspaces, -1) for table in self._cosines.compute()]
        self._tables = dict(zip(("cosine", "squared_cosine"), tables, strict=True))
        if guides:
            self._tables["cknna"] = _table(subspaces, guides, self._cknna)
            self._tables["cka"] = _table(subspaces, guides, linear_cka)
        return self._entries()

    def draw(self, trainer: pl.Trainer) -> None:
        """Write the plot and the file."""
        if not self._tables:
            return
        what = "class token" if self.teacher_features == "cls" else "mean of patches"
        titles = {
            "cosine": "mean cosine at a position",
            "squared_cosine": "mean squared cosine at a position",
            "cknna": f"CKNNA (k = {self.k}), {what}",
            "cka": f"linear CKA, {what}",
        }
        subspaces = [str(index) for index in range(self._num_subspaces)]
        plot, axes = new_plot(columns=len(self._tables))
        for panel, (name, table) in zip(axes[0], self._tables.items(), strict=True):
            among = name in ("cosine", "squared_cosine")
            draw_matrix(
                panel,
                table,
                titles[name],
                ("subspace", "subspace" if among else "teacher"),
                (subspaces, subspaces if among else list(self._teachers)),
                (-1, 1) if name == "cosine" else (0, 1),
            )
        plot.suptitle(f"Affinity of the subspaces, {self._num_images} images")
        publish(trainer, "affinity", render(plot))
        records.write(Path(trainer.default_root_dir) / "affinity.json", self._record())

    def _cknna(self, one: Tensor, other: Tensor) -> Tensor:
        if self._num_images > max(self.k, 3):
            return cknna(one, other, self.k)
        rank_zero_warn(
            f"AffinityMatrix got {self._num_images} images, and CKNNA with k = {self.k} needs more than "
            f"{max(self.k, 3)}, so it is omitted: raise trainer.limit_val_batches, or lower k."
        )
        return torch.tensor(torch.nan)

    def _entries(self) -> dict[str, Tensor]:
        entries = {}
        for name in ("cosine", "squared_cosine"):
            for row, column in combinations(range(self._num_subspaces), 2):
                if not self._tables[name][row, column].isnan():  # unequal widths
                    entries[f"{name}/{row}_{column}"] = self._tables[name][row, column]
        for name in ("cknna", "cka"):
            for row, values in enumerate(self._tables.get(name, ())):
                entries |= {f"{name}/{row}_{guide}": value for guide, value in zip(self._guides, values, strict=True)}
        return entries

    def _record(self) -> dict[str, Any]:
        tables = {
            name: [[None if value != value else value for value in row] for row in table.tolist()]
            for name, table in self._tables.items()
        }
        numbers = {"images": self._num_images, "k": self.k, "teacher_features": self.teacher_features}
        return {**numbers, "teachers": list(self._teachers), **tables}


def _table(rows: list[Tensor], columns: list[Tensor], compare: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Table of ``compare`` for every row and column, both features (n, d)."""
    return torch.tensor([[compare(row, column) for column in columns] for row in rows])
