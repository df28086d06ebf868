"""Reference images: which one belongs to which image to generate."""

import pytest
import torch
from PIL import Image

from datamodules import DigitsSource, ReferenceDataModule
from datamodules.transforms import EvaluationTransform


def test_every_reference_meets_every_class() -> None:
    data = ReferenceDataModule(16, [7, 2, 5], source=DigitsSource(), indices=[8, 0])
    assert data.num_images == 6 and data.labels(10).tolist() == [7, 2, 5, 7, 2, 5]
    records = DigitsSource().split("validation")
    expected = torch.stack([EvaluationTransform(16)(records.load(index)) for index in (8, 0)])
    assert torch.equal(data.references, expected)
    batch = data.on_before_batch_transfer({"index": torch.tensor([1, 2, 3])}, 0)
    assert torch.equal(batch["image"], expected[[0, 0, 1]])


def test_a_folder_is_read_in_the_order_of_names_before_a_source(tmp_path) -> None:
    for name, grey in (("b.PNG", 255), ("a.png", 0), (".hidden.png", 7)):
        Image.new("L", (20, 30), grey).save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").touch()
    data = ReferenceDataModule(8, [0], folder=str(tmp_path), source=DigitsSource(), indices=[4])
    assert data.references.shape == (2, 3, 8, 8) and data.references.mean((1, 2, 3)).tolist() == [-1, 1]


def test_settings_name_the_pixels(tmp_path) -> None:
    digests = []
    for grey in (0, 0, 1):
        Image.new("L", (8, 8), grey).save(tmp_path / "a.png")
        digests.append(ReferenceDataModule(8, [0], folder=str(tmp_path)).settings()["references_sha256"])
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("arguments", [{}, {"indices": [0]}, {"source": DigitsSource()}])
def test_no_reference_is_one_sentence(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"no reference images: set data\.folder"):
        ReferenceDataModule(16, [0], **arguments)


def test_references_have_pixels() -> None:
    with pytest.raises(ValueError, match=r"image_size is -8"):
        ReferenceDataModule(-8, [0], source=DigitsSource(), indices=[4])
