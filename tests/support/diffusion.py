"""Small diffusion transformers with perturbed weights, so that every layer has an effect."""

from dataclasses import replace

import torch
from torch import Tensor

from polytoken.generators import DiffusionTransformer, DiffusionTrunkConfig, FlowMatching
from polytoken.specs import LatentSpec, Tokens

DIFFUSION_TRUNK = DiffusionTrunkConfig(dim=32, depth=2, num_heads=2)
LATENTS = LatentSpec(3, (4, 6), mean=(0.5, -1.0, 0.0), deviation=(2.0, 0.5, 1.0))
NUM_CLASSES = 5


def untrained_diffusion(spec: LatentSpec = LATENTS, flow: FlowMatching | None = None, **trunk) -> DiffusionTransformer:
    """A connected generator in training mode."""
    torch.manual_seed(0)
    generator = DiffusionTransformer(replace(DIFFUSION_TRUNK, **trunk), flow)
    generator.connect(spec, NUM_CLASSES)
    return generator


def small_diffusion(spec: LatentSpec = LATENTS, flow: FlowMatching | None = None, **trunk) -> DiffusionTransformer:
    """A generator in eval mode whose every weight has an effect."""
    generator = untrained_diffusion(spec, flow, **trunk)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return generator.eval()


def random_latents(batch: int, spec: LatentSpec = LATENTS, seed: int = 1) -> tuple[Tokens, Tensor]:
    """Latents of the mean and deviation of the spec, and labels (B,)."""
    stream = torch.Generator().manual_seed(seed)
    normal = torch.randn(batch, spec.channels, *spec.grid, generator=stream)
    mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.deviation))
    return Tokens(latents=normal * deviation + mean), torch.randint(NUM_CLASSES, (batch,), generator=stream)
