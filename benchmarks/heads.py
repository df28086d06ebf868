"""Images a second of the generators of `experiments/polytoken/heads.yaml`, codes or latents only, in one run.

    python -m benchmarks.heads [--batch 100] [--rounds 5]

Random weights, the sizes of the digits preset: a trunk of 4 blocks of 128 channels, 2 × 64 codes on a 4 × 4 grid, and
2 × 128 codes on grids of 1, 2 and 3 for the next-scale generators; guidance 2, and 50 steps of Euler for the flow. Each
round draws a batch with every generator, so that a slower machine slows all. Rates are of the median round.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from benchmarks.machine import Result, add_device_argument, seconds, use, write_results
from benchmarks.next_scale import MEASURED, Size, codec_of
from polytoken.generators import (
    AutoregressiveGenerator,
    AutoregressiveHead,
    DiffusionTransformer,
    DiffusionTrunkConfig,
    Generator,
    MaskedBitHead,
    MultiLinearHead,
    MultiMLPHead,
    NextScaleGenerator,
)
from polytoken.sampling import CategoricalSampler, FlowSampler, RowNoise
from polytoken.specs import LatentSpec, TokenSpec

NUM_CLASSES = 10
GUIDANCE = 2.0
CODES = TokenSpec((64, 64), ((4, 4),))
LATENTS = LatentSpec(16, (4, 4), (0.0,) * 16, (1.0,) * 16)
SCALES = TokenSpec((128, 128), ((1, 1), (2, 2), (3, 3)))
BASELINE = "linear"


def generators() -> dict[str, Generator]:
    """All generators, connected, in eval mode."""
    torch.manual_seed(0)
    raster, next_scale = MEASURED["digits"].raster, MEASURED["digits"].next_scale
    codec = codec_of(Size((1, 2, 3), 128, 32, next_scale, raster))
    heads = {
        BASELINE: MultiLinearHead(),
        "mlp": MultiMLPHead(hidden=512),
        "autoregressive": AutoregressiveHead(depth=1),
        "masked_1_step": MaskedBitHead(digits="codes", width=128, steps=[2]),
        "masked_2_steps": MaskedBitHead(digits="codes", width=128, steps=[1, 1]),
    }
    made: dict[str, Generator] = {}
    for name, head in heads.items():
        made[name] = AutoregressiveGenerator(raster, head)
        made[name].connect(CODES, NUM_CLASSES)
    made["diffusion"] = DiffusionTransformer(DiffusionTrunkConfig(128, 4, 4, ffn_multiple=64))
    made["diffusion"].connect(LATENTS, NUM_CLASSES)
    for name, head in (("linear", MultiLinearHead()), ("autoregressive", AutoregressiveHead(depth=1))):
        made[f"next_scale_{name}"] = NextScaleGenerator(next_scale, head)
        made[f"next_scale_{name}"].connect(SCALES, NUM_CLASSES, codec)
    return {name: generator.eval() for name, generator in made.items()}


def draw(generator: Generator, batch: int) -> None:
    """Draw a batch."""
    rules = CategoricalSampler(guidance=GUIDANCE)
    if isinstance(generator.spec, LatentSpec):
        rules = FlowSampler(guidance=GUIDANCE, steps=50)
    labels = torch.arange(batch) % NUM_CLASSES
    generator.sample(labels, rules, RowNoise(0, 0, batch, labels.device))


def main() -> None:
    """Measure all generators."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=100, help="images drawn at once (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed batches of each (default: %(default)s)")
    add_device_argument(parser)
    arguments = parser.parse_args()
    use(arguments.device)
    torch.set_float32_matmul_precision("highest")  # as `cli.py predict` multiplies
    made = generators()
    times: dict[str, list[float]] = {name: [] for name in made}
    with torch.inference_mode():
        for round_ in range(arguments.rounds + 1):
            for name, generator in made.items():
                taken = seconds(lambda generator=generator: draw(generator, arguments.batch))
                if round_:  # the first one compiles and allocates
                    times[name].append(taken)
    rates = {name: arguments.batch / statistics.median(found) for name, found in times.items()}
    results = []
    for name, rate in rates.items():
        place = f"digits/{name}/batch{arguments.batch}/guidance2"
        results += [Result(place, rate, "images/s"), Result(f"{place}/of_linear", rate / rates[BASELINE], "times")]
    print(f"written to {write_results('heads', results)}")


if __name__ == "__main__":
    main()
