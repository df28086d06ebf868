"""Decoding of FAR-Base dual (417 M parameters, guidance 2): eager mode against the compiled step, in one run.

    python -m benchmarks.decoding [--batches 1,8,32] [--rounds 5] [--dtypes float32,bfloat16]

Each round times some positions in eager mode, some compiled ones and the machine's rates, one after the other, so that
a slower machine slows all. The positions lie around the middle of an image: eager mode reads the keys written so far,
the graph all of them. The bound is one read of all weights that a position needs, or its arithmetic at the rate of a
product of half the size, whichever is slower. Counted are operators: those that eager mode dispatches, and the kernels
and calls in the code of the graph.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.generator import GRID, GUIDANCE, far_base, position_flops
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
from polytoken.generators import AutoregressiveGenerator
from polytoken.generators.decoding import packs_weights
from polytoken.sampling import CategoricalSampler, Draw, RowNoise

POSITIONS = GRID[0] * GRID[1]
TIMED = 4  # positions a round
CALL = re.compile(
    r"^\s+(?:\w+ = )?(?:\w*cpp_fused\w*|triton_\w+\.run|extern_kernels\.\w+|torch\.ops\.\S+)\(", re.MULTILINE
)


class Decoding:
    """One batch in both modes, at any position.

    Args:
        generator: in eval mode.
        batch: images.
    """

    def __init__(self, generator: AutoregressiveGenerator, batch: int) -> None:
        self.generator = generator
        labels = torch.arange(batch)
        rules = CategoricalSampler(guidance=GUIDANCE)
        scales = torch.tensor(rules.scales(POSITIONS, generator.spec.num_sub_codes))
        self.draw = Draw(rules, RowNoise(0, 0, batch, labels.device), scales)
        self.rows = torch.cat([labels, torch.full_like(labels, generator.num_classes)])
        self.features = generator.class_embedding(self.rows).unsqueeze(1)
        self.caches = generator.trunk.new_cache(2 * batch), generator.head.new_cache(2 * batch)
        self.compiled, self.state = generator.compiled_step(self.features, self.draw)

    def eager(self, first: int, count: int) -> None:
        """Write positions ``first`` and after; the cache before them holds what it holds."""
        features = self.features
        for position in range(first, first + count):
            _, features = self.generator.decode(features, position, self.draw, *self.caches)

    def graph(self, first: int, count: int) -> None:
        """The same by the compiled step."""
        self.state.begin(self.features, self.draw)
        self.state.position.fill_(first)
        rows, dtype = self.features.shape[0], self.features.dtype
        with self.compiled.running(packs_weights(rows, dtype)):
            for _ in range(count):
                self.compiled(self.state)
                self.state.position.add_(1)


class _Operators(TorchDispatchMode):
    """Counts operators that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def operators_of(function: Callable[[], object]) -> int:
    """Operators of one call that compute."""
    with _Operators() as operators:
        function()
    return operators.count


@torch.no_grad()
def measure(generator: AutoregressiveGenerator, batch: int, rounds: int) -> list[Result]:
    """Positions a second in both modes, their ratio and their shares of the bound."""
    dtype = generator.class_embedding.weight.dtype
    name = f"decoding/far_base/batch{batch}/guidance2/{str(dtype).removeprefix('torch.')}"
    decoding, middle = Decoding(generator, batch), POSITIONS // 2
    torch.compiler.reset()
    counters.clear()
    started = time.perf_counter()
    _, code = run_and_get_code(decoding.graph, 0, 1)
    compiling = time.perf_counter() - started
    operators = operators_of(lambda: decoding.eager(middle, 1)), sum(len(CALL.findall(one)) for one in code)
    times: dict[str, list[float]] = {"eager": [], "graph": []}
    reads, products = [], []
    decoding.eager(middle, 1)
    for _ in range(rounds):
        times["eager"].append(seconds(lambda: decoding.eager(middle, TIMED)) / TIMED)
        times["graph"].append(seconds(lambda: decoding.graph(middle, TIMED)) / TIMED)
        reads.append(read_rate())
        products.append(matrix_product_rate(dtype, PRODUCT_SIZE[device_in_use()] // 2, repeats=3))
    eager, graph = (statistics.median(values) for values in times.values())
    one_read = weight_bytes(generator) / statistics.median(reads)
    bound = max(one_read, position_flops(generator, 2 * batch) / statistics.median(products))
    stats = counters["stats"]
    return [
        Result(f"{name}/eager", batch / eager, "positions/s", batch / bound, bound / eager),
        Result(f"{name}/graph", batch / graph, "positions/s", batch / bound, bound / graph),
        Result(f"{name}/graph_over_eager", eager / graph, "times"),
        Result(f"{name}/graph/weight_reads", graph / one_read, "reads"),
        Result(f"{name}/graph/compiling", compiling, "s"),
        Result(f"{name}/eager/operators", operators[0], "a position"),
        Result(f"{name}/graph/operators", operators[1], "a position"),
        Result(f"{name}/graph/graphs", stats["unique_graphs"], "graphs"),
        Result(f"{name}/graph/breaks", sum(counters["graph_break"].values()), "breaks"),
    ]


def weight_bytes(generator: AutoregressiveGenerator) -> int:
    """Bytes of the weights that a position needs; of the embeddings it reads one row, which is negligible."""
    parameters = generator.named_parameters()
    return sum(p.nbytes for name, p in parameters if not name.startswith(("embeddings", "class_embedding")))


def main() -> None:
    """Measure all batches and types."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="1,8,32", help="images at a time, separated by commas")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each batch and type")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="types of the weights")
    add_device_argument(parser)
    arguments = parser.parse_args()
    use(arguments.device)
    torch.set_float32_matmul_precision("highest")  # as `cli.py predict` multiplies
    generator, results = far_base(), []
    for name in arguments.dtypes.split(","):
        generator = generator.to(getattr(torch, name))
        for batch in map(int, arguments.batches.split(",")):
            print(f"measuring batch {batch} in {name}", flush=True)
            results += measure(generator, batch, arguments.rounds)
    print(f"written to {write_results('decoding', results)}")


if __name__ == "__main__":
    main()
