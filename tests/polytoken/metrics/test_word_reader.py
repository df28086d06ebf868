"""The OCR network of the extra `fidelity`, which reads what Pillow writes."""

from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

from commands.placed import Word, place_words
from polytoken.errors import UserError
from polytoken.metrics import word_reader
from polytoken.metrics.word_reader import WordReader


@pytest.mark.skipif(find_spec("rapidocr") is None, reason="the extra `fidelity` is not installed")
def test_words_are_read() -> None:
    words = [Word("hundred", "DejaVuSans"), Word("towards", "DejaVuSerif")]
    placed = place_words(words, 24, 160, seed=0)
    crops = [crop.permute(1, 2, 0).numpy() for crop in placed.crops(placed.images)]
    reader = WordReader()
    assert reader([*crops, np.full((24, 80, 3), 200, np.uint8)]) == ["hundred", "towards", ""]
    red_on_blue = np.where(crops[0] == crops[0][0, 0], np.uint8([0, 0, 255]), np.uint8([255, 0, 0]))
    assert reader([red_on_blue]) == ["hundred"]


@pytest.mark.skipif(find_spec("rapidocr") is None, reason="the extra `fidelity` is not installed")
def test_the_network_sees_48_rows_of_blue_green_and_red(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, seen = WordReader(), []
    run = reader._network.run
    spy = SimpleNamespace(run=lambda _, inputs: seen.append(inputs) or run(None, inputs), get_inputs=lambda: [named])
    (named,) = reader._network.get_inputs()
    monkeypatch.setattr(reader, "_network", spy)
    reader([np.full((24, 50, 3), (255, 0, 51), np.uint8)])
    (image,) = seen[0].values()
    assert image.shape == (1, 3, 48, 320) and not image[..., 100:].any()
    assert image[0, :, :, :100].reshape(3, -1).T == pytest.approx(np.broadcast_to((-0.6, -1, 1), (4800, 3)))


@pytest.mark.parametrize("missing", ["rapidocr", "onnxruntime"])
def test_a_missing_package_is_named_with_its_remedy(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_reader, "find_spec", lambda name: None if name == missing else find_spec(name))
    with pytest.raises(UserError, match=r"weights of rapidocr and by onnxruntime: pip install '.\[fidelity\]'"):
        WordReader()
