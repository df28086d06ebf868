"""The global batch of a configuration: rows of a process, processes, and accumulated batches."""

import pytest

from commands.estimates import _steps
from commands.processes import devices, global_batch, processes


@pytest.mark.parametrize(
    ("given", "count"),
    [(8, 8), ("8", 8), ([0, 1], 2), ("0,1", 2), ("3,", 1), ("auto", None), (-1, None), ("-1", None), (None, None)],
)
def test_devices_of_a_node(given: object, count: int | None) -> None:
    assert devices({"devices": given}) == count
    assert processes({"devices": given, "num_nodes": "2"}) == (count and 2 * count)
    assert devices({}) == 1


@pytest.mark.parametrize(
    ("trainer", "model", "text"),
    [
        ({"devices": 1}, {}, "32"),
        ({"devices": "8"}, {}, "256 (32 × 8 processes)"),
        ({"devices": 4, "num_nodes": 2, "accumulate_grad_batches": 2}, {}, "512 (32 × 8 processes × 2 accumulated)"),
        ({"devices": 1, "accumulate_grad_batches": 1}, {"accumulate_steps": 4}, "128 (32 × 4 accumulated)"),
        ({"devices": "auto"}, {}, "32 on each process"),
    ],
)
def test_the_global_batch_of_an_update(trainer: dict, model: dict, text: str) -> None:
    config = {"trainer": {**trainer, "max_steps": 5}, "model": {"init_args": model}, "data": {"init_args": {}}}
    assert global_batch(config) is None and global_batch({}) is None
    config["data"]["init_args"]["batch_size"] = 32
    assert str(global_batch(config)) == text
    assert _steps(config) == (5, int(text.split()[0]))
