"""Captioning probe: a language model that reads features of a frozen tokenizer (FQGAN appendix D, Table 6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import MeanMetric

from artifacts.run_files import CAPTIONS, Caption
from datamodules.captions import CaptionDataModule
from datamodules.images import check_image_size
from lightning_modules.resuming import ResumingModule
from polytoken import records
from polytoken.captioning import Captioner, LanguageModel
from polytoken.distributed import several_ranks
from polytoken.errors import UserError
from polytoken.features import check_feature, features_of
from polytoken.fingerprint import fingerprint
from polytoken.frozen import FrozenNetwork
from polytoken.loading import Checkpoint
from polytoken.metrics.captions import caption_metrics
from polytoken.optimization import OptimizerConfig
from polytoken.ranges import at_least

RECORD = "captioner"  # in a checkpoint: tokenizer, feature and language model


class CaptioningModule(ResumingModule):
    """Trains a projector, and in stage 2 the language model behind it, on images with captions.

    Validation captions each image once, logs `val/bleu_1` … `val/bleu_4` and `val/cider_d` in percent, and writes
    ``captions.json`` into the run. A training step draws one of the captions of each image. The tokenizer, and in stage
    1 the language model, are no part of the checkpoint.

    Args:
        tokenizer_run: run of the tokenizer, e.g. ``runs/photos/tokenizer/fq_dual``, or a checkpoint.
        language: the language model.
        feature: what it reads, a name of :mod:`polytoken.features`: before/all, after/0, decoded/deep …
        train_language: train the language model too (stage 2), not the projector alone (stage 1).
        init_from: run of stage 1, whose projector this run starts from; its language model too, if stage 1 trained it.
        optimizer: of all that is trained.
        max_tokens: most tokens of a caption, in training and in generation.
        beams: of the generation; 1 is greedy.

    Raises:
        MissingFileError: a run or the language model is missing.
        UserError: `transformers` is not installed, or the tokenizer has no such feature.
    """

    def __init__(
        self,
        tokenizer_run: str,
        language: LanguageModel,
        feature: str = "after/all",
        train_language: bool = False,
        init_from: str | None = None,
        optimizer: OptimizerConfig | None = None,
        max_tokens: int = 64,
        beams: int = 1,
    ) -> None:
        super().__init__()
        at_least(1, self, max_tokens=max_tokens, beams=beams)
        tokenizer = Checkpoint.open(tokenizer_run).tokenizer()  # draws before the projector does, as in earlier runs
        check_feature(tokenizer, feature, tokenizer_run)
        self.image_size = tokenizer.image_size
        self._tokenizer = FrozenNetwork(lambda: tokenizer)
        self.feature = feature
        self.record = {
            "tokenizer": fingerprint(tokenizer),
            "feature": feature,
            "language": language.identity,
        }
        blank = torch.zeros(1, 3, self.image_size, self.image_size)
        self.captioner = Captioner(language, self.features(blank).shape[1], train_language)
        self.init_from = init_from
        self.optimizer_config = optimizer or OptimizerConfig(learning_rate=1e-3, betas=(0.9, 0.999))
        self.max_tokens, self.beams = max_tokens, beams
        self.validation_loss = MeanMetric()

    def features(self, images: Tensor) -> Tensor:
        """Features (B, D, h, w) of images (B, 3, H, W), without gradient."""
        return features_of(self._tokenizer.on(images.device), images, self.feature)[0]

    def configure_model(self) -> None:
        """Take over what stage 1 trained, in a run that starts.

        Raises:
            UserError: the data have no captions or other sizes, stage 1 had another tokenizer, feature or language
                model, or it trained a language model that this run would freeze as it was before.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, CaptionDataModule):
            raise UserError(
                f"CaptioningModule reads images with captions, and data is {type(data).__name__}: set data.class_path "
                "to datamodules.CaptionDataModule"
            )
        check_image_size(data, self.image_size, "the image_size of the tokenizer in model.tokenizer_run")
        if self.init_from is not None and self.resumes_from is None and self.trainer.state.fn == "fit":
            stage1 = Checkpoint.open(self.init_from)
            self._check_record(stage1.content, stage1.path)
            self.captioner.projector.load_state_dict(stage1.weights("captioner.projector"))
            if trained := stage1.weights("captioner.network"):
                if self.captioner.network is None:
                    raise UserError(
                        f"{self.init_from} has trained its language model, and this run would freeze an untrained one: "
                        "set model.train_language to true, or name another run as init_from"
                    )
                self.captioner.network.load_state_dict(trained)

    def _check_record(self, checkpoint: Any, path: Path | str) -> None:
        found = checkpoint.get(RECORD)
        if not isinstance(found, dict):
            raise UserError(f"{path} is not the checkpoint of a captioning probe: name a run of configs/caption_stage1")
        for name, value in self.record.items():
            if found.get(name) != value:
                raise UserError(
                    f"{path} was trained with the {name} '{found.get(name)}', and this run has '{value}': name a run "
                    f"with the same {name}, or train stage 1 again"
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the record."""
        checkpoint[RECORD] = self.record

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise UserError if the checkpoint is of another tokenizer, feature or language model."""
        self._check_record(checkpoint, self.trainer.ckpt_path or "the checkpoint")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer_config.build(self.captioner.parameters())

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Cross-entropy of one caption of each image, a scalar."""
        self.optimizer_config.set_learning_rate(self.optimizers(), self.global_step, self.trainer.max_steps)  # type: ignore[arg-type]
        drawn = [texts[int(torch.randint(len(texts), ()))] for texts in batch["captions"]]
        loss = self.captioner.loss(self.features(batch["image"]), drawn, self.max_tokens)
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the captions of the last validation."""
        self._found: dict[int, Caption] = {}  # by index of the image

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Caption the images of a batch, without padding rows; the loss is that of each image's first caption."""
        real = batch["index"] >= 0
        references = [texts for texts, is_real in zip(batch["captions"], real.tolist(), strict=True) if is_real]
        if references:  # the last batch of a rank may hold only padding
            features = self.features(batch["image"][real])
            first = [texts[0] for texts in references]
            loss = self.captioner.loss(features, first, self.max_tokens)
            count = sum(len(self.captioner.tokens(text, self.max_tokens)) for text in first)
            self.validation_loss.update(loss, weight=count)
            generated = self.captioner.generate(features, self.max_tokens, self.beams)
            images = self.trainer.datamodule.records(training=False)  # type: ignore[attr-defined]
            for index, text, texts in zip(batch["index"][real].tolist(), generated, references, strict=True):
                self._found[index] = {"image": images.describe(index), "generated": text, "references": texts}
        self.log("val/loss", self.validation_loss, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all ranks' captions, and write them."""
        captions = gather_captions(self._found)
        metrics = caption_metrics([one["generated"] for one in captions], [one["references"] for one in captions])
        # equal on all ranks, of which Lightning would warn
        self.log_dict({f"val/{name}": value for name, value in metrics.items()}, sync_dist=True)
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:
            records.write(Path(self.trainer.default_root_dir) / CAPTIONS, captions)


def gather_captions(found: dict[int, Caption]) -> list[Caption]:
    """Captions of all ranks by the index of their image; every rank must call it."""
    every: list[Any] = [found]
    if several_ranks():
        every = [None] * dist.get_world_size()
        dist.all_gather_object(every, found)
    merged = {index: caption for part in every for index, caption in part.items()}
    return [merged[index] for index in sorted(merged)]
