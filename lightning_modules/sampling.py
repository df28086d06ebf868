"""Sampling from a trained generator: `cli.py predict` writes the images, `cli.py test` measures them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from datamodules.labels import LabelDataModule
from datamodules.references import ReferenceDataModule
from polytoken.errors import UserError
from polytoken.generators.decoding import Compile
from polytoken.images import from_uint8, resize_displayed, to_uint8
from polytoken.pipeline import GenerationPipeline, finite_images, snaps
from polytoken.ranges import LARGEST_SEED, within
from polytoken.sampling import Forcing, SamplerSettings
from polytoken.streams import Pending, SideStream

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # by trainer.precision


class SamplingModule(pl.LightningModule):
    """Generates images of the classes and indices of a batch; ``callbacks.SampleWriter`` writes them.

    An image depends on its class, its index, the sampler and the seed; on batches and ranks only by rounding.

    Args:
        generator_run: run or checkpoint of the generator: ``runs/digits/stage2/fq_dual``.
        sampler: guidance, and rules of the generator's family: temperature … of codes, or steps … of latents.
        seed: of all images.
        tokenizer_run: present place of the tokenizer; None looks where it was in training, and beside the
            generator's run.
        trust: packages besides polytoken whose classes the checkpoints may name.
        compile: sample by graphs of ``torch.compile``, which takes a minute or two at the start; ``auto`` does so on a
            GPU. If compiling fails, a line says why, and sampling continues in eager mode.
        forcing: sub-codes that are those of a reference image, the ``image`` of a batch; None samples all.
        image_size: pixels a side to which the images, in 8 bits, are resized once (bicubic, antialiased); None keeps
            the tokenizer's.

    Raises:
        MissingFileError: if a run does not exist.
        UserError: if the sampler's rules are those of another family, or the generator cannot be forced.
    """

    def __init__(
        self,
        generator_run: str,
        sampler: SamplerSettings | None = None,
        seed: int = 0,
        tokenizer_run: str | None = None,
        trust: Sequence[str] = (),
        compile: Compile = "auto",  # noqa: A002
        forcing: Forcing | None = None,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        within(8, 4096, self, image_size=image_size)
        within(0, LARGEST_SEED, self, seed=seed)
        self.generator = GenerationPipeline.from_run(generator_run, tokenizer_run, trust, compile)
        self.sampler = self.generator.rules(sampler or SamplerSettings())
        self.seed = seed
        self.forcing = forcing
        self.image_size = image_size
        self._side_stream = SideStream()
        if forcing is not None:
            self.generator.forced_places(forcing)

    def configure_callbacks(self) -> list[pl.Callback]:
        """Raise UserError, before callbacks write, for classes that do not exist, or references that do not fit."""
        if not str(self.trainer.precision).endswith(("32-true", "-mixed")):
            raise UserError(
                f"trainer.precision={self.trainer.precision} rounds the tokens and the decoder's input: sample with "
                "32-true, or with bf16-mixed, which computes the generator alone in bfloat16"
            )
        data = getattr(self.trainer, "datamodule", None)
        if (self.forcing is not None) != isinstance(data, ReferenceDataModule):
            raise UserError(
                "forced sub-codes are those of reference images: set both model.forcing and data.class_path "
                f"datamodules.ReferenceDataModule, or neither; forcing is {self.forcing} and data is "
                f"{type(data).__name__}"
            )
        if isinstance(data, ReferenceDataModule):
            self.generator.check_references(data.references)
        if isinstance(data, LabelDataModule):
            data.labels(self.num_classes, self.class_names)
        return []

    def setup(self, stage: str) -> None:
        """Round the generator's weights once, where autocast would round them at every call."""
        if dtype := AUTOCAST.get(str(self.trainer.precision)):
            self.generator.round_weights(dtype)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.generator.num_classes

    @property
    def class_names(self) -> list[str]:
        """The name of each class."""
        return self.generator.class_names

    def settings(self) -> dict[str, Any]:
        """Return everything that the images depend on besides their classes, as plain data."""
        forcing = {} if self.forcing is None else {"forcing": asdict(self.forcing)}
        resized = {} if self.image_size is None else {"image_size": self.image_size}
        return {**self.generator.origin, "sampler": asdict(self.sampler), "seed": self.seed, **forcing, **resized}

    def predict_step(self, batch: dict[str, Tensor], batch_index: int) -> Pending[tuple[Tensor, Tensor]]:
        """Images uint8 (B, H, W, 3) of ``label`` (B,), whose ``index`` (B,) are consecutive.

        A GPU decodes them while it draws the next batch, so they are pending.
        """
        forced = None if self.forcing is None else self.generator.force(batch["image"], self.forcing)
        first = int(batch["index"][0])
        tokens = self.generator.draw(batch["label"], self.sampler, self.seed, first, forced)
        reads = [tensor for tensor in (tokens.codes, tokens.latents) if tensor is not None]
        return self._side_stream.run(
            lambda: self.generator.decode_unchecked(tokens, snaps(self.sampler)),
            reads,
            lambda decoded: self._resized(finite_images(decoded)),
        )

    def forced_alone(self, references: Tensor) -> Tensor:
        """Images uint8 (B, H, W, 3) that the forced sub-codes of references (B, 3, H, W) decode to alone."""
        assert self.forcing is not None
        return self._resized(self.generator.forced_alone(self.generator.force(references, self.forcing)))

    def _resized(self, images: Tensor) -> Tensor:
        """Images uint8 (B, H, W, 3) at ``image_size``."""
        if self.image_size is None:
            return images
        resized = resize_displayed(from_uint8(images.permute(0, 3, 1, 2)), self.image_size)
        return to_uint8(resized).permute(0, 2, 3, 1)

    def test_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """The same images, for ``callbacks.GenerationMetrics`` to measure."""
        return self.predict_step(batch, batch_index).wait()
