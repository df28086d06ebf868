"""Perceptual distance: LPIPS with VGG (arXiv 1801.03924), and a stand-in on the judge's features for embedded data."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytoken.classifier import SmallClassifier
from polytoken.errors import UserError
from polytoken.losses.base import LossTerm, TokenizerStep
from polytoken.weights import load_state


class PerceptualTerm(LossTerm):
    """A distance in the features of a frozen network, which is kept out of the parameters and the checkpoint.

    Args:
        weights: file of the frozen network.
        weight: factor in the total.
        start_step: updates before which the term is left out.
    """

    def __init__(self, weights: str, weight: float = 1.0, start_step: int = 0) -> None:
        super().__init__(weight, start_step)
        self.weights = weights
        self._network: list[nn.Module] = []  # a list hides it from parameters(), state_dict() and train()

    @abstractmethod
    def load_network(self) -> nn.Module:
        """The frozen network of ``weights``, in eval mode."""

    @abstractmethod
    def distance(self, network: nn.Module, first: Tensor, second: Tensor) -> Tensor:
        """Scalar distance of two image batches in [-1, 1]."""

    def prepare(self, device: torch.device) -> None:
        """Load the network onto the device."""
        if not self._network:
            self._network.append(self.load_network())
        self._network[0].to(device)

    def forward(self, step: TokenizerStep) -> Tensor:
        """Scalar, float32."""
        if not self._network:
            self.prepare(step.images.device)
        return self.distance(self._network[0], step.reconstruction, step.images).float()


class LPIPS(PerceptualTerm):
    """LPIPS v0.1 over VGG-16, its dropout off.

    Args:
        weights: torchvision's VGG-16 state dict (``make weights`` fetches it).
        weight: factor in the total.
        start_step: updates before which the term is left out.
    """

    def __init__(self, weights: str = "weights/vgg16.pth", weight: float = 1.0, start_step: int = 0) -> None:
        super().__init__(weights, weight, start_step)

    def load_network(self) -> nn.Module:
        """VGG-16 with LPIPS's linear heads, which ship with the lpips package."""
        import lpips

        backbone, _ = load_state(self.weights, "run `make weights`, or give objective.perceptual.init_args.weights")
        network = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
        _load_vgg_slices(network.net, backbone, self.weights)
        heads, _ = load_state(Path(lpips.__file__).parent / "weights/v0.1/vgg.pth", "reinstall the lpips package")
        for index, head in enumerate(network.lins):
            head.model[-1].load_state_dict({"weight": heads[f"lin{index}.model.1.weight"]})
        return network.eval().requires_grad_(False)

    def distance(self, network: nn.Module, first: Tensor, second: Tensor) -> Tensor:
        """Mean LPIPS of two batches."""
        return network(first, second).mean()


class JudgeFeatures(PerceptualTerm):
    """Squared distance of channel-normalised features, averaged over positions and stages of the judge.

    Stands in for LPIPS where no VGG is at hand; its value compares with no published LPIPS.

    Args:
        weights: the judge's safetensors (``make teacher`` trains it).
        weight: factor in the total.
        start_step: updates before which the term is left out.
    """

    def load_network(self) -> nn.Module:
        """The judge, frozen."""
        return SmallClassifier.load(self.weights)

    def distance(self, network: SmallClassifier, first: Tensor, second: Tensor) -> Tensor:  # type: ignore[override]
        """Mean over stages and positions of ‖â − b̂‖², each position's features scaled to unit length."""
        pairs = zip(network.feature_maps(first), network.feature_maps(second), strict=True)
        return torch.stack([_unit_distance(one.float(), other.float()) for one, other in pairs]).mean()


def _unit_distance(first: Tensor, second: Tensor) -> Tensor:
    difference = functional.normalize(first, dim=1) - functional.normalize(second, dim=1)
    return difference.square().sum(1).mean()


def _load_vgg_slices(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Fill LPIPS's sliced VGG from torchvision's ``features.N`` keys, which name the same layers by position."""
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    for name, layer in layers.items():
        position = name.rsplit(".", 1)[1]
        try:
            layer.load_state_dict({key: state[f"features.{position}.{key}"] for key in ("weight", "bias")})
        except KeyError as error:
            raise UserError(
                f"{source} lacks {error.args[0]}: it is not torchvision's VGG-16; run `make weights`"
            ) from error
