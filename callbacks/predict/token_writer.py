"""Writer of token stores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from artifacts.lock import hold
from artifacts.moments import Moments
from artifacts.token_manifest import MANIFEST, StorePlan, read_manifest
from artifacts.token_store import check_tokens
from artifacts.token_store_writer import TokenStoreWriter
from callbacks.predict.agreement import of_rank_zero
from datamodules.images import ImageDataModule
from datamodules.sources.base import SPLITS, Split
from polytoken.errors import RunError, UserError
from polytoken.ranges import at_least


class TokenWriter(BasePredictionWriter):
    """Writes the token stores `<output>/train` and `<output>/validation`, shard by shard, on all ranks.

    A shard holds a fixed range of images. Existing shards are not computed again, and the others are distributed over
    the ranks. The stores appear, and replace old ones, only when they are complete.

    Args:
        output: Root of the stores; None is the run's directory.
        images_per_shard: Images in a shard, all views of each; a multiple of the batch size. A kill loses at most one
            shard per rank. A rank holds its tokens in memory: 84 MB for 8,192 images × 10 views × 256 × 2, and three
            times as much while writing.
    """

    def __init__(self, output: str | None = None, images_per_shard: int = 8192) -> None:
        super().__init__("batch")
        at_least(1, self, images_per_shard=images_per_shard)
        self.output = output
        self.images_per_shard = images_per_shard
        self._writers: dict[Split, TokenStoreWriter] = {}
        self._start_shard()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the missing shards, and select the images of this rank's share of them.

        Raises:
            UserError: The data module yields no views, batches would cross shards, or predictions are kept in memory.
        """
        if stage != "predict":
            return
        data = trainer.datamodule
        if not isinstance(data, ImageDataModule) or data.views is None:
            raise UserError("TokenWriter needs an ImageDataModule that yields views: set data.views")
        if self.images_per_shard % data.validation_batch_size:
            raise UserError(
                f"TokenWriter.images_per_shard={self.images_per_shard} is not a multiple of the batch size of "
                f"prediction, {data.validation_batch_size}, and a batch must not cross shards: change either"
            )
        if trainer.predict_loop.return_predictions:
            raise UserError("all predictions would be kept in memory: set return_predictions to false")
        root = Path(trainer.strategy.broadcast(self.output or trainer.default_root_dir))
        for split in SPLITS:
            plan = StorePlan(
                spec=pl_module.spec,
                latent_shape=pl_module.latent_shape,
                tokenizer_fingerprint=pl_module.fingerprint,
                tokenizer_run=pl_module.tokenizer_run,
                split=split,
                num_images=len(data.dataset(split)),
                class_to_idx=dict(data.class_to_idx),
                image_size=data.image_size,
                views=data.split_views(split).names,
                images_per_shard=self.images_per_shard,
                source=data.dataset(split).records.digest(),
            )
            self._writers[split] = TokenStoreWriter(root / split, plan)
        # one list for all ranks: another rank may write a shard before this one looks
        missing = of_rank_zero(trainer, lambda: self._begin(root))
        mine = missing[trainer.global_rank :: trainer.world_size]
        data.predict_only(
            {
                split: [
                    image for s, shard in mine if s == split for image in self._writers[split].plan.shard_images(shard)
                ]
                for split in SPLITS
            }
        )

    def _begin(self, root: Path) -> list[tuple[Split, int]]:
        """Lock the stores and begin them, or go on with them; the shards that are missing."""
        hold(root)
        for writer in self._writers.values():
            writer.begin()
        return [(split, shard) for split, writer in self._writers.items() for shard in writer.missing()]

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: dict[str, Tensor],
        batch_indices: Sequence[Any] | None,
        batch: dict[str, Tensor],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Collect codes or latents of a batch, and write a shard after its last image."""
        writer = self._writers[SPLITS[dataloader_idx]]
        if batch_idx == 0:  # another split: limit_predict_batches may have left an incomplete shard of the previous one
            self._start_shard()
        assert batch_indices is not None  # (epoch, index) pairs, including those of unreadable images
        rows = {name: values.cpu().numpy() for name, values in prediction.items()}
        tokens = rows[writer.plan.holds]
        check_tokens(tokens, writer.plan.spec, f"a batch for {writer.path}")  # before a narrow type wraps them
        self._rows.append((rows["index"], rows["label"], tokens.astype(writer.plan.dtype)))
        moments = Moments.of(rows["latents"])
        self._moments = moments if self._moments is None else self._moments + moments
        self._images_seen += len(batch_indices)
        _, last = batch_indices[-1]
        shard = last // self.images_per_shard
        if last + 1 == writer.plan.shard_images(shard).stop:
            expected = len(writer.plan.shard_images(shard))
            if self._images_seen != expected:
                raise RunError(f"shard {shard} got {self._images_seen} of its {expected} images: run predict again")
            indices, labels, stored = (np.concatenate(parts) for parts in zip(*self._rows, strict=True))
            writer.write(shard, indices, labels, stored, self._moments)
            self._start_shard()

    def deliver(self) -> list[Path]:
        """The manifests, which hold the digests of the shards."""
        return [writer.path / MANIFEST for writer in self._writers.values()]

    def _start_shard(self) -> None:
        self._rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # indices, labels, tokens
        self._moments: Moments | None = None
        self._images_seen = 0

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Put the new stores in place, here since a rank without shards runs no other hook."""
        if stage != "predict":
            return
        trainer.strategy.barrier("all shards are written")
        for writer in self._writers.values():
            if trainer.is_global_zero:
                writer.finish()
                plan, manifest = read_manifest(writer.path / MANIFEST)  # without unreadable images
                size = sum(file.stat().st_size for file in writer.path.rglob("*"))
                rank_zero_info(
                    f"tokens: {writer.path}, {manifest.images:,} images, {size / 1e6:,.1f} MB; crops of each, as "
                    f"places in its centre square: {'; '.join(plan.views)}"
                )
        trainer.strategy.barrier("the stores are in place")
