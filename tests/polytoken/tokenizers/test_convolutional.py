import pytest
import torch

from polytoken.quantizers import MultiScaleQuantizer
from polytoken.specs import TokenSpec
from polytoken.tokenizers import ConvolutionalTokenizer
from tests.support.tokenizers import tiny_tokenizer


def test_reconstruction_has_the_images_shape_at_any_multiple_of_f() -> None:
    tokenizer = tiny_tokenizer().eval()
    for height, width in ((16, 16), (32, 16), (24, 40)):
        decoded, encoding = tokenizer(torch.randn(2, 3, height, width))
        assert decoded.image.shape == (2, 3, height, width)
        assert encoding.codes.shape == (2, 2, height * width // 64)


def test_codes_decode_to_the_reconstruction() -> None:
    tokenizer = tiny_tokenizer().eval()
    decoded, encoding = tokenizer(torch.randn(2, 3, 16, 16))
    assert torch.allclose(tokenizer.decode_codes(encoding.codes), decoded.image, atol=1e-5)


def test_codes_of_other_sizes_need_their_grid() -> None:
    tokenizer = tiny_tokenizer().eval()
    decoded, encoding = tokenizer(torch.randn(1, 3, 8, 32))  # 1 × 4 codes, as many as 2 × 2
    assert torch.allclose(tokenizer.decode_codes(encoding.codes, (1, 4)), decoded.image, atol=1e-5)
    with pytest.raises(ValueError, match="codes have shape 1 × 2 × 6, .*: .* pass the grid"):
        tokenizer.decode_codes(torch.zeros(1, 2, 6, dtype=torch.int64))


def test_the_spec_states_codebooks_and_grid() -> None:
    spec = tiny_tokenizer().spec
    assert spec == TokenSpec((16, 16), ((2, 2),))
    assert (spec.num_sub_codes, spec.num_positions) == (2, 4)


def test_training_and_inference_agree() -> None:
    """The in-place and recomputing paths of the blocks compute the same."""
    tokenizer = tiny_tokenizer().eval()
    images = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        fast = tokenizer(images)[0].image
    slow = tokenizer(images)[0].image
    assert torch.allclose(fast, slow, atol=1e-5)


def test_invalid_sizes_are_rejected() -> None:
    with pytest.raises(ValueError, match="scales end at 3 × 3 and the features have a grid of 2 × 2"):
        ConvolutionalTokenizer(MultiScaleQuantizer((1, 3)), image_size=16, channel_multipliers=(1, 1, 1, 1))
    with pytest.raises(ValueError, match="image_size 20 is not a multiple"):
        tiny_tokenizer(image_size=20)
    with pytest.raises(ValueError, match="quant_conv_size is 2: a kernel has a centre"):
        ConvolutionalTokenizer(MultiScaleQuantizer((1, 2)), image_size=16, quant_conv_size=2)
    with pytest.raises(ValueError, match="20 × 16 pixels do not divide"):
        tiny_tokenizer()(torch.zeros(1, 3, 20, 16))


def test_other_subspaces_are_set_to_zero() -> None:
    tokenizer = tiny_tokenizer()
    width = tokenizer.subspace_channels[0]
    quantized = torch.randn(2, sum(tokenizer.subspace_channels), 2, 2)
    kept = tokenizer.keep_subspaces(quantized, [1])
    assert not kept[:, :width].any() and torch.equal(kept[:, width:], quantized[:, width:])
