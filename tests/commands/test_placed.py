"""Words and faces lie where their boxes say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands.placed import CONTRAST, LUMINANCE, choose_words, faces_in, place_faces, place_words
from polytoken.errors import UserError


def test_words_lie_inside_of_their_boxes_and_nowhere_else() -> None:
    words = choose_words(9, 16, 64, seed=0)
    placed = place_words(words, 16, 64, seed=0)
    assert len(placed.boxes) == 9 and placed.images.shape == (5, 3, 64, 64)  # two lines an image
    outside = placed.images.clone()
    for box, crop in zip(placed.boxes, placed.crops(placed.images), strict=True):
        assert crop.shape == (3, 16, box.width) and 0 <= box.left <= 64 - box.width and 0 <= box.top <= 48
        paper = crop[:, :1, :1]
        assert crop.ne(paper).any()
        inside = crop.double().flatten(1).T @ torch.tensor(LUMINANCE, dtype=torch.float64)
        assert inside.max() - inside.min() > CONTRAST - 2  # ink that is as thin as a pixel is a little paler
        outside[box.image, :, box.top : box.top + 16, box.left : box.left + box.width] = paper
    assert outside.eq(outside[:, :, :1, :1]).all()


def test_words_are_those_that_fit_and_depend_on_the_seed_only() -> None:
    words = choose_words(50, 16, 64, seed=3)
    assert words == choose_words(50, 16, 64, seed=3) != choose_words(50, 16, 64, seed=4)
    assert max(word.width(16) for word in words) <= 64 < max(word.width(16) for word in choose_words(50, 8, 64, seed=3))
    with pytest.raises(UserError, match="6 of 218 words fit an image of 64 pixels at a height of 32 pixels: leave"):
        choose_words(1, 32, 64, seed=0)


def test_faces_are_tiles(tmp_path: Path) -> None:
    faces = faces_in(None)
    assert len(faces) == 100 and faces[0].size == (25, 25)
    placed = place_faces(faces[:5], 25, 64)
    assert placed.images.shape == (2, 3, 64, 64) and [box.image for box in placed.boxes] == [0, 0, 0, 0, 1]
    for face, crop in zip(faces[:5], placed.crops(placed.images), strict=True):
        assert torch.equal(crop, torch.from_numpy(np.array(face)).permute(2, 0, 1))

    Image.new("RGB", (40, 20), "red").save(tmp_path / "b.png")
    Image.new("L", (9, 9), 7).save(tmp_path / "a.png")
    own = place_faces(faces_in(tmp_path), 32, 64)
    assert own.crops(own.images)[0].eq(7).all() and own.crops(own.images)[1][0].eq(255).all()
    Image.fromarray(np.full((9, 9), 7 * 257, np.uint16)).save(tmp_path / "a.png")
    Image.new("RGBA", (9, 9), (7, 7, 7, 0)).save(tmp_path / "b.png")
    deep, clear = (np.unique(np.asarray(face)).tolist() for face in faces_in(tmp_path))
    assert (deep, clear) == ([7], [255]), "of 16 bits, and transparent: as training reads them"
    (tmp_path / "c.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"c\.jpg cannot be read as an image"):
        faces_in(tmp_path)
