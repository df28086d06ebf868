"""Replacement of codes by near neighbours, against loops in float64."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from polytoken.metrics.perturbation import CHOSEN, DRAWN, REPLACED, CodePerturbation, NearestCodes, Perturbation
from polytoken.quantizers import (
    ContinuousBottleneck,
    FactorizedQuantizer,
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    MultiScaleQuantizer,
    Quantizer,
    VectorQuantizer,
)
from polytoken.sampling import RowNoise

CPU = torch.device("cpu")


@dataclass
class Case:
    """A quantizer, and the vectors of its codes by another way."""

    quantizer: Quantizer
    vectors: list[np.ndarray]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def weights(quantizer: Quantizer) -> np.ndarray:
    return quantizer.embedding.weight.detach().double().numpy()  # type: ignore[union-attr, operator]


def lattice(levels: list[int]) -> np.ndarray:
    """Points of a finite scalar quantizer in the order of its codes, channel 1 most significant."""
    return np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in levels), indexing="ij"), -1).reshape(-1, len(levels))


def case(name: str) -> Case:
    torch.manual_seed(0)
    if name == "vector":
        made: Quantizer = VectorQuantizer(24, 3)
        return Case(made, [unit(weights(made))])
    if name == "distances":
        made = VectorQuantizer(24, 3, normalize=False)
        return Case(made, [weights(made)])
    if name == "factorized":
        made = FactorizedQuantizer(VectorQuantizer(24, 3), 2)
        return Case(made, [unit(weights(one)) for one in made.branches])  # type: ignore[arg-type]
    if name == "scales":
        made = MultiScaleQuantizer((1, 2), 24, 3, normalize=False, num_convolutions=1)
        return Case(made, [weights(made)])
    if name == "folded":
        made = FactorizedQuantizer(MultiScaleQuantizer((1, 2), 24, 3, num_convolutions=1), 2)
        return Case(made, [unit(weights(one)) for one in made.branches])  # type: ignore[arg-type]
    if name == "lookup free":
        bits = (np.arange(16)[:, None] >> np.arange(4) & 1) * 2.0 - 1
        return Case(LookupFreeQuantizer(8, 2, sphere=True), [bits / math.sqrt(8)] * 2)
    return Case(FiniteScalarQuantizer((5, 3, 5, 3), num_sub_codes=2), [lattice([5, 3])] * 2)


CASES = ["vector", "distances", "factorized", "scales", "folded", "lookup free", "finite scalar"]


def slowly(case: Case, codes: Tensor, alpha: float, beta: float, delta: int, seed: int, first: int) -> Tensor:
    """One image, sub-code and position at a time; neighbours by sorting distances in float64."""
    result = codes.clone()
    for image in range(len(codes)):
        noise = RowNoise(seed, first + image, 1, CPU)
        draws = [noise.uniform((key,), *codes.shape[1:])[0] for key in (REPLACED, DRAWN)]
        if float(noise.uniform((CHOSEN,), 1)) >= beta:
            continue
        for sub_code, vectors in enumerate(case.vectors):
            for position in range(codes.shape[2]):
                if float(draws[0][sub_code, position]) < alpha:
                    code = int(codes[image, sub_code, position])
                    # float32 makes distances equal that rounding of the vectors tells apart
                    distances = np.square(vectors - vectors[code]).sum(1).round(6)
                    nearest = sorted(range(len(vectors)), key=lambda other: (distances[other], other))[:delta]  # noqa: B023
                    result[image, sub_code, position] = nearest[int(float(draws[1][sub_code, position]) * len(nearest))]
    return result


@pytest.mark.parametrize("name", CASES)
def test_codes_are_replaced_as_loops_do(name: str) -> None:
    made = case(name)
    sizes = [len(vectors) for vectors in made.vectors]
    codes = torch.stack([torch.randint(size, (6, 5), generator=torch.manual_seed(1)) for size in sizes], dim=1)
    expected = slowly(made, codes, 0.6, 0.7, 4, seed=3, first=10)
    perturb = CodePerturbation(made.quantizer, Perturbation(0.6, 0.7, 4, seed=3))
    found = perturb(codes, torch.arange(10, 16))
    assert torch.equal(found, expected) and not torch.equal(found, codes)
    for rows in ([5], [0, 3], [4, 2, 1]):  # whatever the batch
        assert torch.equal(perturb(codes[rows], 10 + torch.tensor(rows)), expected[rows])


def test_shares_are_those_that_were_asked_for() -> None:
    made, codes = case("vector"), torch.randint(24, (400, 1, 50), generator=torch.manual_seed(1))
    found = CodePerturbation(made.quantizer, Perturbation(alpha=0.4, beta=0.5, delta=5))(codes, torch.arange(400))
    changed = found != codes
    touched = changed.flatten(1).any(1)
    assert touched.double().mean() == pytest.approx(0.5, abs=0.08)
    assert changed[touched].double().mean() == pytest.approx(0.4 * (1 - 1 / 5), abs=0.02)
    assert torch.equal(CodePerturbation(made.quantizer, Perturbation(alpha=0))(codes, torch.arange(400)), codes)
    other = CodePerturbation(made.quantizer, Perturbation(alpha=0.4, beta=0.5, delta=5, seed=1))(
        codes, torch.arange(400)
    )
    assert not torch.equal(found, other)


def test_a_small_codebook_has_fewer_neighbours_and_chunks_change_nothing() -> None:
    codebook = torch.randn(30, 4, generator=torch.manual_seed(1))
    codes, ranks = torch.arange(30), torch.zeros(30, dtype=torch.int64)
    assert NearestCodes(codebook, 100).delta == 30
    assert torch.equal(NearestCodes(codebook, 7)(codes, ranks), codes)
    whole, chunked = NearestCodes(codebook, 7), NearestCodes(codebook, 7, max_matrix_elements=60)
    for rank in range(7):
        assert torch.equal(whole(codes, ranks + rank), chunked(codes, ranks + rank))


def test_a_continuous_bottleneck_has_no_codebooks() -> None:
    assert ContinuousBottleneck(4).codebooks() == ()
