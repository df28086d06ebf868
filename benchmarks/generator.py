"""Generators at 16 × 16 positions: training rate (LlamaGen-B, DiT-B/1), sampling rate (FAR-Base, DiT-B/1), memory.

    python -m benchmarks.generator [--repeats 5] [--positions 48] [--device cuda]

The bound of training, and of sampling a flow, is the machine's product of two matrices (2,048²; on a GPU 8,192², with
TF32 for float32). That of writing codes is one read of all weights that a position needs, or its arithmetic at the rate
of a product of half that size, whichever is slower. All are measured between the timed calls. The arithmetic counts
attention of causal layers as half. Sampling is guided with a scale of 2. Memory is measured in a separate process.
"""

from __future__ import annotations

import argparse
import gc
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

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
from polytoken.generators import (
    DIFFUSION_SIZES,
    SIZES,
    AutoregressiveGenerator,
    AutoregressiveHead,
    DiffusionTransformer,
    Generator,
    LinearHead,
)
from polytoken.generators.linear_cross_entropy import linear_cross_entropy
from polytoken.metrics.compute import image_compute
from polytoken.optimization import gradient_norm
from polytoken.parallelize import parallelize
from polytoken.sampling import CategoricalSampler, Draw, FlowSampler, RowNoise
from polytoken.specs import LatentSpec, Tokens, TokenSpec

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
GRID = (16, 16)
NUM_CLASSES = 1000
CODEBOOK_SIZE = 16384
LATENT_CHANNELS = 4
FLOW_STEPS = 4  # every step takes the same time
GIGABYTE = 1e9
GUIDANCE = 2.0
TRAINING_BATCH = {"cpu": 2, "cuda": 64}
SAMPLING_BATCHES = {"cpu": (1, 8), "cuda": (1, 64)}


def llamagen_base(compiled: bool = False, checkpointing: bool = False) -> AutoregressiveGenerator:
    """LlamaGen-B, 111 M parameters, random weights, training mode."""
    torch.manual_seed(0)
    trunk = replace(SIZES["B"], compile=compiled, checkpointing=checkpointing)
    generator = AutoregressiveGenerator(trunk, LinearHead())
    generator.connect(TokenSpec((CODEBOOK_SIZE,), (GRID,)), NUM_CLASSES)
    parallelize(generator)
    return generator


def dit_base(compiled: bool = False) -> DiffusionTransformer:
    """DiT-B/1 on 4 channels, random weights, training mode."""
    torch.manual_seed(0)
    generator = DiffusionTransformer(replace(DIFFUSION_SIZES["B"], compile=compiled))
    zeros, ones = (0.0,) * LATENT_CHANNELS, (1.0,) * LATENT_CHANNELS
    generator.connect(LatentSpec(LATENT_CHANNELS, GRID, zeros, ones), NUM_CLASSES)
    parallelize(generator)
    return generator


def far_base() -> AutoregressiveGenerator:
    """FAR-Base dual, 417 M parameters, random weights, eval mode."""
    torch.manual_seed(0)
    spec = TokenSpec((CODEBOOK_SIZE, CODEBOOK_SIZE), (GRID,))
    generator = AutoregressiveGenerator(SIZES["FAR-Base"], AutoregressiveHead(3))
    generator.connect(spec, NUM_CLASSES)
    return generator.eval()


def random_batch(generator: Generator, batch: int) -> tuple[Tokens, Tensor]:
    """Tokens and labels."""
    labels, spec = torch.randint(NUM_CLASSES, (batch,)), generator.spec
    if isinstance(spec, LatentSpec):
        return Tokens(latents=torch.randn(batch, spec.channels, *spec.grid)), labels
    return Tokens(codes=torch.randint(CODEBOOK_SIZE, (batch, spec.num_sub_codes, spec.num_positions))), labels


def train_step(generator: Generator, tokens: Tokens, labels: Tensor) -> None:
    """Forward, loss and backward."""
    generator.loss(tokens, labels).total.backward()
    generator.zero_grad()


def training(network: str, build: Callable[[bool], Generator], repeats: int) -> list[Result]:
    """Training steps of a network of one code or latent a position, without the optimizer.

    Args:
        network: its name in the results.
        build: makes it; the argument compiles its blocks.
        repeats: timed steps of each kind.
    """
    device = device_in_use()
    batch = TRAINING_BATCH[device]
    generator = build(False)
    tokens, labels = random_batch(generator, batch)
    flops = float(image_compute(generator).training) * batch
    name = f"generator/{network}/train_step/batch{batch}"
    results = [Result(f"{name}/flop", flops / 1e9, "GFLOP")]
    variants = list(DTYPES.items())
    if device == "cuda":
        variants.append(("bf16_compiled", torch.bfloat16))
    for type_name, dtype in variants:
        generator = build(type_name.endswith("compiled"))
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            elapsed, rate = time_against_rate(lambda g=generator: train_step(g, tokens, labels), dtype, repeats)
        achieved = flops / elapsed
        results.append(Result(f"{name}/{type_name}", batch * math.prod(GRID) / elapsed, "tokens/s"))
        results.append(Result(f"{name}/{type_name}/rate", achieved / 1e9, "GFLOP/s", rate / 1e9, achieved / rate))
    return results


