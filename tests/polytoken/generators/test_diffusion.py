"""The diffusion transformer as a generator: loss, sampling, handover, host synchronisation, bad input."""

import pytest
import torch
from torch import Tensor

from polytoken.errors import UserError
from polytoken.generators import AutoregressiveGenerator, DiffusionTransformer, FlowMatching, LinearHead
from polytoken.handover import carry_over
from polytoken.sampling import FlowSampler, RowNoise
from polytoken.specs import LatentSpec, Tokens, TokenSpec
from tests.support.diffusion import LATENTS, random_latents, small_diffusion, untrained_diffusion
from tests.support.generators import TRUNK, build_generator
from tests.support.host_sync import host_syncs

CPU = torch.device("cpu")
LABELS = torch.tensor([0, 3, 1])


def sample(generator: DiffusionTransformer, sampler: FlowSampler, labels: Tensor = LABELS, first: int = 0) -> Tensor:
    latents = generator.sample(labels, sampler, RowNoise(5, first, len(labels), labels.device)).latents
    assert latents is not None
    return latents


def test_an_untrained_network_outputs_zero() -> None:
    """Its loss is 1 + E x₁² for the squared error, and 1 for the cosine."""
    generator = untrained_diffusion()
    tokens, labels = random_latents(2000)
    velocity, _ = generator.velocity(torch.randn(4, 3, 4, 6), torch.rand(4), labels[:4])
    assert torch.equal(velocity, torch.zeros(4, 3, 4, 6))
    with torch.no_grad():
        loss = generator.loss(tokens, labels)
    assert loss.unit == "velocity" and loss.name == "loss" and not loss.statistics
    assert float(loss.parts["velocity"]) == pytest.approx(2, abs=0.02), "latents are normalised by the spec"
    assert float(loss.parts["cosine"]) == 1
    assert float(loss.total) == pytest.approx(float(loss.parts["velocity"]) + 1)


def test_loss_equals_a_reference() -> None:
    generator = small_diffusion(flow=FlowMatching("uniform", cosine_weight=0.0))
    tokens, labels = random_latents(4)
    loss = generator.loss(tokens, labels, taps=(2,))
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (LATENTS.mean, LATENTS.deviation))
    data = (tokens.latents - mean) / deviation
    noise = RowNoise(0, 0, 4, CPU).normal((0,), 3, 4, 6).float()
    times = torch.tensor([0.125, 0.375, 0.625, 0.875])
    states = torch.stack([t * x + (1 - t) * e for t, x, e in zip(times, data, noise, strict=True)])
    velocity, hidden = generator.velocity(states, times, labels, taps=(2,))
    assert float(loss.total) == pytest.approx(float((velocity - (data - noise)).square().mean()), rel=1e-5)
    torch.testing.assert_close(loss.hidden[2], hidden[2])
    assert loss.hidden[2].shape == (4, 24, 32) and (generator.depth, generator.width) == (2, 32)


def test_validation_does_not_depend_on_the_global_generator() -> None:
    generator = small_diffusion()
    tokens, labels = random_latents(4)
    losses = [float(generator.loss(tokens, labels).total)]
    torch.manual_seed(99)
    losses.append(float(generator.loss(tokens, labels).total))
    assert losses[0] == losses[1]
    generator.train()
    assert float(generator.loss(tokens, labels).total) != float(generator.loss(tokens, labels).total)


