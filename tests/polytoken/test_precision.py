"""TF32 is used in training only, not for codes or metrics."""

from pathlib import Path

import pytest
import torch

from polytoken.precision import full_precision
from polytoken.quantizers.vector import VectorQuantizer
from tests.configs.test_cluster import parsed


@pytest.fixture(autouse=True)
def restored():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_autocast_and_tf32_are_off_inside_the_context() -> None:
    torch.set_float32_matmul_precision("high")
    tf32 = torch.backends.cudnn.allow_tf32
    with pytest.raises(KeyError), torch.autocast("cpu", torch.bfloat16), full_precision(torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32 and not torch.is_autocast_enabled("cpu")
        raise KeyError
    assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32 == tf32


def test_codes_are_looked_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_float32_matmul_precision("high")
    seen: list[str] = []

    def nearest(rows: torch.Tensor, *_: object) -> torch.Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return torch.zeros(len(rows), dtype=torch.int64)

    monkeypatch.setattr("polytoken.quantizers.vector.nearest_codes", nearest)
    VectorQuantizer(4, 2)(torch.randn(1, 2, 3, 3))
    assert seen == ["highest"]


@pytest.mark.parametrize(
    ("recipe", "command", "cuda", "expected"),
    [
        ("far_base.yaml", "fit", True, "high"),
        ("far_base.yaml", "fit", False, "highest"),
        ("tokens.yaml", "predict", True, "highest"),
    ],
)
def test_a_gpu_trains_in_tf32(
    recipe: str, command: str, cuda: bool, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    preset = "generator" if command == "fit" else "tokens"
    parsed(monkeypatch, tmp_path, recipe, f"presets/imagenet/{preset}.yaml", command=command)
    assert torch.get_float32_matmul_precision() == expected
