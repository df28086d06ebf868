"""A reader of single words: PP-OCRv6's recogniser, whose weights lie inside the wheel of `rapidocr` (extra `fidelity`).

Only the file of weights is used. The package itself would import OpenCV for resizing and detection, and words at known
places need no detection.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image

from polytoken.errors import UserError
from polytoken.files import file_sha256

WEIGHTS = Path("models", "PP-OCRv6_rec_small.onnx")
HEIGHT = 48  # pixels of a line in the network, and the least width, as in rapidocr
LEAST_WIDTH = 320
REMEDY = "pip install '.[fidelity]'"


class WordReader:
    """PP-OCRv6 small (Apache-2.0) in ONNX Runtime on the CPU: the most likely path of a CTC network, one word a call.

    Raises:
        UserError: if `rapidocr` or `onnxruntime` is not installed, or this version lacks the weights.
    """

    name = "PP-OCRv6 small"

    def __init__(self) -> None:
        if find_spec("onnxruntime") is None or (package := find_spec("rapidocr")) is None:
            raise UserError(f"words are read by the weights of rapidocr and by onnxruntime: {REMEDY}")
        import onnxruntime

        self.path = Path((package.submodule_search_locations or ["rapidocr"])[0]) / WEIGHTS
        if not self.path.is_file():
            raise UserError(f"there is no {self.path} in this version of rapidocr: {REMEDY}")
        self._network = onnxruntime.InferenceSession(self.path, providers=["CPUExecutionProvider"])
        letters = self._network.get_modelmeta().custom_metadata_map["character"].split("\n")
        self._letters = ["", *letters, " "]  # class 0 is CTC's blank

    @cached_property
    def sha256(self) -> str:
        """Digest of the weights."""
        return file_sha256(self.path)

    def __call__(self, crops: Sequence[np.ndarray]) -> list[str]:
        """The text in each crop uint8 (h, w, 3), RGB; empty where nothing is read."""
        return [self._read(crop) for crop in crops]

    def _read(self, crop: np.ndarray) -> str:
        height, width = crop.shape[:2]
        wide = ceil(HEIGHT * width / height)
        line = np.asarray(Image.fromarray(crop).resize((wide, HEIGHT), Image.Resampling.BILINEAR), np.float32)
        padded = np.zeros((1, 3, HEIGHT, max(wide, LEAST_WIDTH)), np.float32)  # grey at the right
        padded[0, :, :, :wide] = (line / 127.5 - 1)[:, :, ::-1].transpose(2, 0, 1)  # the network reads BGR
        (scores,) = self._network.run(None, {self._network.get_inputs()[0].name: padded})
        classes = scores[0].argmax(axis=-1)
        changes = np.append(True, classes[1:] != classes[:-1])  # a letter that goes on is one letter
        return "".join(self._letters[one] for one in classes[changes])
