"""Rotary tables, absolute positions and features of time, with the values of the released code."""

import math

import torch

from polytoken.positions import Rotation, position_table, rotary_table, time_features

CPU = torch.device("cpu")


def test_rotary_table() -> None:
    """Row 0 zeros, row 1 identity, row 2 turns only the second half of the pairs."""
    table = rotary_table(((16, 16),), 64, "zero", CPU)
    assert table.shape == (257, 32, 2)
    assert table.dtype == torch.float32
    assert torch.equal(table[0], torch.zeros(32, 2))
    identity = torch.tensor([1.0, 0.0]).expand(32, 2)
    assert torch.equal(table[1], identity)
    assert torch.equal(table[2, :16], identity[:16])
    assert torch.allclose(table[2, 16], torch.tensor([math.cos(1.0), math.sin(1.0)]))
    assert torch.allclose(table[17, 15], torch.tensor([math.cos(10000 ** (-30 / 32)), math.sin(10000 ** (-30 / 32))]))
    assert torch.equal(table[17, 16:], identity[16:])
    assert torch.equal(rotary_table(((16, 16),), 64, "identity", CPU)[0], identity)
    assert torch.equal(rotary_table(((16, 16),), 64, None, CPU), table[1:])


def test_rotary_turns_adjacent_pairs() -> None:
    rotation = Rotation(rotary_table(((1, 2),), 8, "zero", CPU)[2:])
    turned = rotation(torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8]).expand(1, 1, 1, 8))[0, 0, 0]
    assert torch.equal(turned[:4], torch.tensor([1.0, 2, 3, 4]))  # row 0
    cosine, sine = math.cos(1.0), math.sin(1.0)  # column 1
    assert torch.allclose(turned[4:6], torch.tensor([5 * cosine - 6 * sine, 6 * cosine + 5 * sine]))


def test_rotary_table_of_patches() -> None:
    """Row 1, column 2 of a 16 × 16 grid without a class: row 18."""
    cosine, sine = rotary_table(((16, 16),), 64, None, CPU)[18].unbind(1)
    expected = torch.tensor([0.540302, 0.846009, -0.416147, 0.431463])
    assert torch.allclose(cosine[[0, 1, 16, 17]], expected, atol=1e-6)
    assert torch.allclose(sine[[0, 16]], torch.tensor([0.841471, 0.909297]), atol=1e-6)


def test_absolute_positions() -> None:
    """Sine and cosine of the column, then of the row, a quarter of the channels each."""
    place = position_table((16, 16), 1024, CPU)[18]
    expected = torch.tensor([0.909297, -0.416147, 0.841471, 0.540302])
    assert torch.allclose(place[[0, 256, 512, 768]], expected, atol=1e-6)


def test_features_of_time() -> None:
    features = time_features(torch.tensor([0.5]), 256)[0]
    expected = torch.tensor([0.877583, 0.893693, 0.907719, 0.479426, 0.448678, 0.419580, 5.3730e-5])
    assert torch.allclose(features[[0, 1, 2, 128, 129, 130, 255]], expected, atol=1e-6)
    assert features.dtype == torch.float32
