"""Data module of images whose tokens are computed in training, by the tokenizer of a token store."""

from __future__ import annotations

from datamodules.images import ImageDataModule
from datamodules.sources.base import ImageSource
from datamodules.stored import StoredTokens
from polytoken.errors import UserError


class OnlineTokenDataModule(StoredTokens, ImageDataModule):
    """Batches of images, as those of `ImageDataModule`, for a generator that reads each crop's tokens.

    The frozen tokenizer of the store encodes them in every step (`GeneratorModule`). From the store come its
    fingerprint, its classes, and the shape and scale of its tokens. This costs a pass of the encoder in each step, and
    serves terms that read the same crop as the tokenizer, such as the alignment with a teacher.

    Args:
        source: The data set that the store was written from.
        store: Directory with the stores `train` and `validation`, e.g. `runs/digits/tokens/ifsq`.
        image_size: Height and width of the images, in pixels, as in the store.
        batch_size: Training images a step on each device.
        validation_batch_size: The same for evaluation; `batch_size` if None.
        num_workers: Worker processes of each device; 0 reads in the training process.
        crop_fraction: Smallest and largest fraction of the shorter side in a training crop.
        horizontal_flip: Mirror half of the training crops.
        seed: Seed of order and augmentation, not negative.
        max_bad_fraction: Stop the run when a rank has met more unreadable images than this fraction of a split, or,
            where the ranks divide one pass over the split, of its share.
        draft: Decode the JPEGs of training at a reduced size that has the pixels of a crop, as in `ImageDataModule`.

    Raises:
        MissingFileError: A store or a shard is missing.
        TokenStoreError: A store is damaged, or the two are of different tokenizers.
        UserError: The images are not those of the store.
    """

    def __init__(
        self,
        source: ImageSource,
        store: str,
        image_size: int = 256,
        batch_size: int = 32,
        validation_batch_size: int | None = None,
        num_workers: int = 8,
        crop_fraction: tuple[float, float] = (0.8, 1.0),
        horizontal_flip: bool = True,
        seed: int = 0,
        max_bad_fraction: float = 0.01,
        draft: bool = False,
    ) -> None:
        super().__init__(
            source,
            image_size,
            batch_size,
            validation_batch_size,
            num_workers,
            crop_fraction,
            horizontal_flip,
            seed,
            max_bad_fraction,
            draft=draft,
        )
        self._read_stores(store)
        self.sub_codes = list(range(self.full_spec.num_sub_codes)) if self.full_spec else []
        stored = self._stores["train"].plan.image_size
        if image_size != stored:
            raise UserError(f"data.image_size={image_size}: {store} is of images of {stored} px, set it to {stored}")

    def setup(self, stage: str) -> None:
        """List the splits, and compare their classes and images with those of the store.

        Raises:
            UserError: They differ.
        """
        super().setup(stage)
        if self.source.class_to_idx != self.class_to_idx:
            raise UserError(
                f"data.source numbers {len(self.source.class_to_idx)} classes otherwise than {self.store}, which has "
                f"{self.num_classes}: name the data set that the store was written from"
            )
        for split, store in self._stores.items():
            records = self.dataset(split).records
            if len(records) != store.plan.num_images:
                raise UserError(
                    f"data.source has {len(records)} {split} images, and {self.store} was written from "
                    f"{store.plan.num_images}: name the data set that the store was written from"
                )
            written, found = store.plan.source, records.digest()
            if written is not None and found != written:
                raise UserError(
                    f"the {split} images of data.source have the digest {found[:12]}, and those that {self.store} was "
                    f"written from {written[:12]}: name the same images by the same class, or write the store again"
                )
