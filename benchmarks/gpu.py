"""Decoding and training on one GPU in eight minutes: `benchmarks/gpu.sh`.

    python -m benchmarks.gpu [--seconds 480] [--output FILE] [--tiny]

Decoding of FAR-Base dual and LlamaGen-B, eager and compiled into a graph; training steps of LlamaGen-B and -L, FAR-Base
and the f16 dual tokenizer with all losses, eager and compiled, in bfloat16. Each rate has a bound: that of a product of
two matrices, or of a copy, on the same GPU. Launches, kernels and host synchronisations come from a trace.

Parts run in order of importance, and each is written to the file as soon as it ends: a pass that is cut off keeps what
it has. A part that fails, or takes more than its share of the time, is recorded with its error. Networks and frozen
teachers have random weights, so nothing is downloaded. `--tiny` takes tiny networks and any device, and leaves the
compiler off, to test this program; its figures mean nothing.
"""

from __future__ import annotations

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # isort: skip - read when torch is imported: the tracer's own messages

import argparse
import gc
import logging
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks.gpu_decoding import bytes_per_position, write
from benchmarks.machine import PRODUCT_SIZE, RESULTS, Result, environment, matrix_product_rate
from commands.trace import Figures, figures, read_events, tracing
from polytoken import records
from polytoken.errors import first_line
from polytoken.generators import SIZES, AutoregressiveGenerator, AutoregressiveHead, LinearHead
from polytoken.metrics.compute import image_compute
from polytoken.optimization import OptimizerConfig
from polytoken.parallelize import parallelize
from polytoken.specs import Tokens, TokenSpec
from polytoken.transformer import TrunkConfig

DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
NUM_CLASSES = 1000
REPEATS = 3
PART_SECONDS = 90.0  # a part that compiles for longer leaves no time to the others
COPY_BYTES = {"cuda": 1 << 32, "cpu": 1 << 26}

Measurement = Callable[[], list[Result]]


@dataclass(frozen=True)
class Sizes:
    """Sizes of all parts.

    Args:
        trunks: by network; those of FAR write two codes a position.
        grid: side of the grid of positions.
        codebook_size: of each code.
        head_depth: blocks of FAR's head.
        decoding: batches of decoding, the most important first.
        positions: that decoding step by step writes; a compiled one writes whole images.
        training: images a step, by network.
        tokenizer: arguments of the tokenizer.
        teacher: arguments of the vision transformer that guides a subspace.
        perceptual: channels of a convolution, or 0 for a pooling: VGG-16 for LPIPS.
        discriminator: channels of its first layer.
        steps: of the tokenizer that are timed, and traced.
        product: side of the matrices whose product bounds arithmetic.
    """

    trunks: dict[str, TrunkConfig]
    grid: int
    codebook_size: int
    head_depth: int
    decoding: tuple[int, ...]
    positions: int
    training: dict[str, int]
    tokenizer: dict[str, Any]
    teacher: dict[str, int]
    perceptual: tuple[int, ...]
    discriminator: int
    steps: int
    product: int


