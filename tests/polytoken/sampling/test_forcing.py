"""Teacher-forcing guidance: the coefficients of the three passes, and which codes each of them holds."""

import pytest
import torch

from polytoken.errors import UserError
from polytoken.sampling import CategoricalSampler, Draw, ForcedCodes, ForcedDraw, Forcing, RowNoise

CPU = torch.device("cpu")


def forced_draw(guidance: float, gamma_pix: float, schedule: str = "constant", scale: int = 1) -> ForcedDraw:
    """Draws of two images at the second of three scales, which has four positions; sub-code 0 is forced."""
    sampler = CategoricalSampler(guidance=guidance, guidance_schedule=schedule)  # type: ignore[arg-type]
    draw = Draw(sampler, RowNoise(0, 0, 2, CPU).spread(4), torch.tensor(sampler.scales(3, 2)), scale)
    codes = torch.arange(2 * 2 * 14).view(2, 2, 14)
    return ForcedDraw(draw, ForcedCodes(codes, (0,), gamma_pix), first=1)


@pytest.mark.parametrize(("gamma_cls", "gamma_pix"), [(1.5, 3.0), (0.0, 2.0), (2.5, 1.0), (1.0, 1.0), (0.0, 0.0)])
@pytest.mark.parametrize(("schedule", "progress"), [("constant", 1.0), ("linear", 0.5)])
def test_the_coefficients_are_those_of_the_paper(
    gamma_cls: float, gamma_pix: float, schedule: str, progress: float
) -> None:
    """ImageFolder eq. 6 with all four terms in float64, without a type of condition; scales ramp from 1."""
    logits = torch.randn(3 * 8, 7)
    found = forced_draw(gamma_cls, gamma_pix, schedule).guided(logits, 1)
    a, b, d = logits.double().chunk(3)
    cls, pix = (1 + (gamma - 1) * progress for gamma in (gamma_cls, gamma_pix))
    typ = 7.0  # any: its bracket is b − b
    expected = d + cls * (a - b) + typ * (b - b) + pix * (b - d)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    if (gamma_cls, gamma_pix) == (1.0, 1.0):
        assert torch.equal(found, logits[:8])


def test_forced_codes_are_written_by_two_passes_and_drawn_by_the_third() -> None:
    draw = forced_draw(2.0, 2.0)
    logits = torch.randn(3 * 8, 7)
    codes = draw.categorical(logits, 0)
    reference = torch.cat([torch.arange(1, 5), torch.arange(29, 33)])
    assert torch.equal(codes[:8], reference) and torch.equal(codes[8:16], reference)
    assert torch.equal(codes[16:], Draw(draw.sampler, draw.noise, draw.scales, 1).categorical(logits[16:], 0))
    free = draw.categorical(logits, 1)
    assert torch.equal(free[:8], free[8:16]) and torch.equal(free[:8], free[16:])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Forcing(()), "name at least one sub-code"),
        (lambda: Forcing((1, 1)), "and each once"),
        (lambda: Forcing(guidance=-1.0), "forcing: guidance is -1.0; it must be from 0 to 1,000"),
        (lambda: Forcing((2,)).within([0, 1]), r"names 2, and the generator writes the sub-codes \[0, 1\]"),
        (lambda: Forcing((1, 0)).within([0, 1]), "nothing would be left to sample: leave one out"),
        (lambda: Forcing((0,)).within([0]), "the generator writes one a position: take a run on the tokens of several"),
    ],
)
def test_bad_settings_are_one_sentence(make, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()


def test_sub_codes_are_counted_as_the_generator_writes_them() -> None:
    assert Forcing((2,)).within([0, 2, 1]) == (1,)
