"""Images and codes of another shape, type or range are one sentence each."""

import pytest
import torch
from torch import Tensor

from polytoken.errors import UserError
from tests.support.tokenizers import tiny_folded, tiny_tokenizer

TOKENIZER = tiny_tokenizer().eval()
SPEC = TOKENIZER.require_codes()


def images(*shape: int) -> Tensor:
    return torch.zeros(*(shape or (1, 3, 16, 16)))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (images() + 200, r"images range from 200 to 200, and a tokenizer reads \[-1, 1\]"),
        (images() * torch.nan, "images range from nan to nan"),
        (images().to(torch.uint8), "images are torch.uint8: scale them to float32"),
        (images().double(), "images are torch.float64, and the tokenizer's weights torch.float32"),
        (images().bfloat16(), r"weights torch.float32: convert the images, images\.to\(torch\.float32\)$"),
        (images(3, 16, 16), r"images have shape 3 × 16 × 16, .*: add a batch dimension"),
        (images(2, 1, 16, 16), "images have shape 2 × 1 × 16 × 16, .*: repeat grey images"),
    ],
)
def test_images(given: Tensor, says: str) -> None:
    with pytest.raises(UserError, match=says):
        TOKENIZER.encode(given)


def test_noise_and_autocast_are_let_through() -> None:
    TOKENIZER.encode(torch.randn(1, 3, 16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        TOKENIZER.encode(images().bfloat16())
    twin = tiny_tokenizer().double().eval()
    assert twin.encode(images().double()).quantized.dtype in (torch.float64, torch.float32)


def codes(last: int = 0) -> Tensor:
    found = torch.zeros(2, SPEC.num_sub_codes, SPEC.num_positions, dtype=torch.int64)
    found[1, 0, -1] = last
    return found


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (codes(last=16), "sub-code 0 ranges from 0 to 16, and its codebook has the entries 0 to 15"),
        (codes(last=-1), "sub-code 0 ranges from -1 to 0"),
        (codes().float(), "codes are torch.float32: they must be int64"),
        (codes()[0], "codes have shape .*, and this tokenizer reads"),
        (codes()[:, :, 1:], "codes have shape .*, and this tokenizer reads"),
        (codes()[:, :0], "codes have shape .*, and this tokenizer reads"),
    ],
)
def test_codes(given: Tensor, says: str) -> None:
    for read in (TOKENIZER.embed_codes, TOKENIZER.decode_codes):
        with pytest.raises(UserError, match=says):
            read(given)


def test_a_grid_is_named_where_one_can_be_given() -> None:
    with pytest.raises(UserError, match="positions of an image; pass the grid of images of another size$"):
        TOKENIZER.decode_codes(codes()[:, :, 1:])
    with pytest.raises(UserError, match="positions of an image$"):
        tiny_folded().decode_codes(codes()[:, :, 1:])


def test_the_largest_codes_and_other_grids_are_decoded() -> None:
    assert TOKENIZER.decode_codes(codes(last=SPEC.codebook_sizes[0] - 1)).shape == (2, 3, 16, 16)
    encoding = TOKENIZER.encode(images(1, 3, 32, 16))
    assert encoding.codes is not None
    grid = (32 // TOKENIZER.downsampling, 16 // TOKENIZER.downsampling)
    assert TOKENIZER.decode_codes(encoding.codes, grid).shape == (1, 3, 32, 16)
