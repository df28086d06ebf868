import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_modules import DualEncoderModule
from lightning_modules.dual_encoder import sigmoid_loss
from polytoken.teachers import Teacher
from polytoken.teachers.class_vectors import ClassVectors
from polytoken.teachers.stand_in import SmallVisionTransformer
from polytoken.teachers.text import SmallTextTransformer
from polytoken.teachers.text_towers import open_text_tower
from tests.support.validation import Images, quiet_trainer


def build(place: Path, **changes: object) -> DualEncoderModule:
    torch.manual_seed(0)
    settings: dict = {
        "image": SmallVisionTransformer(16, 8, width=16, depth=1, num_heads=2, pooling="attention"),
        "text": SmallTextTransformer(width=16, depth=1, num_heads=2),
        "classes": {"b": "two", "a": "one"},
        "prompts": ["{}", "the number {}"],
        "output": str(place / "dual.safetensors"),
        "text_output": str(place / "text.safetensors"),
    }
    return DualEncoderModule(**settings | changes)


def test_the_loss_equals_a_reference_in_float64() -> None:
    logits, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 2, 1, 0])
    expected = np.mean(
        [
            sum(math.log1p(math.exp(-value if label == j else value)) for j, value in enumerate(row))
            for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True)
        ]
    )
    assert sigmoid_loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_both_towers_are_trained_and_saved(tmp_path: Path) -> None:
    """Names are ordered by the labels of the data; the text tower's header names the image tower as it was saved."""
    module = build(tmp_path)
    before = {name: weight.clone() for name, weight in module.named_parameters()}
    quiet_trainer(tmp_path, [], max_steps=3, val_check_interval=3, check_val_every_n_epoch=None).fit(module, Images())
    assert not [*tmp_path.glob("*.safetensors")], "an interrupted fit leaves no weights that others would use"
    assert module.deliver() == [tmp_path / "dual.safetensors", tmp_path / "text.safetensors"]
    moved = {name for name, weight in module.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == before.keys()
    teacher, tower = Teacher("stand_in", str(tmp_path / "dual.safetensors")), open_text_tower(module.text_output)
    teacher.check_pool()
    assert tower.teacher == teacher.identity and list(tower.classes.items()) == [("a", "one"), ("b", "two")]
    vectors = ClassVectors.of(tower, tower.classes, tower.prompts)
    torch.testing.assert_close(vectors.vectors, module.vectors, atol=1e-5, rtol=1e-4)


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'a digit' has no placeholder"):
        build(tmp_path, prompts=["a digit"])
    with pytest.raises(ValueError, match="text.width"):
        build(tmp_path, text=SmallTextTransformer(width=8, num_heads=2))
    with pytest.raises(ValueError, match="image.pooling to attention"):
        build(tmp_path, image=SmallVisionTransformer(16, 8, width=16, depth=1))
    with pytest.raises(ValueError, match="names 1 classes"):
        build(tmp_path, classes={"a": "one"})
    module = build(tmp_path, classes={"a": "one", "c": "two"})
    with pytest.raises(ValueError, match="do not both have class 'b'"):
        quiet_trainer(tmp_path, [], max_steps=1).fit(module, Images())
