"""Fréchet distance, statistics, precision and recall at Inception's 2,048 features: time and memory.

    python -m benchmarks.metrics [--repeats 3] [--images 10000]

The bound of a time is one matrix product of the same size and type in the same run; the bound of memory is a limit.
Memory is measured in separate processes. `added` is the peak above the memory of the process when the call began;
`held` is that peak itself, features and libraries included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.machine import Result, peak_bytes, resident_bytes, seconds, write_results
from polytoken.metrics.frechet import FeatureStatistics, Gaussian, frechet_distance
from polytoken.metrics.kernel_distance import kernel_distance
from polytoken.metrics.precision_recall import precision_recall

FEATURES = 2048
BATCH = 64
GIGABYTE = 1e9
STATISTICS_ALLOWED = 1.0  # GB above what the process held, for 10,000 images
NEIGHBOURS_ALLOWED = 4.0  # GB in all, for 50,000 × 10,000


def features(number: int, seed: int = 0, width: int = FEATURES) -> Tensor:
    """Non-negative, correlated features, like Inception's."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(number, width, generator=generator) + torch.randn(number, 1, generator=generator)).relu_()


def gaussian(seed: int) -> Gaussian:
    """Gaussian of more images than features."""
    measured = FeatureStatistics(FEATURES)
    measured.update(features(FEATURES + 500, seed))
    return measured.compute()


def against_product(name: str, function: Callable[[], object], first: Tensor, second: Tensor, repeats: int) -> Result:
    """Median seconds of a call against one product of two matrices, measured in turns."""
    product = lambda: first @ second  # noqa: E731
    product()
    times, products = [], []
    for _ in range(repeats):
        products.append(seconds(product))
        times.append(seconds(function))
    time, bound = statistics.median(times), statistics.median(products)
    return Result(name, time, "s", bound, time / bound)


def distance_time(repeats: int) -> Result:
    """The distance against one product of two float64 covariances."""
    first, second = gaussian(0), gaussian(1)
    name = f"polytoken/metrics/frechet_distance/{FEATURES}"
    return against_product(name, lambda: frechet_distance(first, second), first.covariance, second.covariance, repeats)


def neighbours_time(images: int, repeats: int) -> Result:
    """Precision and recall of two sets against one product of all their features; three are the minimum."""
    real, generated = features(images), features(images, 1)
    name = f"polytoken/metrics/precision_recall/{images}x{images}"
    return against_product(name, lambda: precision_recall(real, generated), real, generated.T, repeats)


def kernel_time(repeats: int) -> Result:
    """Ten subsets of 1,000 against one product of two subsets in float64."""
    real, generated = features(2000), features(2000, 1)
    first, second = real[:1000].double(), generated[:1000].double().T
    name = "polytoken/metrics/kernel_distance/10_subsets"
    return against_product(name, lambda: kernel_distance(real, generated, 10), first, second, repeats)


def measure_statistics(images: int) -> Gaussian:
    """Mean and covariance of the images, batch by batch."""
    measured = FeatureStatistics(FEATURES)
    for start in range(0, images, BATCH):
        measured.update(features(min(BATCH, images - start), start))
    return measured.compute()


def statistics_time(images: int, repeats: int) -> Result:
    """Mean and covariance, and drawing the features, against one float64 product of all of them."""
    rows = features(images).double()
    name = f"polytoken/metrics/statistics/{images}x{FEATURES}"
    return against_product(name, lambda: measure_statistics(images), rows.T, rows, repeats)


def statistics_memory(images: int) -> list[Result]:
    """Memory added by mean and covariance of the images."""
    before = resident_bytes()
    added = (peak_bytes(lambda: measure_statistics(images)) - before) / GIGABYTE
    name = f"polytoken/metrics/statistics/{images}x{FEATURES}/memory_added"
    return [Result(name, added, "GB", STATISTICS_ALLOWED, added / STATISTICS_ALLOWED)]


def neighbours_memory(real: int, generated: int, width: int) -> list[Result]:
    """Memory added by precision and recall, and held by the process in all."""
    first, second = features(real, width=width), features(generated, 1, width)
    before = resident_bytes()
    peak = peak_bytes(lambda: precision_recall(first, second))
    name = f"polytoken/metrics/precision_recall/{generated}x{real}x{width}/memory"
    held = peak / GIGABYTE
    return [
        Result(f"{name}_added", (peak - before) / GIGABYTE, "GB"),
        Result(f"{name}_held", held, "GB", NEIGHBOURS_ALLOWED, held / NEIGHBOURS_ALLOWED),
    ]


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of each kind")
    parser.add_argument("--images", type=int, default=10_000, help="images of either set")
    given = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        results = [
            *pool.apply(statistics_memory, (given.images,)),
            *pool.apply(neighbours_memory, (given.images, given.images, FEATURES)),
            # all distances of ADM's sizes; 16 features instead of 2,048 spare the products, and the features' 0.5 GB
            *pool.apply(neighbours_memory, (given.images, 5 * given.images, 16)),
        ]
    results += [
        statistics_time(given.images, given.repeats),
        distance_time(given.repeats),
        neighbours_time(given.images, given.repeats),
        kernel_time(given.repeats),
    ]
    print(f"written to {write_results('metrics', results)}")


if __name__ == "__main__":
    main()