@pytest.mark.parametrize("side", [1, 2])
def test_patches_are_rows_of_the_grid(side: int) -> None:
    generator = untrained_diffusion(patch_size=side)
    states = torch.arange(3 * 24.0).view(1, 3, 4, 6)
    patches = generator._patches(states)
    assert generator.hidden_grid == (4 // side, 6 // side) and patches.shape == (1, 24 // side**2, 3 * side**2)
    corner = states[0, :, :side, side : 2 * side]  # the second patch of the first row, channels last
    assert torch.equal(patches[0, 1], corner.permute(1, 2, 0).flatten())
    assert torch.equal(generator._unpatched(patches), states)


def test_labels_are_dropped_in_training_alone() -> None:
    generator = small_diffusion(class_dropout=0.5)
    seen: list[Tensor] = []
    generator.class_embedding.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    tokens, labels = random_latents(400)
    generator.loss(tokens, labels)
    generator.train().loss(tokens, labels)
    assert torch.equal(seen[0], labels)
    dropped = seen[1] == 5
    assert torch.equal(seen[1][~dropped], labels[~dropped])
    assert float(dropped.float().mean()) == pytest.approx(0.5, abs=0.1)


def test_samples_are_latents_of_the_decoder() -> None:
    """A velocity of zero leaves the noise, which the spec's mean and deviation map to latents."""
    latents = sample(untrained_diffusion(), FlowSampler(steps=3))
    noise = RowNoise(5, 0, 3, CPU).normal((0,), 3, 4, 6).float()
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (LATENTS.mean, LATENTS.deviation))
    assert latents.dtype == torch.float32 and torch.allclose(latents, noise * deviation + mean)


@pytest.mark.parametrize("sampler", [FlowSampler(steps=4), FlowSampler(method="heun", steps=3, guidance=3.0)])
def test_a_row_does_not_depend_on_its_batch(sampler: FlowSampler) -> None:
    generator = small_diffusion()
    whole = sample(generator, sampler)
    for row in range(3):
        torch.testing.assert_close(sample(generator, sampler, LABELS[row : row + 1], row), whole[row : row + 1])
    assert not torch.allclose(sample(generator, sampler, LABELS, 1), whole)
    assert torch.equal(sample(generator.train(), sampler), whole) and generator.training


def test_a_learned_class_is_sampled() -> None:
    """Latents are close to one number a class; after a few hundred steps so are the samples."""
    torch.manual_seed(0)
    spec = LatentSpec(1, (2, 2), (0.0,), (1.0,))
    generator = untrained_diffusion(spec, FlowMatching("uniform"), class_dropout=0.2)
    optimizer = torch.optim.Adam(generator.parameters(), 2e-3)
    centres = torch.tensor([-1.5, 1.5, 0.0, 0.0, 0.0])
    for _ in range(400):
        labels = torch.randint(2, (64,))
        latents = centres[labels].view(-1, 1, 1, 1) + 0.1 * torch.randn(64, 1, 2, 2)
        optimizer.zero_grad()
        generator.loss(Tokens(latents=latents), labels).total.backward()
        optimizer.step()
    labels = torch.tensor([0, 1] * 16)
    drawn = sample(generator, FlowSampler(steps=20), labels).mean((1, 2, 3))
    assert float(drawn[labels == 0].mean()) == pytest.approx(-1.5, abs=0.3)
    assert float(drawn[labels == 1].mean()) == pytest.approx(1.5, abs=0.3)
    assert float((drawn - centres[labels]).std()) < 0.5


def test_a_training_step_does_not_synchronise_with_the_host() -> None:
    generator = small_diffusion(class_dropout=0.1).train()
    tokens, labels = random_latents(3)
    generator.loss(tokens, labels, taps=(1,))  # the first step uploads constants
    with host_syncs() as counts:
        generator.loss(tokens, labels, taps=(1,)).total.backward()
    assert not counts


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_a_sampling_step_does_not_synchronise_with_the_host(method: str) -> None:
    generator = small_diffusion()
    sampler = FlowSampler(method=method, steps=2, guidance=2.0, guided_channels=2)
    noise = torch.randn(3, 3, 4, 6)
    velocity = lambda *states: generator.velocity(*states)[0]  # noqa: E731
    sampler.integrate(velocity, noise, LABELS, 5)
    with torch.no_grad(), host_syncs() as counts:
        sampler.integrate(velocity, noise, LABELS, 5)
    assert not counts


def test_every_weight_learns() -> None:
    generator = small_diffusion().train()
    tokens, labels = random_latents(3)
    generator.loss(tokens, labels).total.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in generator.parameters())


