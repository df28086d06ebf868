"""Order of the images: a function of the seed and the number of earlier batches, and of nothing else.

Training is one endless stream of global batches. Batch t belongs to epoch `t // batches_per_epoch`; the epoch's
permutation depends on (seed, epoch), and rank r of W takes the r-th slice of each global batch. So the numbers of ranks
and workers do not change the content of a global batch, and a single integer is enough to resume a run anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from torch.utils.data import Sampler

from polytoken.errors import UserError

Draw = tuple[int, int]  # (epoch, index of the image in its split)

PADDING = -1  # index of a row that pads the last batch of a rank

_STREAMS = {"order": 1, "augmentation": 2, "replacement": 3, "view": 4}
Stream = Literal["order", "augmentation", "replacement", "view"]


def seeded_generator(stream: Stream, *key: int) -> np.random.Generator:
    """Return the random generator of a purpose and a key of non-negative integers."""
    # numpy pads short keys with zeros: without the first word (seed, epoch) and (seed, epoch, 0) would be one stream
    return np.random.default_rng((_STREAMS[stream], *key))


class TrainingOrder(Sampler[Draw]):
    """The draws of one rank for one epoch's length of batches, from the stream's position when iteration begins.

    Args:
        length: Images in the split.
        batch_size: Images in a batch of one rank.
        rank: This rank.
        world_size: Number of ranks.
        seed: Seed of the run.
        position: Called when iteration begins; returns the number of earlier global batches.
    """

    def __init__(
        self, length: int, batch_size: int, rank: int, world_size: int, seed: int, position: Callable[[], int]
    ) -> None:
        self.length, self.batch_size, self.rank, self.world_size = length, batch_size, rank, world_size
        self.seed, self.position = seed, position
        self.global_batch_size = batch_size * world_size
        self.batches_per_epoch = length // self.global_batch_size
        if self.batches_per_epoch == 0:
            raise UserError(
                f"The training split holds {length} images, fewer than one global batch of {self.global_batch_size} "
                f"({batch_size} images on each of {world_size} ranks): lower data.batch_size or use fewer devices."
            )

    def __len__(self) -> int:
        return self.batches_per_epoch * self.batch_size

    def __iter__(self) -> Iterator[Draw]:
        start = self.position()
        epoch = None
        for step in range(start, start + self.batches_per_epoch):
            if step // self.batches_per_epoch != epoch:
                epoch = step // self.batches_per_epoch
                # the remainder that fills no global batch is left out: other images each epoch
                permutation = seeded_generator("order", self.seed, epoch).permutation(self.length)
            first = (step % self.batches_per_epoch) * self.global_batch_size + self.rank * self.batch_size
            for index in permutation[first : first + self.batch_size]:
                yield epoch, int(index)


class EvaluationOrder(Sampler[Draw]):
    """Every image once, in order: rank r of W takes images r, r + W, r + 2W and so on.

    All ranks draw equally often, since sharded models must call forward together: if the number of images is no
    multiple of W, the last draw of some ranks has the index `PADDING`; such a row must not be counted.
    """

    def __init__(self, length: int, rank: int, world_size: int) -> None:
        if length == 0:
            raise UserError("The evaluation split is empty: expected at least one image.")
        self.length, self.rank, self.world_size = length, rank, world_size

    def __len__(self) -> int:
        return -(-self.length // self.world_size)

    def __iter__(self) -> Iterator[Draw]:
        for index in range(self.rank, len(self) * self.world_size, self.world_size):
            yield 0, index if index < self.length else PADDING


class ListedOrder(Sampler[Draw]):
    """The given images, possibly none, in the given order."""

    def __init__(self, images: Sequence[int]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Draw]:
        for index in self.images:
            yield 0, index
