"""Data module of class labels for sampling."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule

from polytoken.errors import UserError
from polytoken.ranges import LARGEST_SEED, at_least, within

Batch = dict[str, torch.Tensor]

MOST_IMAGES = 10_000_000  # 200 times the published protocols; their classes are held in memory


class LabelDataModule(LightningDataModule):
    """Batches of `label` (B,) and `index` (B,) int64, the classes of the images to generate.

    Images 0 … num_images − 1 are divided into parts of `part_size`, which a writer saves one by one. The ranks share
    the missing parts. A batch lies within one part and holds consecutive images, so that the random stream of an image
    depends on its index only, not on the number of ranks or the batch size.

    Args:
        num_images: Images of all ranks together.
        classes: `balanced` (image i has class i modulo the number of classes), `random` (drawn uniformly, as in
            published protocols), or a list of classes by number or by name, repeated as often as needed.
        batch_size: Images at a time on each device.
        part_size: Images saved together; a kill can lose one part on each rank.
        seed: Seed of `random`, not negative.
    """

    def __init__(
        self,
        num_images: int,
        # str first: jsonargparse takes the first type that fits, and would make a number of the name "10"
        classes: Literal["balanced", "random"] | list[str | int] = "balanced",
        batch_size: int = 32,
        part_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # a resumed run may have less left than ranks; Lightning's own __init__ has just set it to False
        self.allow_zero_length_dataloader_with_multiple_devices = True
        at_least(1, self, batch_size=batch_size, part_size=part_size)
        within(1, MOST_IMAGES, self, num_images=num_images)
        if batch_size > part_size:
            raise UserError(
                f"data.batch_size={batch_size} is more than data.part_size={part_size}, and a batch never leaves its "
                "part: lower the one or raise the other."
            )
        within(0, LARGEST_SEED, self, seed=seed)
        if not isinstance(classes, str) and not classes:
            raise UserError("data.classes is an empty list: name at least one class.")
        self.num_images, self.classes = num_images, classes
        self.batch_size, self.part_size, self.seed = batch_size, part_size, seed
        self._finished: frozenset[int] = frozenset()

    @property
    def num_parts(self) -> int:
        """Count the parts; the last may be shorter."""
        return -(-self.num_images // self.part_size)

    def labels(self, num_classes: int, names: Sequence[str] = ()) -> np.ndarray:
        """Return the class of each image, int64 (num_images,).

        Args:
            num_classes: Classes of the generator.
            names: Their names, by number.

        Raises:
            UserError: A class is not one of 0 … num_classes − 1, or there is no class of a name.
        """
        if self.classes == "random":
            return np.random.default_rng(self.seed).integers(num_classes, size=self.num_images)
        known = np.arange(num_classes) if isinstance(self.classes, str) else _checked(self.classes, num_classes, names)
        return np.resize(known, self.num_images)

    def settings(self) -> dict[str, Any]:
        """Return the settings that determine the labels, as plain data."""
        random = {"seed": self.seed} if self.classes == "random" else {}
        return {"num_images": self.num_images, "classes": self.classes, "part_size": self.part_size, **random}

    def part(self, index: int) -> range:
        """Return the images of a part."""
        return range(index * self.part_size, min((index + 1) * self.part_size, self.num_images))

    def leave_out(self, finished: Collection[int]) -> None:
        """Skip these parts; all ranks must pass the same ones before they read batches."""
        self._finished = frozenset(finished)

    def predict_dataloader(self) -> Batches:
        """Return this rank's batches."""
        assert self.trainer is not None
        module = self.trainer.lightning_module
        labels = torch.from_numpy(self.labels(module.num_classes, getattr(module, "class_names", ())))
        remaining = [part for part in range(self.num_parts) if part not in self._finished]
        parts = [self.part(part) for part in remaining[self.trainer.global_rank :: self.trainer.world_size]]
        size = self.batch_size
        return Batches(labels, [images[i : i + size] for images in parts for i in range(0, len(images), size)])

    def test_dataloader(self) -> Batches:
        """Return the same batches: a test generates the images that prediction would write."""
        return self.predict_dataloader()


class Batches:
    """Batches of labels; Lightning would replace the sampler of a DataLoader, and take a plain list for loaders.

    Args:
        labels: Class of each image (num_images,).
        images: Consecutive images of each batch.
    """

    def __init__(self, labels: torch.Tensor, images: list[range]) -> None:
        self.labels, self.images = labels, images

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Batch]:
        for images in self.images:
            index = torch.arange(images.start, images.stop)
            yield {"label": self.labels[index], "index": index}


def _checked(classes: Sequence[int | str], num_classes: int, names: Sequence[str]) -> np.ndarray:
    known = {name: label for label, name in enumerate(names)}
    labels = [known.get(label, -1) if isinstance(label, str) else label for label in classes]
    for given, label in zip(classes, labels, strict=True):
        if not 0 <= label < num_classes:
            some = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
            raise UserError(
                f"data.classes names class {given!r}, and the generator knows the {num_classes} classes 0 … "
                f"{num_classes - 1}{f' ({some})' if some else ''}: name classes among them."
            )
    return np.array(labels, dtype=np.int64)
