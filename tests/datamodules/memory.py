"""A source that holds its images in memory, some of them damaged on purpose; and a module that records batches."""

import hashlib

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from datamodules import ImageRecords, ImageSource


class MemoryRecords(ImageRecords):
    def __init__(self, length: int, offset: int, bad: tuple[int, ...]) -> None:
        self.length, self.offset, self.bad = length, offset, bad

    def __len__(self) -> int:
        return self.length

    def load(self, index: int) -> Image.Image:
        if index in self.bad:
            raise OSError("image file is truncated")
        pixels = np.random.default_rng((self.offset, index)).integers(0, 256, (12, 15, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    def label(self, index: int) -> int:
        return index % 2

    def describe(self, index: int) -> str:
        return f"memory/{self.offset}/{index}.png"


class MemorySource(ImageSource):
    def __init__(self, length: int = 22, bad: tuple[int, ...] = (), bad_validation: tuple[int, ...] = ()) -> None:
        self.length, self.bad, self.bad_validation = length, bad, bad_validation
        self.classes = {"even": 0, "odd": 1}

    def split(self, name: str) -> MemoryRecords:
        return MemoryRecords(self.length, 0, self.bad) if name == "train" else MemoryRecords(7, 1, self.bad_validation)

    @property
    def class_to_idx(self) -> dict[str, int]:
        return self.classes


class Diary(LightningModule):
    """Records the images of each batch and a hash of their pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[tuple[tuple[int, ...], str]] = []
        self.evaluated: list[dict] = []

    def training_step(self, batch: dict, batch_index: int) -> torch.Tensor:
        assert set(batch) == {"image", "label", "index"}
        digest = hashlib.sha256(batch["image"].numpy().tobytes()).hexdigest()[:12]
        self.batches.append((tuple(batch["index"].tolist()), digest))
        return self.weight * batch["image"].mean()

    def validation_step(self, batch: dict, batch_index: int) -> None:
        self.evaluated.append(batch)

    test_step = validation_step

    def predict_step(self, batch: dict, batch_index: int) -> torch.Tensor:
        return batch["index"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def quiet_trainer(**arguments: object) -> Trainer:
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "max_epochs": -1,
    }
    return Trainer(**(defaults | arguments))