@dataclass(frozen=True)
class Switches:
    """Settings of an update; the defaults are those of :data:`UPDATES`' plain one."""

    compiled: bool = False
    checkpointing: bool = False
    fused: bool = False
    dtype: torch.dtype = torch.float32


UPDATES = {
    "plain": Switches(),
    "fused": Switches(fused=True),
    "compiled": Switches(compiled=True),
    "checkpointing": Switches(checkpointing=True),
    "bf16": Switches(dtype=torch.bfloat16),
    "fused_compiled": Switches(compiled=True, fused=True),
    "fused_compiled_bf16": Switches(compiled=True, fused=True, dtype=torch.bfloat16),
}
"""Updates that are compared. ``plain`` is eager float32 with AdamW as torch chooses it; training uses the fused one."""


class Update:
    """Update of LlamaGen-B: loss, backward, norm, clipping and AdamW."""

    def __init__(self, switches: Switches) -> None:
        self.generator = llamagen_base(switches.compiled, switches.checkpointing)
        self.tokens, self.labels = random_batch(self.generator, TRAINING_BATCH[device_in_use()])
        self.dtype = switches.dtype
        fused = True if switches.fused else None
        self.optimizer = torch.optim.AdamW(self.generator.parameters(), lr=1e-4, fused=fused)

    def __call__(self) -> None:
        with torch.autocast(device_in_use(), self.dtype, enabled=self.dtype != torch.float32):
            total = self.generator.loss(self.tokens, self.labels).total
        total.backward()
        parameters = [*self.generator.parameters()]
        torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, gradient_norm(parameters))
        self.optimizer.step()
        self.optimizer.zero_grad()


def interleaved(functions: dict[str, Callable[[], object]], reference: str, rounds: int) -> dict[str, float]:
    """Median seconds of the reference, and for the others how many times faster they are, within each round.

    All run once in a round, so that a slower machine slows all.
    """
    for _ in range(2):  # compiles, and allocates the moments
        for function in functions.values():
            function()
    times = [{name: seconds(function) for name, function in functions.items()} for _ in range(rounds)]
    return {
        name: statistics.median(one[name] if name == reference else one[reference] / one[name] for one in times)
        for name in functions
    }


def updates(rounds: int) -> list[Result]:
    """Updates of LlamaGen-B with each switch, as multiples of the plain one's speed."""
    name = f"generator/llamagen_b/update/batch{TRAINING_BATCH[device_in_use()]}"
    found = interleaved({key: Update(switches) for key, switches in UPDATES.items()}, "plain", rounds)
    gc.collect()
    return [
        Result(f"{name}/{key}", value, "s" if key == "plain" else "x plain", None, None) for key, value in found.items()
    ]


def update_memory(key: str) -> Result:
    """Peak memory that an update adds to weights and moments; run in a separate process."""
    update = Update(UPDATES[key])
    update()
    held = resident_bytes()
    added = (peak_bytes(update) - held) / GIGABYTE
    return Result(f"generator/llamagen_b/update/batch{TRAINING_BATCH[device_in_use()]}/{key}/memory", added, "GB")


