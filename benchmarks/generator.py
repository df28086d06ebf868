"""Generators at 16 × 16 positions: training rate and memory (LlamaGen-B), sampling rate (FAR-Base, guidance 2).

    python -m benchmarks.generator [--repeats 5] [--positions 48] [--device cuda]

The bound of training is the machine's product of two matrices (2,048²; on a GPU 8,192², with TF32 for float32). The
bound of sampling is one read of all weights that a position needs, or its arithmetic at the rate of a product of half
that size, whichever is slower. Both are measured between the timed calls. Memory is measured in a separate process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.machine import (
    PRODUCT_SIZE,
    Result,
    add_device_argument,
    device_in_use,
    matrix_product_rate,
    peak_bytes,
    read_rate,
    resident_bytes,
    seconds,
    time_against_rate,
    use,
    wait,
    write_results,
)
from benchmarks.tokenizer import count_flops
from polytoken.generators import SIZES, AutoregressiveGenerator, AutoregressiveHead, LinearHead
from polytoken.sampling import CategoricalSampler, Draw, RowNoise
from polytoken.specs import Tokens, TokenSpec

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
GRID = (16, 16)
NUM_CLASSES = 1000
CODEBOOK_SIZE = 16384
GIGABYTE = 1e9
GUIDANCE = 2.0
TRAINING_BATCH = {"cpu": 2, "cuda": 64}
SAMPLING_BATCHES = {"cpu": (1, 8), "cuda": (1, 64)}


def llamagen_base(compiled: bool = False) -> AutoregressiveGenerator:
    """LlamaGen-B, 111 M parameters, random weights, training mode."""
    torch.manual_seed(0)
    trunk = replace(SIZES["B"], compile=compiled)
    generator = AutoregressiveGenerator(trunk, LinearHead())
    generator.connect(TokenSpec((CODEBOOK_SIZE,), (GRID,)), NUM_CLASSES)
    return generator


def far_base() -> AutoregressiveGenerator:
    """FAR-Base dual, 417 M parameters, random weights, eval mode."""
    torch.manual_seed(0)
    spec = TokenSpec((CODEBOOK_SIZE, CODEBOOK_SIZE), (GRID,))
    generator = AutoregressiveGenerator(SIZES["FAR-Base"], AutoregressiveHead(3))
    generator.connect(spec, NUM_CLASSES)
    return generator.eval()


def random_batch(generator: AutoregressiveGenerator, batch: int) -> tuple[Tensor, Tensor]:
    """Codes and labels."""
    shape = (batch, generator.spec.num_sub_codes, generator.spec.num_positions)
    return torch.randint(CODEBOOK_SIZE, shape), torch.randint(NUM_CLASSES, (batch,))


def train_step(generator: AutoregressiveGenerator, codes: Tensor, labels: Tensor) -> None:
    """Forward, loss and backward."""
    generator.loss(Tokens(codes=codes), labels).total.backward()
    generator.zero_grad()


def training(repeats: int) -> list[Result]:
    """Training steps of LlamaGen-B, without the optimizer."""
    device = device_in_use()
    batch = TRAINING_BATCH[device]
    generator = llamagen_base()
    codes, labels = random_batch(generator, batch)
    two = random_batch(generator, 2)  # for more rows the loss computes its logits twice, which is not useful work
    flops = count_flops(lambda: train_step(generator, *two)) * batch / 2
    name = f"generator/llamagen_b/train_step/batch{batch}"
    results = [Result(f"{name}/flop", flops / 1e9, "GFLOP")]
    variants = list(DTYPES.items())
    if device == "cuda":
        variants.append(("bf16_compiled", torch.bfloat16))
    for type_name, dtype in variants:
        generator = llamagen_base(compiled=type_name.endswith("compiled"))
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            elapsed, rate = time_against_rate(lambda g=generator: train_step(g, codes, labels), dtype, repeats)
        achieved = flops / elapsed
        results.append(Result(f"{name}/{type_name}", codes.numel() / elapsed, "tokens/s"))
        results.append(Result(f"{name}/{type_name}/rate", achieved / 1e9, "GFLOP/s", rate / 1e9, achieved / rate))
    return results


def training_memory() -> list[Result]:
    """Memory added by a training step (gradients included, no optimizer); run in a separate process."""
    generator = llamagen_base()
    batch = TRAINING_BATCH[device_in_use()]
    codes, labels = random_batch(generator, batch)
    held = resident_bytes()
    added = (peak_bytes(lambda: train_step(generator, codes, labels)) - held) / GIGABYTE
    return [Result(f"generator/llamagen_b/train_step/batch{batch}/float32/memory", added, "GB")]


def sampling_memory(positions: int) -> list[Result]:
    """Memory added by sampling, with the keys and values of trunk and head as the bound; run in a separate process."""
    generator = far_base()
    caches = [generator.trunk.new_cache(2), generator.head.new_cache(2)]
    cache_bytes = sum(cache.nbytes for cache in caches if cache is not None)
    del caches
    held = resident_bytes()
    added = peak_bytes(lambda: position_seconds(generator, 1, positions, lambda: None)) - held
    name = "sampling/far_base/batch1/guidance2/float32/memory"
    return [Result(name, added / GIGABYTE, "GB", cache_bytes / GIGABYTE, added / cache_bytes)]


class _EnoughPositionsError(Exception):
    """Raised to end a generation early."""


def position_seconds(
    generator: AutoregressiveGenerator, batch: int, positions: int, between: Callable[[], object]
) -> float:
    """Median seconds of a position among the first ones; ``between`` runs, untimed, at every eighth."""
    times: list[float] = []
    started = 0.0
    step = generator.trunk.step

    def timed_step(features: Tensor, position: int, cache: object) -> Tensor:
        nonlocal started
        wait()
        if position > 0:
            times.append(time.perf_counter() - started)
        if position == positions:
            raise _EnoughPositionsError
        if position % 8 == 0:
            between()
        started = time.perf_counter()
        return step(features, position, cache)  # type: ignore[arg-type]

    generator.trunk.step = timed_step  # type: ignore[method-assign,assignment]
    try:
        generator.generate(torch.arange(batch), CategoricalSampler(guidance=GUIDANCE), seed=0)
    except _EnoughPositionsError:
        pass
    finally:
        del generator.trunk.step
    return statistics.median(times[1:])


def sampling(positions: int) -> list[Result]:
    """Positions/s of one image, of several, and without a cache."""
    torch.set_float32_matmul_precision("highest")  # as `cli.py predict` multiplies
    generator = far_base()
    results = []
    for type_name, dtype in DTYPES.items():
        generator = generator.to(dtype)
        needed = [
            parameter
            for name, parameter in generator.named_parameters()
            if not name.startswith(("embeddings", "class_embedding"))  # one row of these is negligible
        ]
        for batch in SAMPLING_BATCHES[device_in_use()]:
            reads: list[float] = []
            products: list[float] = []

            def measure(reads: list = reads, products: list = products, dtype: torch.dtype = dtype) -> None:
                reads.append(read_rate())
                products.append(matrix_product_rate(dtype, PRODUCT_SIZE[device_in_use()] // 2, repeats=3))

            elapsed = position_seconds(generator, batch, positions, measure)
            reading = sum(parameter.nbytes for parameter in needed) / statistics.median(reads)
            arithmetic = position_flops(generator, 2 * batch) / statistics.median(products)
            bound = max(reading, arithmetic)
            name = f"sampling/far_base/batch{batch}/guidance2/{type_name}"
            results.append(Result(name, batch / elapsed, "positions/s", batch / bound, bound / elapsed))
    generator = generator.float()
    codes, labels = random_batch(generator, 2)
    with torch.no_grad():
        elapsed = statistics.median(seconds(lambda: uncached_position(generator, codes, labels)) for _ in range(2))
    results.append(Result("sampling/far_base/batch1/guidance2/float32/uncached", 1 / elapsed, "positions/s"))
    return results


def position_flops(generator: AutoregressiveGenerator, rows: int) -> float:
    """Arithmetic of the linear layers at one position; head blocks run once a slot."""
    flops = 0.0
    for name, module in generator.named_modules():
        if isinstance(module, torch.nn.Linear):
            times = generator.spec.num_sub_codes if name.startswith("head.stack") else 1
            flops += 2.0 * rows * times * module.weight.numel()
    return flops


def uncached_position(generator: AutoregressiveGenerator, codes: Tensor, labels: Tensor) -> Tensor:
    """Sampling of one position without a cache: the trunk over all positions, then the head."""
    hidden = generator.hidden(codes, labels)[:, -1]
    scales = torch.full((1, generator.spec.num_sub_codes), GUIDANCE)
    draw = Draw(CategoricalSampler(), RowNoise(0, 0, 1, hidden.device), scales)
    return generator.head.sample(hidden, generator.embeddings, draw)


def main() -> None:
    """Measure everything; memory in fresh processes, where no earlier call has warmed the allocator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed training steps of each kind")
    parser.add_argument("--positions", type=int, default=48, help="timed positions of each kind of sampling, of 256")
    add_device_argument(parser)
    arguments = parser.parse_args()
    use(arguments.device)
    with multiprocessing.get_context("spawn").Pool(1, use, (arguments.device,), maxtasksperchild=1) as pool:
        results = [*pool.apply(training_memory), *pool.apply(sampling_memory, (arguments.positions,))]
    results += training(arguments.repeats)
    results += sampling(arguments.positions)
    print(f"written to {write_results('generator', results)}")


if __name__ == "__main__":
    main()
