"""Training step of the f16 dual tokenizer with the losses of its recipe, for `benchmarks.gpu`.

The LightningModule of `cli.py fit` trains on one batch of noise. VGG-16 and CLIP have their sizes and random weights.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from commands.cli.noise import quiet
from commands.step_window import StepsTracedError, StepWindow
from commands.trace import Figures, figures, read_events
from lightning_modules import TokenizerModule
from polytoken.discriminators import PatchDiscriminator
from polytoken.losses import Adversarial, Disentanglement, FeatureAlignment, Reconstruction, TokenizerObjective
from polytoken.losses.perceptual import PerceptualTerm
from polytoken.quantizers import FactorizedQuantizer, VectorQuantizer
from polytoken.teachers import Teacher
from polytoken.teachers.stand_in import SmallVisionTransformer
from polytoken.tokenizers import ConvolutionalTokenizer


class RandomPerceptual(PerceptualTerm):
    """A perceptual term of LPIPS's cost, whose network has random weights and needs no file.

    Args:
        channels: of each convolution; 0 is a pooling.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__(weights="")
        self.channels = channels

    def load_network(self) -> nn.Module:
        """Convolutions and poolings in a row."""
        layers: list[nn.Module] = []
        width = 3
        for channels in self.channels:
            if channels:
                layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()]
                width = channels
            else:
                layers.append(nn.MaxPool2d(2))
        return nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def distance(self, network: nn.Module, first: Tensor, second: Tensor) -> Tensor:
        """Mean squared difference of the maps before each pooling and of the last ones."""
        total = first.new_zeros(())
        for layer in network.children():
            if isinstance(layer, nn.MaxPool2d):
                total = total + (first - second).square().mean()
            first, second = layer(first), layer(second)
        return total + (first - second).square().mean()


@dataclass(frozen=True)
class Parts:
    """Sizes of the networks.

    Args:
        tokenizer: arguments of the tokenizer.
        codebook_size: of each branch.
        teacher: arguments of the vision transformer.
        perceptual: channels of the perceptual network.
        discriminator: channels of its first layer.
    """

    tokenizer: dict[str, Any]
    codebook_size: int
    teacher: dict[str, int]
    perceptual: Sequence[int]
    discriminator: int

    def module(self, weights: Path, compiled: bool = False) -> TokenizerModule:
        """The module of the recipe `fq_dual`, whose discriminator trains from the first step.

        Args:
            weights: of the teacher.
            compiled: compile encoder and decoder.
        """
        torch.manual_seed(0)
        branch = VectorQuantizer(codebook_size=self.codebook_size, code_dim=8, entropy_weight=0.03)
        discriminator = PatchDiscriminator(self.discriminator)
        objective = TokenizerObjective(
            Reconstruction("l2"),
            RandomPerceptual(self.perceptual),
            Disentanglement(0.1),
            alignment_high=FeatureAlignment("high", subspace=1, weight=0.5),
            adversarial=Adversarial(discriminator, "hinge", start_step=0, weight=0.5),
            teachers={"high": Teacher("stand_in", str(weights))},
        )
        tokenizer = ConvolutionalTokenizer(FactorizedQuantizer(branch, 2), **self.tokenizer)
        return TokenizerModule(tokenizer, objective, compile=compiled)


def trained(parts: Parts, batch: int, steps: int, compiled: bool) -> tuple[float, float, Figures]:
    """FLOPs and milliseconds of a step in bfloat16, and the figures of a traced one.

    Args:
        parts: sizes.
        batch: images a step.
        steps: that are timed, and traced.
        compiled: compile encoder and decoder.
    """
    quiet()
    warnings.filterwarnings("ignore", message=".*no `val_dataloader`.*")
    with tempfile.TemporaryDirectory() as directory:
        weights, path = Path(directory) / "teacher.safetensors", Path(directory) / "trace.json.gz"
        SmallVisionTransformer(**parts.teacher).save(weights)  # type: ignore[arg-type]
        side = parts.tokenizer["image_size"]
        images = {"image": torch.rand(batch, 3, side, side) * 2 - 1}

        def fit(module: TokenizerModule, steps: int, *callbacks: pl.Callback) -> None:
            trainer = pl.Trainer(
                devices=1,
                precision="bf16-mixed",
                max_steps=steps,
                callbacks=list(callbacks),
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=directory,
            )
            trainer.fit(module, DataLoader([images] * steps, batch_size=None))  # type: ignore[arg-type]

        with FlopCounterMode(display=False) as counter:
            fit(parts.module(weights), 1)
        module, window = parts.module(weights, compiled), StepWindow(steps, path)
        with suppress(StepsTracedError):
            fit(module, 3 * steps, window)
        if compiled and not module.compiled:
            raise RuntimeError("the tokenizer was not compiled: see the warning above")
        return float(counter.get_total_flops()), window.milliseconds, figures(read_events(path), steps)
