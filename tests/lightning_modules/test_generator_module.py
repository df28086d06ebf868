"""The module of a generator without a run: its settings, and means over images."""

from collections.abc import Collection
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lightning_modules import GeneratorModule
from polytoken.generators import AutoregressiveGenerator, GeneratorLoss, LinearHead
from polytoken.optimization import gradient_norm
from polytoken.specs import LatentSpec, Tokens
from tests.support.generators import TRUNK, random_codes, small_generator
from tests.support.toy_generator import ToyGenerator


def test_the_norm_of_no_gradients_is_on_the_device_of_the_weights() -> None:
    """The guard reads it together with losses on a GPU."""
    weight = torch.nn.Parameter(torch.ones(2, device="meta"))
    assert gradient_norm(iter([weight])).device == weight.device
    weight = torch.nn.Parameter(torch.ones(2))
    assert gradient_norm([weight]) == 0


def test_unsupported_settings_are_rejected() -> None:
    for options in ({"carried_learning_rate": 1e-4}, {"freeze_carried_steps": 5}):
        with pytest.raises(ValueError, match="set init_from"):
            GeneratorModule(AutoregressiveGenerator(TRUNK, LinearHead()), **options)
    module = GeneratorModule(AutoregressiveGenerator(TRUNK, LinearHead()))
    module._trainer = SimpleNamespace(precision="bf16-mixed")
    module.check_precision()
    module._trainer = SimpleNamespace(precision="16-mixed")
    with pytest.raises(ValueError, match="fp16.*use bf16-mixed"):  # a trainer without a GPU would choose bf16
        module.check_precision()


def test_a_batch_of_padding_is_computed_but_not_counted() -> None:
    """Ranks with sharded weights wait for each other in every forward pass."""
    module = GeneratorModule(small_generator(1, LinearHead()))
    forwards: list[int] = []
    module.generator.trunk.register_forward_hook(lambda *_: forwards.append(1))
    codes, labels = random_codes(module.generator, 3)
    module.on_validation_epoch_start()
    module.validation_step({"codes": codes, "label": labels, "index": torch.tensor([-1, -1, -1])}, 0)
    assert forwards == [1] and module._images == 0 and all(value == 0 for value in module._sums.values())
    module.validation_step({"codes": codes, "label": labels, "index": torch.tensor([4, 5, -1])}, 1)
    expected = float(module.generator.loss(Tokens(codes=codes[:2]), labels[:2]).total.detach())
    assert module._images == 2 and float(module._sums["0"]) == pytest.approx(2 * expected)


def test_latents_are_trained_on_and_have_no_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Latents(ToyGenerator):
        def loss(self, tokens: Tokens, labels: Tensor, step: int = 0, taps: Collection[int] = ()) -> GeneratorLoss:
            assert tokens.codes is None and tokens.latents is not None
            return GeneratorLoss(tokens.latents.mean(), {"first": tokens.latents[:, 0].mean()}, "nats")

    module = GeneratorModule(Latents())
    module.generator.spec = LatentSpec(2, (1, 1), (0.0, 0.0), (1.0, 1.0))
    logged: dict[str, float] = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: float(value)}))
    module._trainer = SimpleNamespace(strategy=SimpleNamespace(reduce=lambda sums, reduce_op: sums))
    latents = torch.tensor([[1.0, 3.0], [3.0, 5.0], [9.0, 9.0]]).view(3, 2, 1, 1)
    batch = {"latents": latents, "label": torch.zeros(3, dtype=torch.int64), "index": torch.tensor([0, 1, -1])}
    module.on_validation_epoch_start()
    module.validation_step(batch, 0)
    module.on_validation_epoch_end()
    assert logged == {"val/nll": 3, "val/nll/first": 2}
