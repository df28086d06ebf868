"""Weights of teachers: finding, checking and loading the file of a published model or of a stand-in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from polytoken.errors import MissingFileError, UserError
from polytoken.teachers.efficientnet import EFFICIENTNETS, load_efficientnet
from polytoken.teachers.foundation_models import SIGLIP, FoundationModel, build_network
from polytoken.teachers.stand_in import SmallVisionTransformer, read_architecture
from polytoken.weights import MAKE_TEACHER, load_state, read_shapes

WEIGHTS = Path("weights")
STAND_IN = "stand_in"
POSITIONS = ("pos_embed", "positional_embedding")  # timm's, open_clip's


def read_stand_in(path: str) -> FoundationModel:
    """The settings of a stand-in, from the header of its file.

    Raises:
        MissingFileError: it is missing.
        UserError: the file holds no stand-in.
    """
    header = read_architecture(path)
    return FoundationModel(
        library="timm",
        model=STAND_IN,
        image_size=header["image_size"],
        patch_size=header["patch_size"],
        width=header["width"],
        depth=header["depth"],
        prefix_tokens=int(header["pooling"] == "token"),
        normalization=SIGLIP,
        attention_pooling=header["pooling"] == "attention",
    )


@dataclass(frozen=True)
class TeacherWeights:
    """The weights of one teacher.

    Args:
        name: the teacher's name.
        model: its settings.
        image_size: side of the images that the network is built for.
        given: the file that the user named; None takes ``weights/<name>.safetensors``, or else the model's hub.
    """

    name: str
    model: FoundationModel
    image_size: int
    given: str | None

    @property
    def file(self) -> Path | None:
        """The file that the weights are read from; None is the hub.

        Raises:
            MissingFileError: it is in a package that is not installed.
        """
        if self.name in EFFICIENTNETS:
            return EFFICIENTNETS[self.name].path
        if self.given:
            return Path(self.given)
        path = WEIGHTS / f"{self.name}.safetensors"
        return path if path.exists() else None

    def check(self) -> None:
        """Compare names and shapes in the file with the network's, without reading weights.

        Raises:
            MissingFileError: a file is given and missing.
            UserError: it holds another architecture.
        """
        path = self.file
        if path is None or self.name in EFFICIENTNETS:  # no other file can lie in that package
            return
        shapes = read_shapes(path, self._remedy)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            if self.name == STAND_IN:
                network: nn.Module = SmallVisionTransformer(**read_architecture(path))
            else:
                network = build_network(self.model, self.image_size, pretrained=False)
        self._check_shapes(network, shapes, path)

    def load(self, from_hub: bool = True) -> nn.Module:
        """The network with its weights, from the model's hub if there is no file and the hub may be asked.

        Raises:
            MissingFileError: its weights are neither on disk nor on a hub that answers.
            UserError: the file holds another architecture.
        """
        if self.name in EFFICIENTNETS:
            return load_efficientnet(self.name)
        path = self.file
        if path is None:
            if not from_hub:
                raise MissingFileError(f"{WEIGHTS / self.name}.safetensors is missing: {self._remedy}")
            return self._build(pretrained=True)
        if self.name == STAND_IN:
            return SmallVisionTransformer.load(path).trunk
        network = self._build(pretrained=False)
        side = self.image_size // self.model.patch_size
        state = _fit_positions(load_state(path, self._remedy)[0], network, (side, side))
        shapes = {key: tuple(tensor.shape) for key, tensor in state.items() if isinstance(tensor, Tensor)}
        self._check_shapes(network, shapes, path)
        try:
            # a file may hold more than the trunk: the text tower, or an unused head
            network.load_state_dict({key: state[key] for key in network.state_dict()})
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise UserError(f"{path} is not {self.model.model}: {reason}") from error
        return network

    @property
    def _remedy(self) -> str:
        return MAKE_TEACHER if self.name == STAND_IN else f"run `make weights TEACHERS={self.name}`"

    def _check_shapes(self, network: nn.Module, shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
        what = "the network its header describes" if self.name == STAND_IN else self.model.model
        wanted = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        if lacking := sorted(wanted.keys() - shapes.keys()):
            raise UserError(f"{path} lacks {lacking[0]} and {len(lacking) - 1} more: it is not {what}; {self._remedy}")
        # positions of another image size are resampled
        other = [key for key in wanted if key not in POSITIONS and shapes[key] != wanted[key]]
        if other:
            raise UserError(
                f"{path} has {other[0]} of shape {shapes[other[0]]}, not {wanted[other[0]]}: it is not {what}; "
                f"{self._remedy}"
            )

    def _build(self, pretrained: bool) -> nn.Module:
        try:
            return build_network(self.model, self.image_size, pretrained)
        except (OSError, RuntimeError) as error:
            raise MissingFileError(
                f"no weights of teacher {self.name}: weights/{self.name}.safetensors is missing and its hub does not "
                f"answer; run `make weights TEACHERS={self.name}` where there is a network"
            ) from error


def _fit_positions(state: dict[str, Tensor], network: nn.Module, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Resample positions learned at another image size to this grid, as timm does for the files of its hub."""
    from timm.layers import resample_abs_pos_embed

    state = dict(state)
    wanted = network.state_dict()
    for name, prefix in zip(POSITIONS, (_embedded_prefix(network), 1), strict=True):
        if name in state and name in wanted and state[name].shape[-2] != wanted[name].shape[-2]:
            positions = state[name].reshape(1, *state[name].shape[-2:])
            resampled = resample_abs_pos_embed(positions, list(grid), num_prefix_tokens=prefix)
            state[name] = resampled.reshape(wanted[name].shape)
    return state


def _embedded_prefix(network: nn.Module) -> int:
    """Number of prefix tokens with a position: 0 where a model keeps them apart (DINOv2 with registers)."""
    return 0 if getattr(network, "no_embed_class", False) else int(getattr(network, "num_prefix_tokens", 0))
