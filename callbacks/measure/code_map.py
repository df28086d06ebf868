"""t-SNE maps of code vectors by class, for each subspace (SSQ Fig. 7, FQGAN Figs. 4 and 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from artifacts.display import printable
from callbacks.measure.measurement import Measurement
from callbacks.measure.plots import logged_step, new_plot, publish, render, tensorboard_writers
from polytoken.errors import UserError
from polytoken.metrics.gather import gather_rows
from polytoken.ranges import LARGEST_SEED, within
from polytoken.specs import Encoding

Level = Literal["image", "patch"]
PATCHES_PER_IMAGE = 16  # random positions kept per image


@dataclass
class _Points:
    level: Level
    subspace: int
    vectors: np.ndarray
    labels: np.ndarray
    silhouette: float


class CodeMap(Measurement):
    """Maps the code vectors of some classes: of whole images (mean over positions) and of single patches.

    A patch of a multi-scale tokenizer is a position of its finest grid, and its vector the sum of all scales there.

    Runs in a validate command and in the validation at the end of a fit only, since the maps are slow. Logs
    ``silhouette/image/i`` and ``silhouette/patch/i`` of subspace i, between -1 and 1: the mean silhouette of the
    vectors (Euclidean, grouped by class), not of the map, which can show spurious clusters. Writes
    ``code_map.png``, and the vectors to TensorBoard's projector.

    Args:
        classes: names of the classes, or the number of classes to take in their order.
        max_points: upper bound of the points of a map; each class gets an equal share of the images.
        seed: seed of t-SNE and of the choice of patches.
    """

    def __init__(self, classes: int | list[str] = 10, max_points: int = 1000, seed: int = 0) -> None:
        within(0, LARGEST_SEED, self, seed=seed)
        number = classes if isinstance(classes, int) else len(classes)
        if number < 2 or max_points < 2 * number:
            raise UserError(
                f"CodeMap: {number} classes and max_points {max_points}; give two classes or more, and at least two "
                "points for each."
            )
        self.classes = classes
        self.max_points = max_points
        self.seed = seed

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Look up the classes now, so that a wrong name stops the run before its first step."""
        known: dict[str, int] = trainer.datamodule.class_to_idx  # type: ignore[attr-defined]
        if isinstance(self.classes, int):
            names = sorted(known, key=known.__getitem__)[: self.classes]
        else:
            names = self.classes
            if unknown := [name for name in names if name not in known]:
                raise UserError(
                    f"CodeMap: the data has no class {unknown[0]!r}; name some of its {len(known)} classes: "
                    f"{', '.join(list(known)[:10])}{' …' if len(known) > 10 else ''}"
                )
        self._names = {known[name]: printable(name) for name in names}

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._device = pl_module.device
        self._active = trainer.state.fn == TrainerFn.VALIDATING
        self._maps: list[_Points] = []
        self._num_subspaces = len(pl_module.tokenizer.subspace_channels)
        # each rank keeps a whole share per class, since it cannot know those of the others; results() drops the rest
        self._share = self.max_points // len(self._names)
        self._labels: list[Tensor] = []
        self._vectors: list[list[Tensor]] = [[] for _ in range(self._num_subspaces)]
        self._patches: list[list[Tensor]] = [[] for _ in range(self._num_subspaces)]
        self._generator = torch.Generator().manual_seed(self.seed)

    def measure(self, images: Tensor, reconstruction: Tensor, labels: Tensor, encoding: Encoding) -> None:
        if not self._active:
            return
        before = torch.cat(self._labels) if self._labels else labels[:0]
        kept = first_of_each(torch.cat([before, labels]), list(self._names), self._share)[len(before) :]
        if not kept.any():
            return
        self._labels.append(labels[kept])
        for index, subspace in enumerate(encoding.subspaces):
            vectors = subspace[kept].float().flatten(2)
            self._vectors[index].append(vectors.mean(2))
            if index == 0:  # all subspaces at the same positions
                order = torch.rand(len(vectors), vectors.shape[2], generator=self._generator)
                places = order.argsort(1)[:, None, :PATCHES_PER_IMAGE].to(subspace.device)
            self._patches[index].append(vectors.gather(2, places.expand(-1, vectors.shape[1], -1)).transpose(1, 2))

    def results(self) -> dict[str, float]:
        if not self._active or not self._num_subspaces:
            return {}
        labels = gather_rows(self._labels, self._device)
        kept = first_of_each(labels, list(self._names), self._share)
        if not kept.any():
            rank_zero_warn(
                f"CodeMap got no image of {', '.join(self._names.values())} and draws no map: name other classes, or "
                "raise trainer.limit_val_batches."
            )
            return {}
        for index in range(self._num_subspaces):
            vectors = gather_rows(self._vectors[index], self._device)
            patches = gather_rows(self._patches[index], self._device)
            self._add("image", index, vectors[kept], labels[kept])
            of_patches = labels[kept].repeat_interleave(patches.shape[1]) if len(patches) else labels
            self._add("patch", index, patches[kept].flatten(0, 1), of_patches)
        self._maps.sort(key=lambda points: points.level)
        return {f"silhouette/{points.level}/{points.subspace}": points.silhouette for points in self._maps}

    def draw(self, trainer: pl.Trainer) -> None:
        """Write the plot and the projector's vectors."""
        if not self._maps:
            return
        from matplotlib.lines import Line2D

        plot, axes = new_plot(columns=self._num_subspaces, rows=2)
        colours = dict(zip(self._names, _colours(len(self._names)), strict=True))
        for panel, points in zip(axes.flat, self._maps, strict=True):
            places = _tsne(points.vectors, self.seed)
            # one call with mixed classes: many patches share a code, and a class drawn last would cover the others
            panel.scatter(places[:, 0], places[:, 1], s=8, color=[colours[label] for label in points.labels.tolist()])
            what = f"{len(places)} {'images' if points.level == 'image' else 'patches'}"
            panel.set_title(f"subspace {points.subspace}: {what}, silhouette {points.silhouette:.2f}", fontsize=10)
            panel.set(xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
            for writer in tensorboard_writers(trainer):
                names = [self._names[label] for label in points.labels.tolist()]
                tag = f"codes_{points.level}_{points.subspace}"
                writer.add_embedding(points.vectors, names, tag=tag, global_step=logged_step(trainer))
        handles = [Line2D([], [], marker="o", linestyle="", color=colours[label]) for label in self._names]
        plot.legend(handles, list(self._names.values()), loc="outside right center", title="class")
        plot.suptitle("t-SNE of code vectors, by class")
        publish(trainer, "code_map", render(plot))

    def _add(self, level: Level, subspace: int, vectors: Tensor, labels: Tensor) -> None:
        from sklearn.metrics import silhouette_score

        chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.seed))[: self.max_points]
        points, classes = vectors.cpu()[chosen].numpy(), labels.cpu()[chosen].numpy()
        groups = len(np.unique(classes))
        # a silhouette needs two classes, one of them with two members
        silhouette = silhouette_score(points, classes) if 2 <= groups < len(points) else float("nan")
        self._maps.append(_Points(level, subspace, points, classes, float(silhouette)))


def first_of_each(labels: Tensor, classes: list[int], limit: int) -> Tensor:
    """Mask (n,) of the first ``limit`` rows of each of these classes."""
    hits = labels[:, None] == torch.tensor(classes, device=labels.device)
    return (hits & (hits.cumsum(0) <= limit)).any(1)


def _tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Map vectors (n, d) to a plane (n, 2)."""
    if len(vectors) < 4:  # too few for neighbourhoods
        return np.zeros((len(vectors), 2))
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(perplexity=perplexity, init="random", random_state=seed).fit_transform(vectors)


def _colours(number: int) -> np.ndarray:
    """Distinguishable colours (number, 4)."""
    from matplotlib import colormaps

    if number <= 10:
        return colormaps["tab10"](range(number))
    return colormaps["gist_rainbow"](np.linspace(0, 1, number))
