"""Steps and seconds of an image: next-scale against raster autoregressive generation of the same codes.

    python -m benchmarks.next_scale [--sizes digits imagenet] [--repeats 3] [--device cuda]

Both generators write codes of one TokenSpec, so that an image has equal bits, with a parallel head for both sub-codes.
Guidance is 2 and one image is written at a time; it is not decoded to pixels. The generators of a size take turns, so
that a slower minute slows both. The bound of an image is a sum over its steps: one read of the weights, or the
arithmetic of the linear layers at the rate of a matrix product, whichever is slower, both measured between the images.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.machine import (
    PRODUCT_SIZE,
    Result,
    add_device_argument,
    device_in_use,
    matrix_product_rate,
    read_rate,
    seconds,
    use,
    write_results,
)
from polytoken.codec import FrozenCodec
from polytoken.generators import (
    SIZES,
    AutoregressiveGenerator,
    MultiLinearHead,
    NextScaleGenerator,
    NextScaleTrunkConfig,
    TrunkConfig,
)
from polytoken.quantizers import FactorizedQuantizer, MultiScaleQuantizer
from polytoken.sampling import CategoricalSampler, RowNoise
from polytoken.specs import TokenSpec
from polytoken.tokenizers import ConvolutionalTokenizer

Writer = NextScaleGenerator | AutoregressiveGenerator
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
NUM_CLASSES = 1000
RULES = CategoricalSampler(guidance=2.0)
ROWS = 2  # with the class and without


@dataclass(frozen=True)
class Size:
    """Codes of two branches, and the trunks of both generators.

    Args:
        scales: sides of the grids.
        codebook_size: of each branch.
        code_dim: of each branch.
        next_scale: trunk of the next-scale generator.
        raster: trunk of the autoregressive one.
    """

    scales: tuple[int, ...]
    codebook_size: int
    code_dim: int
    next_scale: NextScaleTrunkConfig
    raster: TrunkConfig


MEASURED = {
    # the sizes of the digits preset
    "digits": Size((1, 2, 3, 4), 64, 8, NextScaleTrunkConfig(4, 128, 4), TrunkConfig(128, 4, 4, ffn_multiple=64)),
    # ImageFolder's codes; VAR-d16 and LlamaGen-L have 314 and 328 million parameters on them
    "imagenet": Size((1, 1, 2, 3, 3, 4, 5, 6, 8, 11), 4096, 32, NextScaleTrunkConfig(16), SIZES["L"]),
}


def codec_of(size: Size) -> FrozenCodec:
    """Random codebooks, as a tokenizer holds them; its convolutions are not used."""
    branch = MultiScaleQuantizer(size.scales, size.codebook_size, size.code_dim)
    side = size.scales[-1]
    tokenizer = ConvolutionalTokenizer(
        FactorizedQuantizer(branch, 2), image_size=side, base_channels=32, channel_multipliers=[1], attention=False
    )
    return FrozenCodec(lambda: tokenizer, [0, 1])


def writers(size: Size) -> dict[str, Writer]:
    """Both generators of a size, random weights, eval mode."""
    torch.manual_seed(0)
    codec = codec_of(size)
    scales = tuple((side, side) for side in size.scales)
    spec = TokenSpec((size.codebook_size,) * 2, scales)
    made: dict[str, Writer] = {
        "next_scale": NextScaleGenerator(size.next_scale, MultiLinearHead()),
        "raster": AutoregressiveGenerator(size.raster, MultiLinearHead()),
    }
    for generator in made.values():
        generator.connect(spec, NUM_CLASSES, codec)
    return {name: generator.eval() for name, generator in made.items()}


def positions_of_steps(generator: Writer) -> list[int]:
    """Positions that each step of an image writes, counted while one is written."""
    counts: list[int] = []
    head = generator.head
    sample = head.sample

    def counted(hidden: torch.Tensor, *others: object) -> torch.Tensor:
        counts.append(len(hidden) // ROWS)
        return sample(hidden, *others)  # type: ignore[arg-type]

    head.sample = counted  # type: ignore[method-assign,assignment]
    try:
        write(generator)
    finally:
        del head.sample
    return counts


def write(generator: Writer) -> None:
    """Draw one image."""
    label = torch.zeros(1, dtype=torch.int64)
    generator.sample(label, RULES, RowNoise(0, 0, 1, label.device))


def bound(generator: Writer, positions: Sequence[int], bytes_per_second: float, flops_per_second: float) -> float:
    """Seconds of an image at the machine's rates."""
    weights = [(name, one.weight) for name, one in generator.named_modules() if isinstance(one, nn.Linear)]
    reading = sum(weight.nbytes for _, weight in weights) / bytes_per_second
    once, each = (
        sum(2.0 * ROWS * weight.numel() for name, weight in weights if ("modulation" in name) == per_image)
        for per_image in (True, False)
    )
    return sum(max(reading, (once + each * count) / flops_per_second) for count in positions)


def measure(name: str, size: Size, repeats: int) -> list[Result]:
    """Steps and seconds of both generators of a size, in each type."""
    both = writers(size)
    spec = both["raster"].spec
    steps = {kind: positions_of_steps(generator) for kind, generator in both.items()}
    results = [Result(f"{name}/codes", spec.bits_per_image, "bits/image")]
    for kind, generator in both.items():
        parameters = sum(parameter.numel() for parameter in generator.parameters())
        results.append(Result(f"{name}/{kind}/parameters", parameters / 1e6, "million"))
        results.append(Result(f"{name}/{kind}/steps", len(steps[kind]), "steps/image"))
    for type_name, dtype in DTYPES.items():
        times: dict[str, list[float]] = {kind: [] for kind in both}
        reads, products = [], []
        for generator in both.values():
            generator.to(dtype)
            if dtype != torch.float32:  # where the steps were counted
                write(generator)
        for _ in range(repeats):
            for kind, generator in both.items():
                reads.append(read_rate())
                products.append(matrix_product_rate(dtype, PRODUCT_SIZE[device_in_use()] // 2, repeats=3))
                times[kind].append(seconds(lambda generator=generator: write(generator)))
        medians = {kind: statistics.median(found) for kind, found in times.items()}
        for kind, generator in both.items():
            best = bound(generator, steps[kind], statistics.median(reads), statistics.median(products))
            place = f"{name}/{kind}/batch1/guidance2/{type_name}"
            results.append(Result(place, medians[kind], "s/image", best, best / medians[kind]))
        ratio = medians["raster"] / medians["next_scale"]
        results.append(Result(f"{name}/raster_over_next_scale/{type_name}", ratio, "times"))
    return results


def main() -> None:
    """Measure the sizes that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=[*MEASURED], default=[*MEASURED])
    parser.add_argument("--repeats", type=int, default=3, help="timed images of each kind")
    add_device_argument(parser)
    arguments = parser.parse_args()
    use(arguments.device)
    torch.set_float32_matmul_precision("highest")  # as `cli.py predict` multiplies
    with torch.inference_mode():
        results = [result for name in arguments.sizes for result in measure(name, MEASURED[name], arguments.repeats)]
    print(f"written to {write_results('next_scale', results)}")


if __name__ == "__main__":
    main()
