"""Checks that all families of generators share."""

from dataclasses import replace

import pytest
import torch

from polytoken.errors import UserError
from polytoken.generators import Generator
from polytoken.sampling import CategoricalSampler, FlowSampler, ForcedCodes, RowNoise
from tests.polytoken.generators import test_next_scale as next_scale
from tests.support.diffusion import small_diffusion
from tests.support.generators import TRUNK, small_generator

LABELS = torch.tensor([0, 1, 2])
NOISE = RowNoise(0, 0, 3, LABELS.device)
UNTRAINED = r"never trained the null class .* \(trunk.class_dropout is 0\): sample with guidance 1, or train"


@pytest.mark.parametrize(
    ("build", "rules"),
    [
        (lambda share: small_generator(trunk=replace(TRUNK, class_dropout=share)), CategoricalSampler(guidance=[1, 2])),
        (lambda share: next_scale.generator(class_dropout=share), CategoricalSampler(guidance=0.0)),
        (lambda share: small_diffusion(class_dropout=share), FlowSampler(guidance=2.0, steps=1)),
    ],
    ids=["autoregressive", "next_scale", "diffusion"],
)
def test_guidance_needs_a_trained_null_class(build, rules) -> None:
    generator: Generator = build(0.0)
    with pytest.raises(UserError, match=UNTRAINED):
        generator.sample(LABELS, rules, NOISE)
    generator.sample(LABELS, replace(rules, guidance=1.0), NOISE)
    build(0.1).sample(LABELS, rules, NOISE)


def test_guidance_by_forced_sub_codes_needs_a_trained_null_class() -> None:
    generator, codes = next_scale.generator(class_dropout=0.0), next_scale.codes()
    with pytest.raises(UserError, match=UNTRAINED):
        generator.sample(LABELS, CategoricalSampler(), NOISE, ForcedCodes(codes, (0,), 2.0))
    generator.sample(LABELS, CategoricalSampler(), NOISE, ForcedCodes(codes, (0,), 1.0))