PUBLISHED = Sizes(
    {"far_base": SIZES["FAR-Base"], "llamagen_b": SIZES["B"], "llamagen_l": SIZES["L"]},
    grid=16,
    codebook_size=16384,
    head_depth=3,
    decoding=(1, 64, 256, 16),
    positions=32,
    training={"llamagen_b": 64, "llamagen_l": 32, "far_base": 32, "tokenizer": 32},
    tokenizer={"image_size": 256, "adapter": "transformer"},
    teacher={"image_size": 224, "patch_size": 14, "width": 1024, "depth": 24, "num_heads": 16},  # ViT-L/14, as CLIP's
    perceptual=(64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512),
    discriminator=64,
    steps=3,
    product=PRODUCT_SIZE["cuda"],
)
SMALL = TrunkConfig(16, 1, 2, ffn_multiple=16)
TINY = Sizes(
    {"far_base": SMALL, "llamagen_b": SMALL, "llamagen_l": SMALL},
    grid=2,
    codebook_size=16,
    head_depth=1,
    decoding=(1, 2),
    positions=2,
    training={"llamagen_b": 2, "llamagen_l": 2, "far_base": 2, "tokenizer": 2},
    tokenizer={
        "image_size": 32,
        "base_channels": 32,
        "channel_multipliers": [1, 1, 1],
        "num_res_blocks": 1,
        "latent_channels": 32,
        "projection_channels": 32,
        "adapter": "convolutional",
        "adapter_depth": 1,
        "attention": False,
    },
    teacher={"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "num_heads": 2},
    perceptual=(8, 0, 8),
    discriminator=8,
    steps=1,
    product=64,
)


@dataclass(frozen=True)
class Rates:
    """Rates of the machine: FLOP/s of a product of two matrices by type, and bytes/s of a copy."""

    products: dict[str, float]
    copy: float


@dataclass(frozen=True)
class Measured:
    """Seconds of the first call, median seconds of later ones, and figures of a step of a traced one."""

    first: float
    seconds: float
    figures: Figures

    def results(self, name: str, per: str) -> list[Result]:
        """The figures that have no bound; `per` is a step or a position."""
        found = self.figures
        idle = [] if found.idle is None else [Result(f"{name}/idle", found.idle, "of the traced time")]
        return [
            Result(f"{name}/first_call", self.first, "s"),
            Result(f"{name}/launches", found.launches, f"per {per}"),
            Result(f"{name}/kernels", found.kernels, f"per {per}"),
            Result(f"{name}/operators", found.operators, f"per {per}"),
            Result(f"{name}/synchronisations", found.waits, f"per {per}"),
            *idle,
        ]


class Bench:
    """Parts of a pass, on one device at one size.

    The device is no default device of torch: that would slow every call from Python, which is what is measured.
    """

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes = sizes
        self.device = device
        self.found: Rates | None = None

    @property
    def rates(self) -> Rates:
        """The rates, measured once."""
        if self.found is None:
            with default_device(self.device):
                torch.set_float32_matmul_precision("high")
                products = {name: matrix_product_rate(dtype, self.sizes.product) for name, dtype in DTYPES.items()}
                self.found = Rates(products, copy_rate(COPY_BYTES[self.device.type]))
        return self.found

    def parts(self) -> Iterator[tuple[str, Measurement]]:
        """Names and functions of all parts, the most important first."""
        yield "rates", self.machine
        first, *others = self.sizes.decoding
        second, *rest = others
        yield from self._decoding("far_base", "bf16", (first, second))
        yield from self._training("llamagen_b", "tokenizer")
        yield from self._decoding("llamagen_b", "bf16", (first, second))
        yield from self._training("far_base", "llamagen_l")
        for network in ("far_base", "llamagen_b"):
            yield from self._decoding(network, "bf16", rest)
        for network in ("far_base", "llamagen_b"):
            yield from self._decoding(network, "float32", self.sizes.decoding)

    def _decoding(self, network: str, dtype: str, batches: Iterator[int] | Any) -> Iterator[tuple[str, Measurement]]:
        for batch in batches:
            for mode in ("eager", "graph"):
                name = f"decoding/{network}/{dtype}/batch{batch}/{mode}"
                yield name, partial(self.decoding, name, network, dtype, batch, mode == "graph")

    def _training(self, *networks: str) -> Iterator[tuple[str, Measurement]]:
        for network in networks:
            for mode in ("eager", "compiled"):
                name = f"training/{network}/bf16/batch{self.sizes.training[network]}/{mode}"
                measure = self.tokenizer if network == "tokenizer" else partial(self.training, network=network)
                yield name, partial(measure, name, compiled=mode == "compiled")

    def machine(self) -> list[Result]:
        """The rates that bound all others."""
        products = [Result(f"product/{name}", rate / 1e12, "TFLOP/s") for name, rate in self.rates.products.items()]
        return [*products, Result("copy", self.rates.copy / 1e9, "GB/s")]

    def generator(self, network: str, compiled: bool = False) -> AutoregressiveGenerator:
        """A generator with random weights, on the default device."""
        torch.manual_seed(0)
        trunk = replace(self.sizes.trunks[network], compile=compiled)
        dual = network.startswith("far")
        generator = AutoregressiveGenerator(trunk, AutoregressiveHead(self.sizes.head_depth) if dual else LinearHead())
        codebooks = (self.sizes.codebook_size,) * (2 if dual else 1)
        generator.connect(TokenSpec(codebooks, ((self.sizes.grid,) * 2,)), NUM_CLASSES)
        parallelize(generator)
        return generator

    def decoding(self, name: str, network: str, dtype: str, batch: int, graph: bool) -> list[Result]:
        """Seconds of a position, and the share of the copy rate at which it reads weights, keys and values."""
        torch.set_float32_matmul_precision("highest")  # as `cli.py predict` multiplies
        with self.device:
            generator = self.generator(network).to(DTYPES[dtype]).eval()
            labels = torch.arange(batch) % NUM_CLASSES
        generator.compile_decoding = graph
        positions = generator.spec.num_positions if graph else self.sizes.positions
        measured = self.measured(lambda: write(generator, labels, positions), positions)
        if graph and (generator._step is None or generator._step.compiled is None):
            raise RuntimeError("the step could not be compiled: the log says why")
        seconds = measured.seconds / positions
        read = bytes_per_position(generator, 2 * batch, positions) / seconds
        return [
            Result(f"{name}/time", 1e3 * seconds, "ms per position"),
            Result(f"{name}/speed", batch / seconds, "positions/s"),
            Result(f"{name}/bandwidth", read / 1e9, "GB/s", self.rates.copy / 1e9, read / self.rates.copy),
            *measured.results(name, "position"),
        ]

    def training(self, name: str, network: str, compiled: bool) -> list[Result]:
        """Seconds of a step with AdamW, and its share of the product rate (MFU)."""
        torch.set_float32_matmul_precision("high")  # as `cli.py fit` multiplies
        with torch.device("meta"):
            flops = float(image_compute(self.generator(network)).training)
        batch = self.sizes.training[network]
        with self.device:
            generator = self.generator(network, compiled)
            shape = (batch, generator.spec.num_sub_codes, generator.spec.num_positions)
            codes = torch.randint(self.sizes.codebook_size, shape)
            labels = torch.randint(NUM_CLASSES, (batch,))
        optimizer = OptimizerConfig().build(generator.parameters())

        def step() -> None:
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = generator.loss(Tokens(codes=codes), labels).total
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        measured = self.measured(step, 1)
        return [*self._trained(name, measured.seconds, batch, flops * batch), *measured.results(name, "step")]

    def tokenizer(self, name: str, compiled: bool) -> list[Result]:
        """Seconds of a step of the tokenizer's LightningModule: both networks, all losses, the finite check."""
        from benchmarks.gpu_tokenizer import Parts, trained  # needs Lightning

        torch.set_float32_matmul_precision("high")
        sizes, batch = self.sizes, self.sizes.training["tokenizer"]
        parts = Parts(sizes.tokenizer, sizes.codebook_size, sizes.teacher, sizes.perceptual, sizes.discriminator)
        flops, milliseconds, figures_of_a_step = trained(parts, batch, sizes.steps, compiled)
        measured = Measured(0.0, milliseconds / 1e3, figures_of_a_step)
        return [*self._trained(name, measured.seconds, batch, flops), *measured.results(name, "step")[1:]]

    def _trained(self, name: str, seconds: float, batch: int, flops: float) -> list[Result]:
        achieved, bound = flops / seconds, self.rates.products["bf16"]
        return [
            Result(f"{name}/time", 1e3 * seconds, "ms per step"),
            Result(f"{name}/speed", batch / seconds, "images/s"),
            Result(f"{name}/mfu", achieved / 1e12, "TFLOP/s", bound / 1e12, achieved / bound),
        ]

    def measured(self, call: Callable[[], object], steps: int) -> Measured:
        """Time and trace a call of some steps; the second call still warms up, as one that records a graph does."""
        first, _, *later = (self._seconds(call) for _ in range(2 + REPEATS))
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "trace.json.gz"
            with tracing(path):
                call()
            return Measured(first, statistics.median(later), figures(read_events(path), steps))

    def _seconds(self, call: Callable[[], object]) -> float:
        self._wait()
        began = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def copy_rate(size: int) -> float:
    """Bytes/s that a copy reads and writes, median over some copies, on the default device."""
    from benchmarks.machine import seconds

    source, target = torch.ones(size // 4), torch.empty(size // 4)
    target.copy_(source)
    return 2 * size / statistics.median(seconds(lambda: target.copy_(source)) for _ in range(5))


@contextmanager
def default_device(device: torch.device) -> Iterator[None]:
    """Make this the default device of the block."""
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


class CutOffError(BaseException):
    """The time of a part was used up; no ``except Exception`` of a library stops it."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise CutOffError in the block after some seconds; a single call of a library may delay it."""

    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise CutOffError(f"cut off after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(parts: Iterator[tuple[str, Measurement]], head: dict[str, Any], seconds: float, path: Path) -> None:
    """Run the parts one after the other while there is time, and write the file after each."""
    end = time.monotonic() + seconds
    record: dict[str, Any] = {**head, "seconds": seconds, "parts": []}
    for name, measure in parts:
        began = time.monotonic()
        part: dict[str, Any] = {"name": name}
        try:
            if end <= began:
                raise TimeoutError("left out: the time was used up")
            with at_most(min(PART_SECONDS, end - began)):
                part["results"] = [asdict(result) for result in measure()]
        except (Exception, CutOffError) as error:
            part["error"] = f"{type(error).__name__}: {first_line(error)}"
        part["seconds"] = round(time.monotonic() - began, 3)
        record["parts"].append(part)
        records.write(path, record)
        show(part)
        release()


def show(part: dict[str, Any]) -> None:
    """Print a part."""
    print(f"{part['name']} ({part['seconds']:.1f} s){': ' + part['error'] if 'error' in part else ''}", flush=True)
    for result in part.get("results", []):
        share = "" if result["of_bound"] is None else f"{result['of_bound']:8.1%} of {result['bound']:.4g}"
        name = result["name"].removeprefix(part["name"] + "/")
        print(f"  {name:<20}{result['value']:>12.4g} {result['unit']:<20}{share}", flush=True)


def release() -> None:
    """Free what a part leaves: tensors, and compiled code, of which torch keeps few for one function."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(arguments: list[str] | None = None) -> None:
    """Run a pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=480.0, help="time of the whole pass; default %(default)s")
    parser.add_argument("--output", type=Path, help="JSON file; default benchmarks/results/<date>-gpu.json")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny networks, not compiled, on a CPU too: a test of this program"
    )
    given = parser.parse_args(arguments)
    on_gpu = torch.cuda.is_available()
    if not on_gpu and not given.tiny:
        parser.error("there is no GPU here: add --tiny to test this program on the CPU")
    device = torch.device("cuda" if on_gpu else "cpu")
    path = given.output or RESULTS / f"{date.today().isoformat()}-gpu{'-tiny' if given.tiny else ''}.json"
    with default_device(device):
        head = environment()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # a trainer's announcements
    with torch.compiler.set_stance("force_eager" if given.tiny else "default"):
        run(Bench(TINY if given.tiny else PUBLISHED, device).parts(), head, given.seconds, path)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
