import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from polytoken.errors import UserError
from polytoken.losses import (
    Adversarial,
    Disentanglement,
    LossTerm,
    Reconstruction,
    TokenizerObjective,
    TokenizerStep,
)
from polytoken.losses.adversarial import adaptive_weight, discriminator_loss, generator_loss
from polytoken.specs import Decoded, Encoding
from tests.support.tokenizers import tiny_tokenizer


def make_step(parts: tuple[torch.Tensor, ...] = (), step: int = 0, **options) -> TokenizerStep:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    last_layer = nn.Parameter(torch.ones(1))
    reconstruction = (images + 0.1 * torch.randn_like(images)) * last_layer
    encoding = Encoding(None, images, subspaces=parts, **options)
    return TokenizerStep(images, Decoded(reconstruction), encoding, last_layer, step)


def test_reconstruction() -> None:
    step = make_step()
    difference = step.decoded.image - step.images
    assert Reconstruction("l1")(step).item() == pytest.approx(difference.abs().mean().item())
    assert Reconstruction("l2")(step).item() == pytest.approx(difference.square().mean().item())


def test_disentanglement_is_the_mean_squared_cosine_over_pairs() -> None:
    torch.manual_seed(0)
    parts = tuple(torch.randn(2, 8, 4, 4) for _ in range(3))
    value = Disentanglement()(make_step(parts)).item()
    total = 0.0
    for first, second in ((0, 1), (0, 2), (1, 2)):
        for b in range(2):
            for y in range(4):
                for x in range(4):
                    u, v = parts[first][b, :, y, x].double(), parts[second][b, :, y, x].double()
                    total += float((u @ v) ** 2 / (u @ u) / (v @ v))
    assert value == pytest.approx(total / (3 * 2 * 16), rel=1e-5)


def test_disentanglement_bounds() -> None:
    part = torch.randn(1, 8, 2, 2)
    assert Disentanglement()(make_step((part, 3 * part))).item() == pytest.approx(1.0)
    orthogonal = torch.zeros(1, 8, 2, 2), torch.zeros(1, 8, 2, 2)
    orthogonal[0][:, 0], orthogonal[1][:, 1] = 1, 1
    assert Disentanglement()(make_step(orthogonal)).item() == 0
    with pytest.raises(ValueError, match="at least two subspaces"):
        Disentanglement().connect(tiny_tokenizer(num_subspaces=1), {})


@pytest.mark.parametrize("through_codebooks", [False, True])
def test_disentanglement_gradient_path(through_codebooks: bool) -> None:
    torch.manual_seed(0)
    latents = [torch.randn(1, 4, 2, 2, requires_grad=True) for _ in range(2)]
    codes = [torch.randn(1, 4, 2, 2, requires_grad=True) for _ in range(2)]
    parts = tuple(z + (q - z).detach() for z, q in zip(latents, codes, strict=True))
    loss = Disentanglement(through_codebooks=through_codebooks)(make_step(parts, code_vectors=tuple(codes)))
    gradients = torch.autograd.grad(loss, [*latents, *codes], allow_unused=True)
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients[:2])
    assert all((gradient is not None) == through_codebooks for gradient in gradients[2:])


def test_adversarial_forms() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert discriminator_loss(real, fake, "hinge").item() == pytest.approx(0.5 * (0.25 + 0.75))
    cross_entropy = 0.5 * (
        functional.binary_cross_entropy_with_logits(real, torch.ones(2))
        + functional.binary_cross_entropy_with_logits(fake, torch.zeros(2))
    )
    assert discriminator_loss(real, fake, "vanilla").item() == pytest.approx(cross_entropy.item())
    assert discriminator_loss(real, fake, "non_saturating").item() == pytest.approx(cross_entropy.item())
    assert generator_loss(fake, "hinge").item() == pytest.approx(0.75)
    assert generator_loss(fake, "vanilla").item() == pytest.approx(0.75)
    expected = functional.binary_cross_entropy_with_logits(fake, torch.ones(2))
    assert generator_loss(fake, "non_saturating").item() == pytest.approx(expected.item())


def test_the_autoencoder_may_have_a_form_of_its_own() -> None:
    step = make_step((torch.randn(2, 4, 2, 2),), 0)
    discriminator = nn.Conv2d(3, 1, 3)
    fake = discriminator(step.decoded.image)
    given = {"discriminator": discriminator, "weight": 1.0, "start_step": 0}
    both = Adversarial(**given, form="hinge", autoencoder_form="non_saturating")
    expected = functional.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))
    assert both.generator_loss(step, torch.zeros(())).item() == pytest.approx(expected.item(), rel=1e-6)
    alone = Adversarial(**given, form="hinge")
    assert alone.generator_loss(step, torch.zeros(())).item() == pytest.approx(-fake.mean().item(), rel=1e-6)
    assert both.discriminator_loss(step)[0].item() == alone.discriminator_loss(step)[0].item()


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    layer = nn.Parameter(torch.tensor([1.0, 2.0]))
    weight = adaptive_weight((layer * torch.tensor([3.0, 4.0])).sum(), (layer * 2).sum(), layer)
    assert weight.item() == pytest.approx(5.0 / (math.sqrt(8) + 1e-4))
    assert not weight.requires_grad
    assert adaptive_weight((layer * 1e9).sum(), layer.sum(), layer).item() == 1e4


