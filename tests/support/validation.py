"""A validation set of a few images, and a trainer that runs callbacks over it."""

from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_modules import TokenizerModule
from polytoken.losses import Reconstruction, TokenizerObjective


class Images(pl.LightningDataModule):
    """Images of two alternating classes, and one padding row."""

    class_to_idx = {"a": 0, "b": 1}

    def __init__(self, count: int = 10, image_size: int = 16) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.images = torch.rand(count + 1, 3, image_size, image_size, generator=generator) * 2 - 1
        self.labels = torch.arange(count + 1) % 2
        self.indices = [*range(count), -1]

    def val_dataloader(self) -> DataLoader:
        rows = [
            {"image": image, "label": label, "index": index}
            for image, label, index in zip(self.images, self.labels, self.indices, strict=True)
        ]
        return DataLoader(rows, batch_size=4)

    train_dataloader = test_dataloader = val_dataloader


def quiet_trainer(directory: Path, callbacks: Sequence[pl.Callback], **arguments: object) -> pl.Trainer:
    """A trainer on the CPU that prints and saves nothing."""
    return pl.Trainer(
        default_root_dir=directory,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=list(callbacks),
        **{"logger": False, "enable_checkpointing": False, **arguments},
    )


def module_of(tokenizer: torch.nn.Module) -> TokenizerModule:
    """A module around a tokenizer, with one loss term and no discriminator."""
    return TokenizerModule(tokenizer, TokenizerObjective(reconstruction=Reconstruction()))


def logged_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """Logged metrics."""
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
