"""Overlays of iFSQ Table 1: levels, and sub-codes that one softmax can hold."""

from math import prod
from pathlib import Path

import pytest
import yaml

from polytoken.quantizers import FiniteScalarQuantizer
from tests.support.recipes import CONFIGS


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("bits/*.yaml")), ids=lambda file: file.stem)
def test_levels_and_codes(file: Path) -> None:
    arguments = yaml.safe_load(file.read_text())
    for key in ("model", "init_args", "tokenizer", "init_args", "quantizer", "init_args"):
        arguments = arguments[key]
    quantizer = FiniteScalarQuantizer(**arguments)
    level = 2 ** int(file.stem) + 1
    assert arguments["levels"] == [level] * 4
    assert max(quantizer.codebook_sizes) <= 1e5 and prod(quantizer.codebook_sizes) == level**4
