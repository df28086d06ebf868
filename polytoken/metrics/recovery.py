"""Recovery of codebooks from a wrong scale, trained without their tokenizer (UR-AUC of StableVQ, arXiv 2609.26774)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polytoken.errors import UserError
from polytoken.metrics.codebook import CodebookStatistics
from polytoken.precision import full_precision
from polytoken.quantizers.base import Quantizer
from polytoken.ranges import LARGEST_SEED, above, at_least, within
from polytoken.tokenizers.base import Tokenizer

BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Recovery:
    """Training of a quantizer whose codebooks have a wrong scale, on recorded features.

    Its own losses train all its parameters by Adam at a constant rate, as StableVQ trains its codebook; the features
    stay as they are.

    Args:
        steps: T.
        learning_rate: constant.
        batch_size: images a step.
        evaluations: times that the use is measured after the start, evenly spread.
        seed: of the batches.
    """

    steps: int = 500
    learning_rate: float = 1e-3
    batch_size: int = 32
    evaluations: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, self, steps=self.steps, batch_size=self.batch_size, evaluations=self.evaluations)
        above(0, self, learning_rate=self.learning_rate)
        within(0, LARGEST_SEED, self, seed=self.seed)


@dataclass(frozen=True)
class UsageCurve:
    """Use of each codebook during the training.

    Args:
        steps: 0 … T at which it was measured.
        usage: for each codebook, the share of its codes that the features select at each of these steps.
    """

    steps: list[int]
    usage: list[list[float]]

    def area(self) -> list[float]:
        """For each codebook the mean use over the training, 1/T ∫ U(t) dt, by trapezoids."""
        steps = torch.tensor(self.steps, dtype=torch.float64)
        return [float(torch.trapezoid(torch.tensor(one, dtype=torch.float64), steps) / steps[-1]) for one in self.usage]


def usage_curve(quantizer: Quantizer, features: Tensor, factor: float, settings: Recovery) -> UsageCurve:
    """Scale all codebooks of a copy by a factor, train it, and measure how many codes the features select.

    Args:
        quantizer: stays as it is.
        features: (n, C, h, w) that it reads.
        factor: of the scale; 1 leaves the codebooks as they were trained.
        settings: of the training.

    Raises:
        UserError: if the quantizer has no codebook, or its losses train none.
    """
    tables = codebook_weights(quantizer)
    if not tables:
        raise UserError(f"{type(quantizer).__name__} has no codebook to scale and to train")
    with torch.random.fork_rng([features.device] if features.is_cuda else []):
        torch.manual_seed(settings.seed)
        copied = copy.deepcopy(quantizer).requires_grad_(True)
        with torch.no_grad():
            for weight in codebook_weights(copied):
                weight.mul_(factor)
        optimizer = torch.optim.Adam(copied.parameters(), settings.learning_rate, BETAS)
        times = sorted({round(settings.steps * i / settings.evaluations) for i in range(settings.evaluations + 1)})
        usage = [_usage(copied, features, settings.batch_size)]
        for step in range(1, settings.steps + 1):
            rows = torch.randint(len(features), (settings.batch_size,)).to(features.device)
            loss = sum(copied.train()(features[rows]).losses.values(), features.new_zeros(()))
            if not loss.requires_grad:
                raise UserError(
                    f"the losses of {type(quantizer).__name__} train no codebook: give one of them a weight"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step in times:
                usage.append(_usage(copied, features, settings.batch_size))
    return UsageCurve(times, [list(one) for one in zip(*usage, strict=True)])


def codebook_weights(quantizer: Quantizer) -> list[Tensor]:
    """Tables of code vectors of a quantizer; none where codes are points of a grid."""
    return [module.weight for module in quantizer.modules() if isinstance(module, nn.Embedding)]


@torch.no_grad()
def quantized_features(tokenizer: Tokenizer, batches: Iterable[Tensor]) -> Tensor:
    """Features (n, C, h, w) that the quantizer of a tokenizer reads of batches of images (B, 3, H, W)."""
    recorded: list[Tensor] = []
    handle = tokenizer.quantizer.register_forward_pre_hook(lambda _, given: recorded.append(given[0].float()))
    try:
        for images in batches:
            with full_precision(images.device):
                tokenizer.encode(images)
    finally:
        handle.remove()
    return torch.cat(recorded)


@torch.no_grad()
def _usage(quantizer: Quantizer, features: Tensor, batch_size: int) -> list[float]:
    """Share of each codebook that the features select."""
    statistics = CodebookStatistics(quantizer.codebook_sizes).to(features.device)
    for batch in features.split(batch_size):
        statistics.update(quantizer.eval()(batch).codes)
    return statistics.compute().usage
