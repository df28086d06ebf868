"""LeCam against a loop; its averages on several ranks and after resuming."""

from pathlib import Path

import pytest
import torch

from polytoken.discriminators import DiffAugment, Discriminator
from polytoken.losses import Adversarial, LeCam
from tests.polytoken.losses.test_losses import make_step
from tests.support.ranks import run_on_ranks


class Pixels(Discriminator):
    """Logits of any shape from a frozen part (the images) and one trained weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.scale * images.mean(1).flatten(1)


def slow_lecam(pairs: list[tuple[torch.Tensor, torch.Tensor]], decay: float) -> list[float]:
    average_real = average_fake = 0.0
    values = []
    for real, fake in pairs:
        average_real = decay * average_real + (1 - decay) * float(real.mean())
        average_fake = decay * average_fake + (1 - decay) * float(fake.mean())
        above = [max(0.0, value - average_fake) ** 2 for value in real.flatten().tolist()]
        below = [max(0.0, average_real - value) ** 2 for value in fake.flatten().tolist()]
        values.append(sum(above) / len(above) + sum(below) / len(below))
    return values


def logits(seed: int, count: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(seed)
    return [(torch.randn(4, 1, 3, 3) + 1, torch.randn(4, 1, 3, 3) - 1) for _ in range(count)]


def test_against_a_loop_and_resumed() -> None:
    pairs = logits(0)
    expected = slow_lecam(pairs, 0.9)
    term = LeCam(decay=0.9)
    assert [term(*pair).item() for pair in pairs[:3]] == pytest.approx(expected[:3], rel=1e-5)
    resumed = LeCam(decay=0.9)
    resumed.load_state_dict(term.state_dict())
    for pair in pairs[3:]:
        assert torch.equal(resumed(*pair), term(*pair)), "bit for bit"
    assert term(*pairs[-1]).item() > 0


def test_gradients_of_several_steps() -> None:
    term = LeCam(decay=0.5)
    real, fake = (value.requires_grad_() for value in logits(1, 1)[0])
    (term(real, fake) + term(real, fake)).backward()
    assert real.grad.abs().sum() > 0 and fake.grad.abs().sum() > 0
    assert not term.averages.requires_grad


def averages_on_rank(rank: int) -> list[float]:
    term = LeCam(decay=0.9)
    for pair in logits(rank):
        term(*pair)
    return term.averages.tolist()


@pytest.mark.cluster
def test_averages_cover_all_ranks(tmp_path: Path) -> None:
    first, second = run_on_ranks(averages_on_rank, tmp_path)
    assert first == second
    together = LeCam(decay=0.9)
    for one, other in zip(logits(0), logits(1), strict=True):
        together(torch.cat([one[0], other[0]]), torch.cat([one[1], other[1]]))
    assert first == pytest.approx(together.averages.tolist(), rel=1e-5)


def test_the_block_adds_it_and_augments_both_kinds_of_images() -> None:
    step = make_step()
    plain = Adversarial(Pixels(), start_step=0, weight=0.5)
    regular = Adversarial(Pixels(), start_step=0, weight=0.5, lecam=LeCam(weight=0.1))
    (loss, _), (with_lecam, logged) = plain.discriminator_loss(step), regular.discriminator_loss(step)
    assert with_lecam.item() == pytest.approx(loss.item() + 0.5 * 0.1 * logged["lecam"].item())
    with_lecam.backward()
    assert regular.discriminator.scale.grad is not None

    seen = []
    augmentation = DiffAugment(("color",))
    augmentation.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    block = Adversarial(Pixels(), start_step=0, augmentation=augmentation)
    loss, _ = block.discriminator_loss(step)
    assert [
        torch.equal(given, known) for (given, _), known in zip(seen, (step.images, step.decoded.image), strict=True)
    ]
    assert all(not torch.equal(*pair) for pair in seen)
    block.generator_loss(step, loss).backward()
    assert len(seen) == 3 and step.last_layer.grad is not None, "gradients pass through the augmentation"