def whole_cross_entropy(features: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Tensor:
    """The loss as torch computes it, whose gradient keeps all logits; ``rows`` is not used."""
    return functional.cross_entropy(functional.linear(features, weight).float(), targets)


def recomputed_cross_entropy(features: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Tensor:
    """The loss in chunks whose logits backward computes again."""
    total = torch.zeros((), device=features.device)
    for start in range(0, len(features), rows):
        chunk = features[start : start + rows], weight, targets[start : start + rows], rows
        loss = checkpoint(whole_cross_entropy, *chunk, use_reentrant=False)
        total = total + loss * (len(chunk[0]) / len(features))
    return total


def chunked_cross_entropy(features: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Tensor:
    """The loss in chunks, as training computes it."""
    return linear_cross_entropy(features, weight, targets, rows * len(weight))


LOSSES = {"whole": whole_cross_entropy, "recomputed": recomputed_cross_entropy, "chunked": chunked_cross_entropy}


class LossStep:
    """Loss and gradients of an output layer of LlamaGen-B, in four chunks."""

    def __init__(self, key: str, dtype: torch.dtype) -> None:
        rows = TRAINING_BATCH[device_in_use()] * math.prod(GRID)
        self.features = torch.randn(rows, SIZES["B"].dim).requires_grad_()
        self.weight = torch.zeros(CODEBOOK_SIZE, SIZES["B"].dim).requires_grad_()
        self.targets = torch.randint(CODEBOOK_SIZE, (rows,))
        self.compute = LOSSES[key]
        self.dtype = dtype

    def __call__(self) -> None:
        with torch.autocast(device_in_use(), self.dtype, enabled=self.dtype != torch.float32):
            loss = self.compute(self.features, self.weight, self.targets, len(self.features) // 4)
        torch.autograd.grad(loss, (self.features, self.weight))


def losses(rounds: int) -> list[Result]:
    """Speed of the loss in chunks, as a multiple of the same chunks computed twice and of the loss in one piece."""
    results = []
    for type_name, dtype in DTYPES.items():
        found = interleaved({key: LossStep(key, dtype) for key in LOSSES}, "whole", rounds)
        name = f"generator/loss/{TRAINING_BATCH[device_in_use()] * math.prod(GRID)}x{CODEBOOK_SIZE}"
        results += [
            Result(f"{name}/{key}/{type_name}", value, "s" if key == "whole" else "x whole")
            for key, value in found.items()
        ]
    return results


def loss_memory(key: str) -> Result:
    """Peak memory that the loss and its gradients add; run in a separate process."""
    step = LossStep(key, torch.float32)
    held = resident_bytes()
    added = (peak_bytes(step) - held) / GIGABYTE
    name = f"generator/loss/{TRAINING_BATCH[device_in_use()] * math.prod(GRID)}x{CODEBOOK_SIZE}/{key}/float32/memory"
    return Result(name, added, "GB")


def training_memory() -> list[Result]:
    """Memory added by a training step (gradients included, no optimizer); run in a separate process."""
    generator = llamagen_base()
    batch = TRAINING_BATCH[device_in_use()]
    tokens, labels = random_batch(generator, batch)
    held = resident_bytes()
    added = (peak_bytes(lambda: train_step(generator, tokens, labels)) - held) / GIGABYTE
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
    codes, labels = torch.randint(CODEBOOK_SIZE, (2, 2, math.prod(GRID))), torch.randint(NUM_CLASSES, (2,))
    with torch.no_grad():
        elapsed = statistics.median(seconds(lambda: uncached_position(generator, codes, labels)) for _ in range(2))
    results.append(Result("sampling/far_base/batch1/guidance2/float32/uncached", 1 / elapsed, "positions/s"))
    return results


def sampling_of_a_flow(repeats: int) -> list[Result]:
    """Steps/s of Euler's method with DiT-B/1, of one image and of several."""
    torch.set_float32_matmul_precision("highest")  # as `cli.py predict` multiplies
    generator, rules = dit_base(), FlowSampler(steps=FLOW_STEPS, guidance=GUIDANCE)
    flops = float(image_compute(generator).forward)
    results = []
    for type_name, dtype in DTYPES.items():
        for batch in SAMPLING_BATCHES[device_in_use()]:
            labels = torch.arange(batch)
            sample = partial(generator.sample, labels, rules, RowNoise(0, 0, batch, labels.device))
            with torch.autocast(device_in_use(), dtype, enabled=dtype != torch.float32):
                elapsed, rate = time_against_rate(sample, dtype, repeats)
            steps, bound = FLOW_STEPS / elapsed, rate / (2 * batch * flops)
            results.append(
                Result(f"sampling/dit_b/batch{batch}/guidance2/{type_name}", steps, "steps/s", bound, steps / bound)
            )
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
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed training steps, and samples of a flow, of each kind"
    )
    parser.add_argument("--positions", type=int, default=48, help="timed positions of each kind of writing, of 256")
    parser.add_argument("--only", choices=("training", "sampling"), help="one of the parts; default: both")
    add_device_argument(parser)
    arguments = parser.parse_args()
    use(arguments.device)
    results: list[Result] = []
    with multiprocessing.get_context("spawn").Pool(1, use, (arguments.device,), maxtasksperchild=1) as pool:
        if arguments.only != "sampling":
            results += pool.apply(training_memory)
            results += [pool.apply(update_memory, (key,)) for key in UPDATES]
            results += [pool.apply(loss_memory, (key,)) for key in LOSSES]
        if arguments.only != "training":
            results += pool.apply(sampling_memory, (arguments.positions,))
    if arguments.only != "sampling":
        results += losses(arguments.repeats)
        results += updates(arguments.repeats)
        results += training("llamagen_b", llamagen_base, arguments.repeats)
        results += training("dit_b", dit_base, arguments.repeats)
    if arguments.only != "training":
        results += sampling(arguments.positions)
        results += sampling_of_a_flow(arguments.repeats)
    print(f"written to {write_results('generator', results)}")


if __name__ == "__main__":
    main()