def test_handover_of_equal_weights() -> None:
    source = small_diffusion()
    target = untrained_diffusion(LatentSpec(2, (4, 6), (0.0,) * 2, (1.0,) * 2))
    handover = carry_over(source.state_dict(), target)
    of_latents = {f"{layer}.{part}" for layer in ("patch_embedding", "output.output") for part in ("weight", "bias")}
    assert set(handover.fresh) == of_latents
    same = untrained_diffusion()
    assert set(carry_over(source.state_dict(), same).fresh) == of_latents, "latents of another tokenizer"
    assert carry_over(source.state_dict(), same, "all").fresh == ()
    for name in handover.carried:
        assert torch.equal(target.state_dict()[name], source.state_dict()[name]), name
    with pytest.raises(UserError, match="the trunks differ"):
        carry_over(small_diffusion(dim=16).state_dict(), target)
    with pytest.raises(UserError, match="the trunks differ"):
        carry_over(build_generator(TokenSpec((8,), ((4, 6),)), 5, TRUNK, LinearHead()).state_dict(), target)
    with pytest.raises(UserError, match="sub_code is 0, and latents have no sub-codes"):
        carry_over(source.state_dict(), target, 0)


def test_weights_load_for_another_grid() -> None:
    state = small_diffusion().state_dict()
    untrained_diffusion(LatentSpec(3, (2, 2), (0.0,) * 3, (1.0,) * 3)).load_state_dict(state)


def test_moments_are_no_weights() -> None:
    assert not [*small_diffusion().buffers()], "a buffer would be cast with the weights, and saved"


def test_latents_that_are_not_finite_are_refused() -> None:
    generator = small_diffusion()
    next(generator.parameters()).data.fill_(float("nan"))
    with pytest.raises(UserError, match="sampled latents are not finite: lower sampler.guidance, or train"):
        sample(generator, FlowSampler(steps=2))


def test_invalid_input() -> None:
    generator = small_diffusion()
    tokens, labels = random_latents(2)
    with pytest.raises(UserError, match="models latents, and this spec is of codes"):
        untrained_diffusion().connect(TokenSpec((8,), ((4, 6),)), 5)
    with pytest.raises(UserError, match=r"patch_size is 4, and the latents' grid of 4 × 6 does not divide"):
        untrained_diffusion(patch_size=4)
    with pytest.raises(UserError, match="num_classes is 0"):
        DiffusionTransformer(generator.config).connect(LATENTS, 0)
    with pytest.raises(UserError, match="these tokens are codes: embed them"):
        generator.loss(Tokens(codes=torch.zeros(2, 1, 24, dtype=torch.int64)), labels)
    with pytest.raises(UserError, match=r"latents have shape \(2, 3, 4, 4\) and .* reads \(batch, 3, 4, 6\)"):
        generator.loss(Tokens(latents=torch.zeros(2, 3, 4, 4)), labels)
    with pytest.raises(UserError, match="block 3 is tapped and DiffusionTransformer has blocks 1 to 2"):
        generator.loss(tokens, labels, taps=[3])
    for bad in (5, -1):
        with pytest.raises(UserError, match=f"labels range from {min(0, bad)} to {max(0, bad)}"):
            sample(generator, FlowSampler(), torch.tensor([0, bad]))
    with pytest.raises(UserError, match="labels are torch.float32"):
        sample(generator, FlowSampler(), torch.tensor([0.0]))
    with pytest.raises(UserError, match="guided_channels is 4, and the generator's latents have 3 channels"):
        sample(generator, FlowSampler(guided_channels=4))


def test_families_say_what_they_model() -> None:
    assert (DiffusionTransformer.models, DiffusionTransformer.sampler_type) == ("latents", FlowSampler)
    assert AutoregressiveGenerator.models == "codes"
    assert AutoregressiveGenerator.is_causal and not DiffusionTransformer.is_causal
