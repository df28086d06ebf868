"""A model and data nested like the real ones, in a few hundred numbers."""

import os
import signal
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_modules import TokenizerModule
from polytoken.errors import UserError


class ToyQuantizer(nn.Module):
    def __init__(self, codebook_size: int = 8, distance: Literal["cosine", "euclidean"] = "cosine") -> None:
        super().__init__()
        self.codebook = nn.Embedding(codebook_size, 4)


class ToyTokenizer(nn.Module):
    def __init__(self, quantizer: ToyQuantizer, width: int = 4) -> None:
        super().__init__()
        if width < 0:
            raise UserError(f"width is {width}; it must be positive.")
        self.scale = 1 / width  # a fault of the code at 0
        self.quantizer = quantizer
        self.layer = nn.Linear(4, width)


class ToyTerm(nn.Module):
    def __init__(self, weight: float = 1.0, start_step: int = 0) -> None:
        super().__init__()
        self.weight = weight


@dataclass
class ToyOptimizerConfig:
    learning_rate: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)


class ToyModule(LightningModule):
    """Draws noise in every step, so that a lost random state changes the weights."""

    def __init__(
        self,
        tokenizer: ToyTokenizer,
        objective: dict[str, ToyTerm] | None = None,
        optimizer: ToyOptimizerConfig | None = None,
        manual: bool = False,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.objective = nn.ModuleDict(objective or {})
        self.settings = optimizer or ToyOptimizerConfig()
        self.automatic_optimization = not manual

    def configure_callbacks(self) -> list[Callback]:
        if not self.automatic_optimization:
            TokenizerModule.check_trainer(self.trainer)
        return []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if os.environ.get("TOY_KILL_AT_STEP") == str(self.global_step):
            os.kill(os.getpid(), signal.SIGKILL)
        loss = (
            (self.tokenizer.layer(batch + torch.randn_like(batch)) - self.tokenizer.quantizer.codebook.weight[0])
            .square()
            .mean()
        )
        self.log("train/loss", loss)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.tokenizer.layer(batch + torch.randn_like(batch)).square().mean())

    test_step = validation_step

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.tokenizer.layer(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        settings = self.settings
        return torch.optim.AdamW(self.parameters(), lr=settings.learning_rate, betas=settings.betas)


class ToyImages(Dataset):
    """Equal images, so that batches differ in random numbers only."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Tensor:
        return torch.ones(4)


class ToyData(LightningDataModule):
    """Two batches an epoch: odd steps end inside of an epoch, even ones at its end."""

    def __init__(self, batch_size: int = 8, size: int = 16) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.size = size

    def _loader(self) -> DataLoader:
        return DataLoader(ToyImages(self.size), batch_size=self.batch_size, shuffle=True)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader
