import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_prc import calculate_precision_recall_full

from polytoken.metrics.precision_recall import precision_recall


def cloud(number: int, dimensions: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(number, dimensions, generator=torch.Generator().manual_seed(seed))


def naive(real: Tensor, generated: Tensor, neighbours: int) -> tuple[float, float]:
    """Precision and recall by the definition, pair by pair, in float64."""
    first, second = real.double().numpy(), generated.double().numpy()

    def share(of: np.ndarray, within: np.ndarray) -> float:
        radii = [np.sort(np.linalg.norm(within - row, axis=1))[neighbours] for row in within]
        return float(np.mean([any(np.linalg.norm(within - row, axis=1) <= radii) for row in of]))

    return share(second, first), share(first, second)


@pytest.mark.parametrize("neighbours", [1, 3])
@pytest.mark.parametrize("block", [16, 37, 1000])
def test_equals_the_definition_for_any_block_size(neighbours: int, block: int) -> None:
    real, generated = cloud(90), cloud(70, seed=1) * 0.9 + 0.8
    expected = naive(real, generated, neighbours)
    assert 0.05 < min(expected) < max(expected) < 0.95  # otherwise the test would be trivial
    assert precision_recall(real, generated, neighbours, block) == pytest.approx(expected)
    far = real + 1000, generated + 1000  # where float32 has no digits left for |a|² − 2 a·b + |b|²
    assert precision_recall(*far, neighbours, block) == pytest.approx(naive(*far, neighbours))


def test_equals_torch_fidelity() -> None:
    real, generated = cloud(300, 64), cloud(200, 64, seed=1) * 0.9
    assert precision_recall(real, generated) == pytest.approx(calculate_precision_recall_full(generated, real))


def test_constructed_clouds() -> None:
    near, far = cloud(40), cloud(40, seed=1) + 100
    assert precision_recall(near, near) == (1, 1)
    assert precision_recall(near, far) == (0, 0)
    assert precision_recall(near, torch.cat((near, far))) == (0.5, 1)  # every second generated image is a real one
    assert precision_recall(torch.cat((near, far)), near) == (1, 0.5)  # half of the real images are never generated


def test_the_surface_of_a_ball_is_inside() -> None:
    """Points 0, 1, 2 … on a line: the ball of each end reaches to its third neighbour, 3 steps away."""
    line = torch.arange(6.0)[:, None]
    on, beyond = (torch.tensor(ends).repeat(2)[:, None] for ends in ((-3.0, 8.0), (-3.01, 8.01)))
    assert precision_recall(line, on).precision == precision_recall(on, line).recall == 1
    assert precision_recall(line, beyond).precision == precision_recall(beyond, line).recall == 0


def test_invalid_input_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"\(9, 8\) and \(9, 4\): both sets must be measured by the same network"):
        precision_recall(cloud(9), cloud(9, 4))
    with pytest.raises(ValueError, match="3 generated images have no 3 neighbours"):
        precision_recall(cloud(9), cloud(3))
    with pytest.raises(ValueError, match="features of real images are not finite"):
        precision_recall(cloud(9) * torch.nan, cloud(9))