def test_objective_sums_weighted_terms_and_respects_starts() -> None:
    objective = TokenizerObjective(
        reconstruction=Reconstruction("l2", weight=2.0),
        disentanglement=Disentanglement(weight=0.1, start_step=5),
        adversarial=Adversarial(nn.Conv2d(3, 1, 3), start_step=10, weight=0.5),
    )
    parts = (torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2))
    owed = {"commitment": torch.tensor(0.25)}
    early, early_parts = objective(make_step(parts, 0, losses=owed))
    assert set(early_parts) == {"reconstruction", "commitment"}
    assert early.item() == pytest.approx(2 * early_parts["reconstruction"].item() + 0.25)
    middle, middle_parts = objective(make_step(parts, 5, losses=owed))
    assert middle.item() == pytest.approx(early.item() + 0.1 * middle_parts["disentanglement"].item())
    late, late_parts = objective(make_step(parts, 10, losses=owed))
    assert late.item() == pytest.approx(middle.item() + late_parts["adversarial"].item(), rel=1e-5)


class FeatureError(LossTerm):
    """Example of a term in a user's own file."""

    reads = frozenset({"features:deep"})

    def forward(self, step: TokenizerStep) -> torch.Tensor:
        return step.decoded.features["deep"].square().mean()


def test_a_further_term_reads_decoded_features() -> None:
    objective = TokenizerObjective(reconstruction=Reconstruction(), terms={"deep": FeatureError(weight=3.0)})
    step = make_step()
    with pytest.raises(ValueError, match="deep reads features 'deep', and the tokenizer decodes none"):
        objective.connect(tiny_tokenizer())
    step.decoded.features["deep"] = torch.full((2, 4, 8), 2.0)
    total, parts = objective(step)
    assert parts["deep"].item() == 4
    assert total.item() == pytest.approx(parts["reconstruction"].item() + 12)


def test_weight_0_switches_a_term_off() -> None:
    objective = TokenizerObjective(
        reconstruction=Reconstruction(),
        disentanglement=Disentanglement(weight=0.0),
        adversarial=Adversarial(nn.Conv2d(3, 1, 3), weight=0.0),
    )
    assert list(objective.terms) == ["reconstruction"]
    assert objective.adversarial is None
    assert not list(objective.parameters())


@pytest.mark.parametrize("name", ["perceptual", "adversarial", "commitment", "codebook", "entropy", "kl", "lecam"])
def test_a_further_term_has_a_name_of_its_own(name: str) -> None:
    with pytest.raises(UserError, match=f"objective.terms has a term named '{name}', the name of another part: rename"):
        TokenizerObjective(terms={name: Reconstruction()})


def test_a_term_never_replaces_a_loss_of_the_quantizer() -> None:
    """A quantizer of a user's own may have any losses."""
    objective = TokenizerObjective(reconstruction=Reconstruction(), terms={"rank": Reconstruction(start_step=9)})
    with pytest.raises(UserError, match="a term named 'rank', the name of a quantizer's loss: rename one"):
        objective(make_step(losses={"rank": torch.tensor(0.25)}))


def test_the_adaptive_weight_needs_a_reconstruction_term_from_its_start() -> None:
    block = Adversarial(nn.Conv2d(3, 1, 3), start_step=5, adaptive=True)
    for terms in (
        {"disentanglement": Disentanglement()},
        {"reconstruction": Reconstruction(weight=0.0)},
        {"reconstruction": Reconstruction(start_step=6)},
    ):
        with pytest.raises(UserError, match=r"neither is on at adversarial.start_step \(5\).*or set adaptive to false"):
            TokenizerObjective(**terms, adversarial=block)
    late = TokenizerObjective(reconstruction=Reconstruction(start_step=5), adversarial=block)
    assert "adversarial" in late(make_step(step=5))[1]
    TokenizerObjective(disentanglement=Disentanglement(), adversarial=Adversarial(nn.Conv2d(3, 1, 3)))


@pytest.mark.parametrize("adaptive", [False, True])
def test_adversarial_weight_multiplies_both_losses(adaptive: bool) -> None:
    discriminator = nn.Conv2d(3, 1, 3)
    losses = []
    for weight in (1.0, 0.5):
        block = Adversarial(discriminator, start_step=0, weight=weight, adaptive=adaptive)
        step = make_step()
        reconstruction = Reconstruction()(step)
        losses.append((block.generator_loss(step, reconstruction), block.discriminator_loss(step)[0]))
    for whole, half in zip(*losses, strict=True):
        assert half.item() == pytest.approx(whole.item() / 2)
