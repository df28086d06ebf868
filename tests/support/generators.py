"""Small generators with perturbed weights, so that every layer has an effect."""

import torch

from polytoken.generators import AutoregressiveGenerator, AutoregressiveHead, GeneratorLoss, Head, TrunkConfig
from polytoken.specs import Tokens, TokenSpec

TRUNK = TrunkConfig(dim=32, depth=2, num_heads=2, ffn_multiple=32)
GRID = (3, 4)
NUM_CLASSES = 5


def build_generator(
    spec: TokenSpec, num_classes: int, trunk: TrunkConfig, head: Head, aggregation: str = "concatenation", noise=None
) -> AutoregressiveGenerator:
    """A connected generator in training mode."""
    generator = AutoregressiveGenerator(trunk, head, aggregation, noise)
    generator.connect(spec, num_classes)
    return generator


def small_generator(
    num_sub_codes: int = 2,
    head: Head | None = None,
    trunk: TrunkConfig = TRUNK,
    seed: int = 0,
    **changes,
) -> AutoregressiveGenerator:
    """A generator in eval mode of codebooks of 11, 12, … entries; outputs and embeddings are large."""
    torch.manual_seed(seed)
    spec = TokenSpec(tuple(range(11, 11 + num_sub_codes)), (GRID,))
    generator = build_generator(spec, NUM_CLASSES, trunk, head or AutoregressiveHead(depth=2), **changes)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.5 if parameter.ndim == 2 else 0.1))
    return generator.eval()


def random_codes(generator: AutoregressiveGenerator, batch: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (B, k, N) and labels (B,)."""
    stream = torch.Generator().manual_seed(seed)
    codes = [
        torch.randint(size, (batch, generator.spec.num_positions), generator=stream)
        for size in generator.spec.codebook_sizes
    ]
    return torch.stack(codes, dim=1), torch.randint(generator.num_classes, (batch,), generator=stream)


def random_tokens(generator: AutoregressiveGenerator, batch: int, seed: int = 1) -> tuple[Tokens, torch.Tensor]:
    """Tokens and labels (B,)."""
    codes, labels = random_codes(generator, batch, seed)
    return Tokens(codes=codes), labels


def per_code(loss: GeneratorLoss) -> torch.Tensor:
    """Nats of each sub-code, (k,)."""
    return torch.stack([*loss.parts.values()])
