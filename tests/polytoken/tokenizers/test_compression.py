import pytest

from polytoken.building import build
from polytoken.tokenizers import Tokenizer
from tests.support.generated import CONTINUOUS, SCALAR, TOKENIZER


@pytest.mark.parametrize(("quantizer", "bits"), [(SCALAR, 6.2288), (CONTINUOUS, 48)])
def test_compression_ratio_counts_codes_or_latents_of_16_bits(quantizer: dict, bits: float) -> None:
    """SCALAR has 5 · 5 · 3 = 75 codes, CONTINUOUS 3 channels (iFSQ eqs. 13 and 11)."""
    section = {"class_path": "polytoken.tokenizers.ConvolutionalTokenizer"}
    section["init_args"] = {**TOKENIZER, "image_size": 16, "quantizer": quantizer}
    tokenizer = build(section, Tokenizer, "the test", ())
    assert tokenizer.compression_ratio == pytest.approx(24 * 8**2 / bits, rel=1e-4)
