"""The f16 dual tokenizer at 256 px: throughput, share of the machine's matrix-product rate, memory.

    python -m benchmarks.tokenizer [--repeats 5] [--device cuda]

Every time is a median. The bound of a rate is the machine's product of two matrices of the same type (2,048²; on a GPU
8,192², with TF32 for float32), measured between the timed calls.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import (
    Result,
    add_device_argument,
    device_in_use,
    peak_bytes,
    resident_bytes,
    time_against_rate,
    use,
    wait,
    write_results,
)
from polytoken.quantizers import FactorizedQuantizer, VectorQuantizer
from polytoken.tokenizers import ConvolutionalTokenizer

NAME = "tokenizer/fq_dual_f16"
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
BATCHES = {"cpu": (1, 4), "cuda": (1, 32)}
GIGABYTE = 1e9
FORWARD_MEMORY_LIMIT = 0.7
TRAINING_MEMORY_LIMIT = 4.5


def build() -> ConvolutionalTokenizer:
    """The published dual model, random weights."""
    torch.manual_seed(0)
    branch = VectorQuantizer(codebook_size=16384, code_dim=8, entropy_weight=0.03)
    return ConvolutionalTokenizer(FactorizedQuantizer(branch, num_branches=2), adapter="transformer")


def random_images(batch: int) -> Tensor:
    """Uniform noise (batch, 3, 256, 256) in [-1, 1]."""
    return torch.rand(batch, 3, 256, 256) * 2 - 1


def count_flops(function: Callable[[], object]) -> float:
    """Multiplications and additions of a call; gradients must be on, since fused kernels hide some otherwise."""
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())


def train_step(tokenizer: ConvolutionalTokenizer, images: Tensor) -> None:
    """Forward, reconstruction and quantizer losses, backward."""
    decoded, encoding = tokenizer(images)
    loss = (decoded.image.float() - images).square().mean() + sum(encoding.losses.values())
    loss.backward()
    tokenizer.zero_grad()


def inference(repeats: int) -> list[Result]:
    """Encode, decode and forward of one and several images, and the look-up's share of forward."""
    tokenizer = build().eval()
    flops = count_flops(lambda: tokenizer(random_images(1)))
    results = [Result(f"{NAME}/forward/flop", flops / 1e9, "GFLOP/image")]
    for name, dtype in DTYPES.items():
        for batch in BATCHES[device_in_use()]:
            images = random_images(batch)
            with torch.inference_mode(), torch.autocast(device_in_use(), dtype, enabled=dtype != torch.float32):
                quantized = tokenizer.encode(images).quantized
                calls: dict[str, Callable[[], object]] = {
                    "encode": lambda images=images: tokenizer.encode(images),
                    "decode": lambda quantized=quantized: tokenizer.decode(quantized),
                    "forward": lambda images=images: tokenizer(images),
                }
                for call, function in calls.items():
                    elapsed, rate = time_against_rate(function, dtype, repeats)
                    key = f"{NAME}/{call}/batch{batch}/{name}"
                    results.append(Result(key, batch / elapsed, "images/s"))
                    if call == "forward":
                        achieved = flops * batch / elapsed
                        results.append(Result(f"{key}/rate", achieved / 1e9, "GFLOP/s", rate / 1e9, achieved / rate))
                        look_up = look_up_seconds(tokenizer, images)
                        results.append(Result(f"{key}/look_up", look_up, "s", elapsed, look_up / elapsed))
    return results


def look_up_seconds(tokenizer: ConvolutionalTokenizer, images: Tensor) -> float:
    """Seconds of all codebooks inside one forward."""
    times: list[float] = []

    def note(*_: object) -> None:
        wait()
        times.append(time.perf_counter())

    handles = []
    for module in tokenizer.modules():
        if isinstance(module, VectorQuantizer):
            handles += [module.register_forward_pre_hook(note), module.register_forward_hook(note)]
    tokenizer(images)
    for handle in handles:
        handle.remove()
    return sum(times[1::2]) - sum(times[::2])


def training(repeats: int) -> list[Result]:
    """One training step of one and several images, without perceptual and adversarial terms."""
    results = []
    flops = count_flops(lambda: train_step(build(), random_images(1)))
    for name, dtype in DTYPES.items():
        for batch in BATCHES[device_in_use()]:
            tokenizer, images = build(), random_images(batch)
            with torch.autocast(device_in_use(), dtype, enabled=dtype != torch.float32):
                elapsed, rate = time_against_rate(lambda t=tokenizer, i=images: train_step(t, i), dtype, repeats)
            key, achieved = f"{NAME}/train_step/batch{batch}/{name}", flops * batch / elapsed
            results.append(Result(key, batch / elapsed, "images/s"))
            results.append(Result(f"{key}/rate", achieved / 1e9, "GFLOP/s", rate / 1e9, achieved / rate))
    return results


def forward_memory(batch: int) -> list[Result]:
    """Memory added by a forward in inference mode to the loaded model, float32; run in a separate process."""
    tokenizer, images = build().eval(), random_images(batch)
    held = resident_bytes()
    with torch.inference_mode():
        added = (peak_bytes(lambda: tokenizer(images)) - held) / GIGABYTE
    return [_memory_result(f"{NAME}/forward/batch{batch}/float32/memory", added, FORWARD_MEMORY_LIMIT)]


def training_memory(batch: int) -> list[Result]:
    """Memory added by a training step (gradients included, no optimizer); run in a separate process."""
    tokenizer, images = build(), random_images(batch)
    held = resident_bytes()
    added = (peak_bytes(lambda: train_step(tokenizer, images)) - held) / GIGABYTE
    return [_memory_result(f"{NAME}/train_step/batch{batch}/float32/memory", added, TRAINING_MEMORY_LIMIT)]


def _memory_result(name: str, added: float, limit: float) -> Result:
    return Result(name, added, "GB", limit, added / limit)


def main() -> None:
    """Measure everything; memory in fresh processes, where no earlier call has warmed the allocator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each kind")
    add_device_argument(parser)
    arguments = parser.parse_args()
    use(arguments.device)
    with multiprocessing.get_context("spawn").Pool(1, use, (arguments.device,), maxtasksperchild=1) as pool:
        results = [
            *pool.apply(forward_memory, (1,)),
            *pool.apply(forward_memory, (4,)),
            *pool.apply(training_memory, (2,)),
        ]
    results += inference(arguments.repeats)
    results += training(max(1, arguments.repeats // 2))
    print(f"written to {write_results('tokenizer', results)}")


if __name__ == "__main__":
    main()
