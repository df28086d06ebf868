from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from polytoken.classifier import SmallClassifier
from polytoken.losses import LPIPS, ClassifierFeatures, EfficientNetFeatures, TokenizerStep
from polytoken.specs import Decoded, Encoding
from tests.support.vgg import random_vgg


def make_step(images: torch.Tensor, reconstruction: torch.Tensor) -> TokenizerStep:
    return TokenizerStep(images, Decoded(reconstruction), Encoding(None, images), torch.nn.Parameter(torch.ones(1)), 0)


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1


def test_lpips_uses_the_given_weights_without_dropout(
    tmp_path: Path, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    state = random_vgg(tmp_path / "vgg.pth")
    term = LPIPS(str(tmp_path / "vgg.pth"))
    term.train()
    first, second = term(make_step(*images)), term(make_step(*images))
    assert first.item() == second.item() > 0, "dropout must be off although the objective trains"
    assert term(make_step(images[0], images[0])).item() == 0
    network = term._network.on(torch.device("cpu"))
    convolutions = [m for m in network.net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert torch.equal(convolutions[0].weight, state["features.0.weight"])
    assert torch.equal(convolutions[-1].weight, state["features.28.weight"])
    heads = [head.model[-1].weight for head in network.lins]
    assert all((weight >= 0).all() for weight in heads), "the published linear heads are not negative"


def test_lpips_equals_the_package_and_is_reduced_in_float32(tmp_path: Path, images: tuple) -> None:
    random_vgg(tmp_path / "vgg.pth")
    term = LPIPS(str(tmp_path / "vgg.pth"))
    network = term._network.on(torch.device("cpu"))
    torch.testing.assert_close(term(make_step(*images)), network(*images).mean())
    seen: list[torch.dtype] = []
    network.lins[0].register_forward_hook(lambda _, given, result: seen.extend((given[0].dtype, result.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        value = term(make_step(*images))
    assert seen == [torch.float32] * 2
    assert value.bfloat16().float() != value  # no value that bf16 has rounded


def test_frozen_networks_stay_out_of_parameters_and_checkpoints(tmp_path: Path, images: tuple) -> None:
    random_vgg(tmp_path / "vgg.pth")
    term = LPIPS(str(tmp_path / "vgg.pth"))
    term.prepare(torch.device("cpu"))
    assert list(term.parameters()) == []
    assert term.state_dict() == {}


def test_missing_and_foreign_weights_raise_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make weights"):
        LPIPS(str(tmp_path / "nowhere.pth")).prepare(torch.device("cpu"))
    torch.save({"something": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not torchvision's VGG-16; run `make weights`"):
        LPIPS(str(tmp_path / "other.pth")).prepare(torch.device("cpu"))


def test_judge_features(tmp_path: Path, images: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.manual_seed(0)
    SmallClassifier(num_classes=3, widths=(32, 32)).save(tmp_path / "judge.safetensors", accuracy=0.5)
    before = torch.random.get_rng_state()
    term = ClassifierFeatures(str(tmp_path / "judge.safetensors"))
    reconstruction = images[1].requires_grad_()
    loss = term(make_step(images[0], reconstruction))
    assert torch.equal(before, torch.random.get_rng_state()), "loading must not shift the model's random numbers"
    loss.backward()
    assert reconstruction.grad is not None and reconstruction.grad.abs().sum() > 0
    assert 0 < loss.item() < 4
    assert term(make_step(images[0], images[0])).item() == 0


def test_a_file_that_is_not_a_judge_is_rejected(tmp_path: Path) -> None:
    save_file({"linear.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="make teacher"):
        ClassifierFeatures(str(tmp_path / "other.safetensors")).prepare(torch.device("cpu"))


def test_lpips_computes_the_same_in_another_memory_format(tmp_path: Path, images: tuple) -> None:
    random_vgg(tmp_path / "vgg.pth")
    term = LPIPS(str(tmp_path / "vgg.pth"))
    network = term._network.on(torch.device("cpu"))
    assert network.net.slice2[1].weight.is_contiguous(memory_format=torch.channels_last)
    results = []
    for memory_format in (torch.channels_last, torch.contiguous_format):
        network.to(memory_format=memory_format)
        reconstruction = images[1].clone().requires_grad_()
        distance = term(make_step(images[0], reconstruction))
        distance.backward()
        results.append((distance, reconstruction.grad))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-8)


def test_efficientnet_features(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    before = torch.random.get_rng_state()
    term = EfficientNetFeatures()
    reconstruction = images[1].requires_grad_()
    loss = term(make_step(images[0], reconstruction))
    assert torch.equal(before, torch.random.get_rng_state()), "loading must not shift the model's random numbers"
    loss.backward()
    assert reconstruction.grad is not None and reconstruction.grad.abs().sum() > 0
    assert 0 < loss.item() < 4
    assert term(make_step(images[0], images[0])).item() == 0
    assert list(term.parameters()) == [] and term.state_dict() == {}
    single = [EfficientNetFeatures([level])(make_step(*images)) for level in term.levels]
    torch.testing.assert_close(torch.stack(single).mean(), loss, msg="every level counts alike")
    with pytest.raises(ValueError, match="EfficientNetFeatures: levels holds 0; it must be from 1 to 8"):
        EfficientNetFeatures([0])
