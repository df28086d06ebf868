"""How alike the subspaces of a tokenizer are, to one another and to foundation models (SSQ appendix A.2, Fig. 6)."""

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
from callbacks.measure.plots import draw_matrix, new_figure, publish, render
from polytoken import records
from polytoken.errors import UserError
from polytoken.metrics.gather import gather_rows
from polytoken.metrics.similarity import SubspaceCosines, cknna, linear_cka
from polytoken.specs import Encoding


class AffinityMatrix(SubsetMeasurement):
    """Draws and logs two tables: subspace × subspace, and subspace × teacher.

    ``cosine/i_j`` and ``squared_cosine/i_j`` are means over positions, of the code vectors two subspaces of equal width
    have at the same position. ``cknna/i_<teacher>`` and ``cka/i_<teacher>`` compare a subspace with a teacher of the
    objective, both averaged over positions. Writes ``affinity.png``, and ``affinity.json`` with k, the number of images
    and all entries; CKNNA depends on both numbers, so compare it at equal ones only.

    Args:
        max_images: the most images, evenly spread over the set; memory grows with their square.
        k: neighbours of CKNNA.
        teacher_features: what of a teacher is compared: the mean of its patches, or its class token.
    """

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
        """Start collecting anew; teachers that training did not need are loaded now."""
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
        """Add positions to the cosines, and keep each image's mean feature vectors."""
        self._cosines.update(encoding.subspaces)
        for kept, part in zip(self._subspaces, encoding.subspaces, strict=True):
            kept.append(part.float().mean((2, 3)))
        for name, teacher in self._teachers.items():
            (features,) = teacher.features(images)
            pooled = features.cls if self.teacher_features == "cls" else features.patches.mean((1, 2))
            self._guides[name].append(pooled.float())

    def results(self) -> dict[str, Tensor]:
        """Upper triangle of the first table, and all of the second."""
        if not self._num_subspaces:
            return {}
        subspaces = [gather_rows(kept, self._cosines.device) for kept in self._subspaces]
        guides = [gather_rows(kept, self._cosines.device) for kept in self._guides.values()]
        self._num_images = len(subspaces[0])
        self._tables = dict(zip(("cosine", "squared_cosine"), self._cosines.compute(), strict=True))
        if guides:
            self._tables["cknna"] = _table(subspaces, guides, self._cknna)
            self._tables["cka"] = _table(subspaces, guides, linear_cka)
        return self._figures()

    def draw(self, trainer: pl.Trainer) -> None:
        """Write the picture and the file."""
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
        figure, axes = new_figure(columns=len(self._tables))
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
        figure.suptitle(f"Affinity of the subspaces, {self._num_images} images")
        publish(trainer, "affinity", render(figure))
        records.write(Path(trainer.default_root_dir) / "affinity.json", self._record())

    def _cknna(self, one: Tensor, other: Tensor) -> Tensor:
        if self._num_images > max(self.k, 3):
            return cknna(one, other, self.k)
        rank_zero_warn(
            f"AffinityMatrix met {self._num_images} images, and CKNNA with k = {self.k} needs more than "
            f"{max(self.k, 3)}, so it is left out: raise trainer.limit_val_batches, or lower k."
        )
        return torch.tensor(torch.nan)

    def _figures(self) -> dict[str, Tensor]:
        figures = {}
        for name in ("cosine", "squared_cosine"):
            for row, column in combinations(range(self._num_subspaces), 2):
                if not self._tables[name][row, column].isnan():  # of unequal widths
                    figures[f"{name}/{row}_{column}"] = self._tables[name][row, column]
        for name in ("cknna", "cka"):
            for row, values in enumerate(self._tables.get(name, ())):
                figures |= {f"{name}/{row}_{guide}": value for guide, value in zip(self._guides, values, strict=True)}
        return figures

    def _record(self) -> dict[str, Any]:
        tables = {
            name: [[None if value != value else value for value in row] for row in table.tolist()]
            for name, table in self._tables.items()
        }
        numbers = {"images": self._num_images, "k": self.k, "teacher_features": self.teacher_features}
        return {**numbers, "teachers": list(self._teachers), **tables}


def _table(rows: list[Tensor], columns: list[Tensor], compare: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``compare`` of every row with every column, both features (n, d)."""
    return torch.tensor([[compare(row, column) for column in columns] for row in rows])
