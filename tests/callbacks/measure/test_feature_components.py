from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks import FeatureComponents
from callbacks.measure.feature_components import colours
from polytoken.errors import UserError
from polytoken.metrics.frechet import Gaussian
from polytoken.metrics.principal_components import PrincipalComponents
from polytoken.tokenizers import Tokenizer
from tests.support.tokenizers import tiny_folded, tiny_representation, tiny_scales, tiny_tokenizer
from tests.support.validation import Images, logged_metrics, module_of, quiet_trainer


def picture(tokenizer: Tokenizer, directory: Path, callback: FeatureComponents, **changes: object) -> np.ndarray:
    module = module_of(tokenizer)
    for name, value in changes.items():
        setattr(module, name, value)
    trainer = quiet_trainer(directory, [callback])
    trainer.validate(module, Images(), verbose=False)
    assert not logged_metrics(trainer)
    with Image.open(directory / "components.png") as drawn:
        return np.array(drawn)


def reference(maps: torch.Tensor, row: int) -> np.ndarray:
    """Colours (h, w, 3) of one image by numpy's singular value decomposition."""
    rows = maps.double().movedim(1, -1).flatten(0, 2).numpy()
    values = rows - rows.mean(0)
    _, singular, right = np.linalg.svd(values, full_matrices=False)
    signs = np.array([np.sign(one[np.abs(one).argmax()]) for one in right[:3]])
    scores = values @ right[:3].T * signs / (singular[:3] / np.sqrt(len(rows) - 1))
    shown = scores.reshape(len(maps), *maps.shape[-2:], 3)[row]
    return np.clip((shown / 2 + 1) * 127.5, 0, 255)


def test_columns_of_a_representation_tokenizer(tmp_path: Path) -> None:
    tokenizer = tiny_representation(tmp_path).eval()
    pixels = picture(tokenizer, tmp_path, FeatureComponents(blocks=(1, 3), rows=3, pixels=32))
    images = Images().images[:10]
    with torch.no_grad():
        decoded, encoding = tokenizer(images)
        blocks = tokenizer.foundation.features(images, (1, 3))
    columns = [
        *(one.patches.permute(0, 3, 1, 2) for one in blocks),
        encoding.latents[0],
        encoding.subspaces[0],
        decoded.features["deep"],
        decoded.features["shallow"],
    ]
    top, pitch = pixels.shape[0] - 3 * 34, (pixels.shape[1] - 2) // 7
    for row, index in enumerate((0, 3, 6)):
        cells = pixels[top + row * 34 : top + row * 34 + 32]
        for column, maps in enumerate(columns, start=1):
            shown = cells[8::16, 2 + column * pitch + 8 : 2 + column * pitch + 32 : 16].astype(int)
            assert np.abs(shown - reference(maps, index)).max() <= 1.5, (row, column)
    again = picture(tokenizer, tmp_path, FeatureComponents(blocks=(1, 3), rows=3, pixels=32))
    assert np.array_equal(again, pixels), "a rerun is equal"
    resized = picture(tokenizer, tmp_path, FeatureComponents(blocks=(1, 3), rows=3, pixels=32), metric_size=8)
    assert np.array_equal(resized, pixels), "features are those of the images that were fed in"


@pytest.mark.parametrize(
    ("tokenizer", "columns"),
    [(tiny_tokenizer(), 5), (tiny_scales(1), 3), (tiny_folded(3), 7)],
    ids=["dual", "scales", "folded"],
)
def test_any_tokenizer_shows_its_subspaces(tokenizer: Tokenizer, columns: int, tmp_path: Path) -> None:
    pixels = picture(tokenizer, tmp_path, FeatureComponents(rows=2, pixels=64))
    top, pitch = pixels.shape[0] - 2 * 66, (pixels.shape[1] - 2) // columns
    cells = [pixels[top : top + 64, 2 + column * pitch : 2 + column * pitch + 64] for column in range(columns)]
    assert all(cell.std() > 5 for cell in cells) and pixels.shape[1] - 2 == columns * pitch


def test_titles_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = []
    monkeypatch.setattr(
        "callbacks.measure.feature_components.image_table",
        lambda rows, column_titles, pixels: tables.append(column_titles) or np.zeros((4, 4, 3), np.uint8),
    )
    picture(tiny_representation(tmp_path), tmp_path, FeatureComponents(rows=1))
    (titles,) = tables
    assert titles == [
        *("image", "block 1", "block 2", "block 3", "before/0", "after/0", "decoded/deep", "decoded/shallow")
    ]


def test_the_mean_is_grey() -> None:
    components = PrincipalComponents.of(Gaussian(9, torch.ones(4), torch.eye(4, dtype=torch.float64)), 3)
    assert (colours(torch.ones(2, 4, 2, 2), components, (6, 6)) == 128).all()


def test_wrong_blocks_are_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this tokenizer has none: leave them out"):
        picture(tiny_tokenizer(), tmp_path, FeatureComponents(blocks=(1,)))
    with pytest.raises(UserError, match="block 4 of teacher stand_in: it has blocks 0 to 3"):
        picture(tiny_representation(tmp_path), tmp_path, FeatureComponents(blocks=(4,)))
