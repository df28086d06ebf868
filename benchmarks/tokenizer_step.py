"""Switches of a tokenizer's training step: time over that of the plain step, and peak memory.

    python -m benchmarks.tokenizer_step [--rounds 7] [--device cuda] [--switches channels_last kept_norms bf16]

The f16 dual tokenizer with the whole objective of its recipe, and random weights in place of VGG and CLIP; without
optimizers. Plain is float32, with norms computed again in backward and VGG and discriminator not in channels_last.
Steps with and without a switch alternate, and a ratio is the median over rounds. Seconds are of the processor on a CPU,
which other programs disturb less than the clock on the wall.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import lpips
import torch
from torch import Tensor, nn

from benchmarks.machine import (
    Result,
    add_device_argument,
    device_in_use,
    peak_bytes,
    resident_bytes,
    use,
    wait,
    write_results,
)
from polytoken.blocks import NormSwish
from polytoken.compilation import compile_modules
from polytoken.discriminators import PatchDiscriminator
from polytoken.losses import (
    LPIPS,
    Adversarial,
    Disentanglement,
    FeatureAlignment,
    Reconstruction,
    TokenizerObjective,
    TokenizerStep,
)
from polytoken.quantizers import FactorizedQuantizer, VectorQuantizer
from polytoken.teachers import SmallVisionTransformer, Teacher
from polytoken.tokenizers import ConvolutionalTokenizer

NAME = "tokenizer/fq_dual_f16/step"
PLAIN = "plain"
SWITCHES = ("channels_last", "kept_norms", "bf16", "compile")
SIZES = {"cpu": (64, 32, 2), "cuda": (256, 128, 16)}  # pixels, base channels, images
GIGABYTE = 1e9


class RandomLPIPS(LPIPS):
    """LPIPS with random weights, which cost as much."""

    def load_network(self) -> nn.Module:
        network = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
        return network.to(memory_format=torch.channels_last)


class Step:
    """One step of autoencoder and discriminator, without optimizers.

    Args:
        switches: of ``SWITCHES``.
        size: pixels a side, base channels, and images of a batch.
    """

    def __init__(self, switches: Sequence[str], size: tuple[int, int, int]) -> None:
        torch.manual_seed(0)
        pixels, base_channels, batch = size
        quantizer = FactorizedQuantizer(VectorQuantizer(16384, code_dim=8, entropy_weight=0.03), num_branches=2)
        self.tokenizer = ConvolutionalTokenizer(quantizer, pixels, base_channels, adapter="transformer")
        self.images = torch.rand(batch, 3, pixels, pixels) * 2 - 1
        self.bf16 = "bf16" in switches
        self.device = torch.device(device_in_use())
        with tempfile.TemporaryDirectory() as directory:
            self.objective = _objective(pixels, Path(directory) / "teacher.safetensors")
            self.objective.connect(self.tokenizer)
            self.objective.prepare(self.device)
        assert self.objective.adversarial is not None
        self.adversarial = self.objective.adversarial
        if "channels_last" not in switches:
            perceptual = self.objective.terms["perceptual"]
            assert isinstance(perceptual, LPIPS)
            for network in (self.adversarial, perceptual._network.on(self.device)):
                network.to(memory_format=torch.contiguous_format)
        for module in self.tokenizer.modules():
            if isinstance(module, NormSwish):
                module.recompute = "kept_norms" not in switches
        self.compiles = "compile" not in switches or compile_modules(self.tokenizer.blocks(), self.device)

    def __call__(self) -> Tensor:
        """Return the loss of the autoencoder."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            decoded, encoding = self.tokenizer(self.images)
            step = TokenizerStep(self.images, decoded, encoding, self.tokenizer.last_layer, global_step=0)
            self.adversarial.requires_grad_(False)
            loss, _ = self.objective(step)
            loss.backward()
            self.adversarial.requires_grad_(True)
            self.adversarial.discriminator_loss(step)[0].backward()
        for network in (self.tokenizer, self.objective):
            network.zero_grad()
        return loss.detach()


def _objective(pixels: int, teacher: Path) -> TokenizerObjective:
    """The objective of configs/fq_dual.yaml, with a ViT-S as teacher."""
    SmallVisionTransformer(pixels, patch_size=16, width=384, depth=12, num_heads=6).save(teacher)
    return TokenizerObjective(
        Reconstruction(),
        RandomLPIPS(),
        Disentanglement(0.1),
        alignment_high=FeatureAlignment("high", 1),
        teachers={"high": Teacher("stand_in", str(teacher))},
        adversarial=Adversarial(PatchDiscriminator(), start_step=0),
    )


def variants(switches: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Switches by name: none, each alone, and all."""
    alone: dict[str, tuple[str, ...]] = {PLAIN: (), **{switch: (switch,) for switch in switches}}
    return alone | ({"+".join(switches): tuple(switches)} if len(switches) > 1 else {})


def time_steps(switches: Sequence[str], rounds: int, size: tuple[int, int, int]) -> list[Result]:
    """Seconds of the plain step, and of each variant with its speed-up over it; the variants alternate."""
    steps = {name: Step(chosen, size) for name, chosen in variants(switches).items()}
    steps = {name: step for name, step in steps.items() if step.compiles}
    for step in steps.values():
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(_seconds(step))
    plain = times[PLAIN]
    results = []
    for name, found in times.items():
        results.append(Result(f"{NAME}/{name}/seconds", statistics.median(found), "s"))
        speedup = statistics.median(before / after for before, after in zip(plain, found, strict=True))
        results.append(Result(f"{NAME}/{name}/speedup", speedup, "times"))
    return results


def peak_memory(name: str, switches: Sequence[str], size: tuple[int, int, int]) -> list[Result]:
    """Memory that a step adds to the loaded networks, gradients included; run in a separate process."""
    step = Step(switches, size)
    if not step.compiles:
        return []
    if "compile" in switches:
        step()  # compilation is no part of a step
    held = resident_bytes()
    return [Result(f"{NAME}/{name}/memory", (peak_bytes(step) - held) / GIGABYTE, "GB")]


def _seconds(step: Step) -> float:
    clock = time.process_time if device_in_use() == "cpu" else time.perf_counter
    wait()
    start = clock()
    step()
    wait()
    return clock() - start


def main() -> None:
    """Measure; memory in fresh processes, where no earlier call has warmed the allocator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each kind")
    parser.add_argument("--switches", nargs="+", choices=SWITCHES, default=SWITCHES)
    add_device_argument(parser)
    arguments = parser.parse_args()
    use(arguments.device)
    size = SIZES[arguments.device]
    with multiprocessing.get_context("spawn").Pool(1, use, (arguments.device,), maxtasksperchild=1) as pool:
        memory = [
            result
            for name, chosen in variants(arguments.switches).items()
            for result in pool.apply(peak_memory, (name, chosen, size))
        ]
    results = [*time_steps(arguments.switches, arguments.rounds, size), *memory]
    print(f"written to {write_results('tokenizer_step', results)}")


if __name__ == "__main__":
    main()
