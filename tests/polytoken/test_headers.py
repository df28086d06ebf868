"""Invalid headers of judge and teacher files raise one sentence before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from polytoken.classifier import SmallClassifier
from polytoken.errors import UserError
from polytoken.teachers.stand_in import SmallVisionTransformer
from polytoken.weights import save_state

ARCHITECTURE = {"image_size": 8, "patch_size": 4, "width": 8, "depth": 1, "num_heads": 1}
ARCHITECTURE |= {"pooling": "token", "num_classes": 0}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"num_classes": 2, "widths": [8, 10**9]}, r"\$\.widths\[1\]: expected int <= 8192"),
        ({"num_classes": 2, "widths": "8"}, r"\$\.widths: expected array, got str"),
        ({"num_classes": -1, "widths": [8]}, r"\$\.num_classes: expected int >= 1"),
        ({"widths": [8]}, "missing required field num_classes"),
        ({"num_classes": 2, "widths": [16]}, "does not hold the network its header describes"),
    ],
)
def test_judges(header: dict, says: str, tmp_path: Path) -> None:
    save_state(tmp_path / "judge.safetensors", SmallClassifier(2, (8,)), header)
    with pytest.raises(UserError, match=rf"judge.safetensors.*{says}") as caught:
        SmallClassifier.load(tmp_path / "judge.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "says"),
    [
        ("a string", r"\$: expected object, got str"),
        ({**ARCHITECTURE, "width": 10**9}, r"\$\.width: expected int <= 8192"),
        ({**ARCHITECTURE, "pooling": 1}, r"\$\.pooling: expected str, got int"),
        ({**ARCHITECTURE, "pooling": "map"}, r"\$\.pooling: invalid enum value"),
        ([], r"\$: expected object, got array"),
    ],
)
def test_teachers(architecture: object, says: str, tmp_path: Path) -> None:
    network = SmallVisionTransformer(**ARCHITECTURE)
    save_state(tmp_path / "high.safetensors", network, {"architecture": architecture})
    with pytest.raises(UserError, match=rf"high.safetensors.*{says}"):
        SmallVisionTransformer.load(tmp_path / "high.safetensors")


def test_keys_of_later_versions_are_ignored(tmp_path: Path) -> None:
    network = SmallVisionTransformer(**ARCHITECTURE)
    save_state(tmp_path / "high.safetensors", network, {"architecture": {**ARCHITECTURE, "later": 1}})
    loaded = SmallVisionTransformer.load(tmp_path / "high.safetensors")
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize(("class_token", "pooling"), [(True, "token"), (False, "mean")])
def test_headers_of_earlier_versions_name_a_class_token(class_token: bool, pooling: str, tmp_path: Path) -> None:
    network = SmallVisionTransformer(**{**ARCHITECTURE, "pooling": pooling})
    earlier = {key: value for key, value in ARCHITECTURE.items() if key != "pooling"} | {"class_token": class_token}
    save_state(tmp_path / "high.safetensors", network, {"architecture": earlier})
    assert SmallVisionTransformer.load(tmp_path / "high.safetensors").architecture["pooling"] == pooling
