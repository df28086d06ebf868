"""Consistency term against a float64 reference, and its place in the adversarial block."""

import pytest
import torch

from polytoken.discriminators import DiffAugment
from polytoken.losses import Adversarial, Consistency
from tests.polytoken.losses.test_lecam import Pixels
from tests.polytoken.losses.test_losses import make_step


def block(augmentation: DiffAugment | None, consistency: Consistency | None) -> Adversarial:
    return Adversarial(Pixels(), start_step=0, weight=0.5, augmentation=augmentation, consistency=consistency)


@pytest.mark.parametrize("weak", [None, DiffAugment(probability=0.5, cutout=0.2)])
def test_the_block_adds_the_mean_squared_difference_of_two_views(weak: DiffAugment | None) -> None:
    step, term = make_step(), Consistency(weight=4.0)
    views: list[tuple[torch.Tensor, torch.Tensor]] = []
    term.strong.register_forward_hook(lambda _, inputs, output: views.append((inputs[0], output)))
    seen: list[torch.Tensor] = []
    made = block(weak, term)
    made.discriminator.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    torch.manual_seed(1)
    loss, logged = made.discriminator_loss(step)
    torch.manual_seed(1)
    plain, _ = block(weak, None).discriminator_loss(step)

    assert [given.data_ptr() for given, _ in views] == [step.images.data_ptr(), step.decoded.image.data_ptr()]
    assert len(seen) == 4 and all(
        torch.equal(image, strong) for image, (_, strong) in zip(seen[2:], views, strict=True)
    )
    total, count = 0.0, 0
    for one, other in zip(seen[:2], seen[2:], strict=True):
        for first, second in zip(one.double().mean(1).flatten(), other.double().mean(1).flatten(), strict=True):
            total, count = total + (1.5 * float(first.detach()) - 1.5 * float(second.detach())) ** 2, count + 1
    assert logged["consistency"].item() == pytest.approx(total / count, rel=1e-5)
    assert loss.item() == pytest.approx(plain.item() + 4.0 * total / count, rel=1e-5), (
        "the block's weight is not a factor"
    )


def test_the_strong_view_uses_every_operation_and_half_the_side() -> None:
    strong = Consistency().strong
    assert (strong.policy, strong.probability, strong.cutout) == (("color", "translation", "cutout"), 1.0, 0.5)


def test_gradient_of_both_views_reaches_the_discriminator_only() -> None:
    step, made = make_step(), block(None, Consistency())
    _, logged = made.discriminator_loss(step)
    logged["consistency"].backward()
    assert made.discriminator.scale.grad.abs() > 0 and step.last_layer.grad is None
    images = torch.rand(2, 3, 8, 8)
    weak = made.discriminator(images).detach().requires_grad_()
    Consistency()(made.discriminator, (images, images), (weak, weak)).backward()
    assert weak.grad.abs().sum() > 0
