"""Metrics of two ranks with different numbers of rows equal those of all rows at once."""

from pathlib import Path

import pytest
import torch

from polytoken.metrics import (
    CodebookStatistics,
    FeatureStatistics,
    Gaussian,
    InceptionScore,
    JointCodeStatistics,
    RecentUsage,
    SubspaceCosines,
    frechet_distance,
    gather_rows,
)
from polytoken.metrics.image_set import ImageSet
from polytoken.metrics.images import to_uint8
from polytoken.metrics.kernel_distance import kernel_distance
from polytoken.metrics.layers import LayerStatistics
from polytoken.metrics.precision_recall import precision_recall
from polytoken.metrics.uniformity import UniformityStatistics
from tests.support.extractors import MeanColours
from tests.support.ranks import run_on_ranks

CPU = torch.device("cpu")
WIDE = [16384] * 5  # no int64 holds these tuples


def rows(start: int, stop: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 4, (5, 2, 6), generator=generator)
    return {
        "codes": codes[start:stop],
        "wide": torch.randint(0, 2, (5, 5, 6), generator=generator)[start:stop],
        "features": torch.randn(5, 3, generator=generator)[start:stop],
        "first": torch.randn(5, 4, 2, 2, generator=generator)[start:stop],
        "second": torch.randn(5, 4, 2, 2, generator=generator)[start:stop],
        "images": to_uint8(torch.randn(40, 3, 4, 4, generator=generator) / 2)[8 * start : 8 * stop],
        "index": torch.arange(8 * start, 8 * stop),
    }


def metrics_of_ranks(part: dict[str, torch.Tensor]) -> dict[str, object]:
    with pytest.MonkeyPatch.context() as patch:  # a list of the states of all ranks takes gigabytes on many ranks
        patch.setattr("torch.distributed.all_gather", None)
        result = large_sums(part)
    for name, sizes in (("codes", [4, 4]), ("wide", WIDE)):
        joint = JointCodeStatistics(sizes)
        joint.update(part[name])
        result[f"joint {name}"] = list(joint.compute())
    recent = RecentUsage([4, 4], window=3)
    recent.update(part["codes"][:, :, :1])
    result["recent"] = [float(share) for share in recent.compute()]
    score = InceptionScore(3)
    score.update(part["features"])
    result["score"] = [float(score.compute())]
    image_set = ImageSet(MeanColours(), 2, keep_rows=True)
    image_set.add(part["images"], part["index"] % 3, part["index"])
    measured = image_set.compute()
    assert measured.spatial is not None and measured.rows is not None
    result["set"] = [measured.count, measured.score, measured.recognised, *measured.spatial.mean.tolist()]
    result["set's covariance"] = measured.features.covariance.flatten().tolist()
    result["set's rows"] = measured.rows.flatten().tolist()
    real = MeanColours()(to_uint8(torch.randn(30, 3, 4, 4, generator=torch.Generator().manual_seed(1)) / 2 + 0.1))
    assert real.spatial is not None
    result["set's distances"] = [
        float(frechet_distance(measured.features, gaussian(real.pooled))),
        float(frechet_distance(measured.spatial, gaussian(real.spatial))),
        *precision_recall(real.pooled, measured.rows),
        *kernel_distance(real.pooled, measured.rows, num_subsets=5, subset_size=20),
    ]
    cosines = SubspaceCosines(2)
    cosines.update((part["first"], part["second"]))
    result["cosines"] = torch.stack(cosines.compute()).flatten().tolist()
    result["gathered"] = gather_rows([part["features"][:1], part["features"][1:]], CPU).flatten().tolist()
    result["gathered of one rank"] = gather_rows(
        [part["codes"][:1]] if len(part["features"]) == 3 else [], CPU
    ).tolist()
    layers = LayerStatistics(2, CPU, k=2)
    if len(part["images"]) >= 24:  # the first rank has none
        pixels = part["images"][-24:].float()
        hidden = {1: pixels.flatten(2), 2: pixels.square().flatten(2)}
        layers.update(hidden, pixels[:, 0].flatten(1))
        layers.update_probe(hidden, torch.arange(24) % 3)
    curves = layers.compute()
    assert curves.probe is not None
    result["layers"] = [curves.images, *curves.nts, *curves.cka, *(accuracy.value for accuracy in curves.probe)]
    return result


def large_sums(part: dict[str, torch.Tensor]) -> dict[str, object]:
    result: dict[str, object] = {}
    usage = CodebookStatistics([4, 4])
    usage.update(part["codes"])
    result["usage"] = [*usage.compute().perplexity, *usage.compute().usage]
    statistics = FeatureStatistics(3)
    statistics.update(part["features"])
    result["count"] = [float(statistics.compute().number)]
    result["covariance"] = statistics.compute().covariance.flatten().tolist()
    uniformity = UniformityStatistics([4, 4], resolution=16)
    uniformity.update(part["features"][:, :2].tanh(), part["codes"][:, :, 0])
    result["uniformity"] = list(uniformity.compute())
    return result


def gaussian(rows: torch.Tensor) -> Gaussian:
    return Gaussian(len(rows), rows.double().mean(0), rows.double().T.cov())


def of_rank(rank: int) -> dict[str, object]:
    return metrics_of_ranks(rows(0, 2) if rank == 0 else rows(2, 5))


@pytest.mark.cluster
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    expected = metrics_of_ranks(rows(0, 5))
    expected["gathered of one rank"] = rows(2, 3)["codes"].tolist()
    for found in run_on_ranks(of_rank, tmp_path):
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(values), msg=name)
        for name in ("set", "set's distances"):
            assert found[name] == pytest.approx(expected[name], rel=1e-6), name
    shares = expected["set's distances"][2:4]
    assert all(0 < share < 1 for share in shares)  # neither 0 nor 1
