"""Sampling with forced sub-codes: they are written at every scale, and plain sampling is a special case."""

import pytest
import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.generators import AutoregressiveHead, Head, MaskedBitHead, MultiLinearHead, NextScaleGenerator
from polytoken.sampling import CategoricalSampler, ForcedCodes, RowNoise
from tests.polytoken.generators.test_next_scale import CPU, codes, generator

LABELS = torch.tensor([1, 5, 9])
HEADS = pytest.mark.parametrize(
    "head", [MultiLinearHead(), AutoregressiveHead(depth=1)], ids=["parallel", "autoregressive"]
)


def sample(
    made: NextScaleGenerator,
    reference: Tensor | None,
    guidance: float = 1.0,
    gamma_pix: float = 1.0,
    rows: slice = slice(3),
) -> Tensor:
    """Codes of the labels in ``rows``; sub-code 0 is forced if there is a reference."""
    forced = None if reference is None else ForcedCodes(reference[rows], (0,), gamma_pix)
    sampler = CategoricalSampler(guidance=guidance, guidance_schedule="constant", top_k=8)
    noise = RowNoise(7, rows.start or 0, len(LABELS[rows]), CPU)
    written = made.sample(LABELS[rows], sampler, noise, forced).codes
    assert written is not None and written.shape == (len(LABELS[rows]), 2, 30)
    return written


@HEADS
def test_forced_sub_codes_are_written_at_every_scale(head: Head) -> None:
    made, reference = generator(head), codes()
    written = sample(made, reference, 2.0, 3.0)
    assert torch.equal(written[:, 0], reference[:, 0])
    other = reference.clone()
    other[:, 0, 0] = (other[:, 0, 0] + 1) % 12
    assert not torch.equal(sample(made, other, 2.0, 3.0)[:, 1], written[:, 1]), "the others read them"
    other[:, 1] = 0
    other[:, 0] = reference[:, 0]
    assert torch.equal(sample(made, other, 2.0, 3.0), written), "no other sub-code of the reference is read"


@HEADS
def test_scales_of_one_continue_plain_sampling(head: Head) -> None:
    """A reference that plain sampling wrote gives the same codes again; with class guidance as well."""
    made = generator(head)
    for guidance in (1.0, 2.0):
        plain = sample(made, None, guidance)
        assert torch.equal(sample(made, plain, guidance, 1.0), plain)


@HEADS
def test_scales_of_zero_are_plain_sampling_without_class_and_reference(head: Head) -> None:
    """γ_cls = γ_pix = 0 leaves x(∅|∅), whose forced sub-codes are its own."""
    made = generator(head)
    assert torch.equal(sample(made, codes(), 0.0, 0.0)[:, 1], sample(made, None, 0.0)[:, 1])


@HEADS
def test_a_row_does_not_depend_on_its_batch(head: Head) -> None:
    made, reference = generator(head), codes()
    together = sample(made, reference, 2.0, 3.0)
    assert torch.equal(sample(made, reference, 2.0, 3.0, slice(1, 2)), together[1:2])


@pytest.mark.parametrize(
    ("head", "reference", "sentence"),
    [
        (
            MaskedBitHead(digits="codes", depth=1),
            codes(),
            "MaskedBitHead writes the sub-codes .* in an order of its own",
        ),
        (MultiLinearHead(), codes()[:, :, :16], "30 positions on a grid of 1 × 1"),
    ],
)
def test_bad_input_is_one_sentence(head: Head, reference: Tensor, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        sample(generator(head), reference)
