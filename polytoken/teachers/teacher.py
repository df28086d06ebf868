"""Frozen vision foundation models, whose features guide a subspace or are compared with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytoken.errors import MissingFileError, UserError
from polytoken.teachers.stand_in import REMEDY, SmallVisionTransformer, read_architecture
from polytoken.weights import load_state, read_shapes

WEIGHTS = Path("weights")
POSITIONS = ("pos_embed", "positional_embedding")  # timm's, open_clip's

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SIGLIP = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # images in [-1, 1] as they are


@dataclass(frozen=True)
class FoundationModel:
    """What has to be right to read a published model's features.

    Args:
        library: whose code builds it.
        model: its name there, with the pretrained tag after the last dot (timm) or slash (open_clip).
        image_size: side it is shown images at unless told otherwise, in pixels.
        patch_size: side of a patch.
        width: D of its features.
        depth: blocks.
        prefix_tokens: class token and registers before the patches; with none, ``cls`` is the mean of the patches.
        normalization: mean and standard deviation of its inputs in [0, 1], a channel.
        final_norm: read the last block behind the model's last norm.
    """

    library: Literal["timm", "open_clip"]
    model: str
    image_size: int
    patch_size: int
    width: int
    depth: int
    prefix_tokens: int
    normalization: tuple[tuple[float, float, float], tuple[float, float, float]]
    final_norm: bool = True


# CLIP is read before its last norm and without projection, as FQGAN did; OpenAI's weights need the *quickgelu* models
# (plain GELU loads them without a word and is off by up to 1.3). Sources: facts A6 and section 6.
FOUNDATION_MODELS = {
    "clip_base_16": FoundationModel(
        "timm", "vit_base_patch16_clip_quickgelu_224.openai", 224, 16, 768, 12, 1, CLIP, final_norm=False
    ),
    "clip_large_14": FoundationModel(
        "timm", "vit_large_patch14_clip_quickgelu_224.openai", 224, 14, 1024, 24, 1, CLIP, final_norm=False
    ),
    "open_clip_base_16": FoundationModel(
        "open_clip", "ViT-B-16-quickgelu/openai", 224, 16, 768, 12, 1, CLIP, final_norm=False
    ),
    "dino_small_16": FoundationModel("timm", "vit_small_patch16_224.dino", 224, 16, 384, 12, 1, IMAGENET),
    "dinov2_small": FoundationModel("timm", "vit_small_patch14_dinov2.lvd142m", 224, 14, 384, 12, 1, IMAGENET),
    "dinov2_base": FoundationModel("timm", "vit_base_patch14_dinov2.lvd142m", 224, 14, 768, 12, 1, IMAGENET),
    "dinov2_base_registers": FoundationModel(
        "timm", "vit_base_patch14_reg4_dinov2.lvd142m", 224, 14, 768, 12, 5, IMAGENET
    ),
    "dinov2_large_registers": FoundationModel(
        "timm", "vit_large_patch14_reg4_dinov2.lvd142m", 336, 14, 1024, 24, 5, IMAGENET
    ),
    "dinov3_large": FoundationModel("timm", "vit_large_patch16_dinov3.lvd1689m", 256, 16, 1024, 24, 5, IMAGENET),
    "siglip2_large": FoundationModel("timm", "vit_large_patch16_siglip_384.v2_webli", 384, 16, 1024, 24, 0, SIGLIP),
}


class TeacherFeatures(NamedTuple):
    """What a teacher says of a batch, float32."""

    cls: Tensor
    """(B, D): the class token, or the mean of the patches where a model has none."""
    patches: Tensor
    """(B, h, w, D), row-major."""


@final
class Teacher:
    """A frozen model behind one interface; loaded by :meth:`prepare`, and never part of a checkpoint.

    Images are resized (bicubic, antialiased) to the model's size and normalised as it was trained. Runs in bf16 on a
    GPU and in float32 on a CPU, without gradients.

    Args:
        name: a key of ``FOUNDATION_MODELS``, or ``stand_in``: a small network that ``make teacher`` trained.
        weights: file of its weights; None takes ``weights/<name>.safetensors``, or else the model's hub.
        image_size: side the model is shown images at, a multiple of its patch size; None is its own.
        block: features after this block, counted from 1, before any norm; None is the last as the table has it.

    Raises:
        ValueError: if the name is unknown, or the size or block do not fit the model; a stand-in is checked, and its
            file missed, when it is first used.
    """

    def __init__(
        self, name: str, weights: str | None = None, image_size: int | None = None, block: int | None = None
    ) -> None:
        self.name = name
        self.weights = weights
        self.block = block
        self._image_size = image_size
        self._network: nn.Module | None = None
        if name == "stand_in":
            if weights is None:
                raise UserError("a stand_in teacher has no hub: give its weights, the file `make teacher` wrote")
        elif name in FOUNDATION_MODELS:
            self._check(FOUNDATION_MODELS[name])
        else:
            raise UserError(f"no teacher is called {name!r}; known are {', '.join(FOUNDATION_MODELS)} and stand_in")

    @cached_property
    def _model(self) -> FoundationModel:
        """The row of the table; a stand-in's file is read when somebody first asks, for few runs use every teacher."""
        if self.name in FOUNDATION_MODELS:
            return FOUNDATION_MODELS[self.name]
        assert self.weights is not None
        stand_in = read_architecture(self.weights)
        model = FoundationModel(
            "timm",
            "stand_in",
            stand_in["image_size"],
            stand_in["patch_size"],
            stand_in["width"],
            stand_in["depth"],
            int(stand_in["class_token"]),
            SIGLIP,
        )
        self._check(model)
        return model

    def _check(self, model: FoundationModel) -> None:
        if self._image_size is not None and self._image_size % model.patch_size:
            raise UserError(
                f"image_size {self._image_size} of teacher {self.name} is no multiple of its patch size "
                f"{model.patch_size}: make it one, e.g. {model.patch_size * 16}"
            )
        if self.name == "stand_in" and self._image_size not in (None, model.image_size):
            raise UserError(f"{self.weights} was trained at {model.image_size} px: leave image_size to it")
        if self.block is not None and not 1 <= self.block <= model.depth:
            raise UserError(f"block {self.block} of teacher {self.name}: it has blocks 1 to {model.depth}")

    @property
    def image_size(self) -> int:
        """Pixels a side that images are resized to."""
        return self._image_size or self._model.image_size

    @property
    def width(self) -> int:
        """D of its features."""
        return self._model.width

    @property
    def patch_size(self) -> int:
        """Pixels a side of a patch."""
        return self._model.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of its patches."""
        side = self.image_size // self._model.patch_size
        return side, side

    def prepare(self, device: torch.device) -> None:
        """Load the network, once, and put it on the device.

        Raises:
            FileNotFoundError: if its weights are neither on disk nor on a hub that answers.
            ValueError: if the file holds another architecture.
        """
        if self._network is None:
            with torch.random.fork_rng(devices=[]):  # discarded initial weights must not shift the caller's stream
                self._network = self._load().eval().requires_grad_(False)
        self._network.to(device)

    @torch.no_grad()
    def features(self, images: Tensor, full_precision: bool = False) -> TeacherFeatures:
        """Images (B, 3, H, W) in [-1, 1] to features of the chosen block; in float32 on a GPU too if asked."""
        self.prepare(images.device)
        enabled = images.device.type == "cuda" and not full_precision
        with torch.autocast(images.device.type, torch.bfloat16, enabled=enabled):
            prefix, patches = self._tokens(self.transform(images.float()))
        patches = patches.float()
        cls = prefix[:, 0].float() if self._model.prefix_tokens else patches.mean(1)
        return TeacherFeatures(cls, patches.unflatten(1, self.grid))

    def transform(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to the model's own size and normalisation."""
        size = (self.image_size, self.image_size)
        if tuple(images.shape[-2:]) != size:
            images = functional.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)
        mean, deviation = (images.new_tensor(values).view(1, 3, 1, 1) for values in self._model.normalization)
        return ((images + 1) / 2 - mean) / deviation

    def _tokens(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Prefix tokens (B, p, D) and patches (B, h·w, D) of the chosen block."""
        block = (self.block or self._model.depth) - 1
        normalised = self.block is None and self._model.final_norm
        network = self._network
        if self._model.library == "open_clip":
            output = network.forward_intermediates(  # type: ignore[union-attr, operator]
                inputs,
                [block],
                normalize_intermediates=normalised,
                intermediates_only=True,
                output_fmt="NLC",
                output_extra_tokens=True,
            )
            return output["image_intermediates_prefix"][0], output["image_intermediates"][0]
        output = network.forward_intermediates(  # type: ignore[union-attr, operator]
            inputs,
            indices=[block],
            return_prefix_tokens=True,
            norm=normalised,
            output_fmt="NLC",
            intermediates_only=True,
        )[0]
        # timm gives the patches alone where a model has no prefix tokens
        patches, prefix = output if isinstance(output, tuple) else (output, output[:, :0])
        return prefix, patches

    def check(self) -> None:
        """Compare names and shapes in its weights file with the network's, so that a wrong file shows early.

        Raises:
            FileNotFoundError: if a file is given and missing.
            ValueError: if it holds another architecture.
        """
        path = self._file
        if path is None:
            return
        shapes = read_shapes(path, self._remedy)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            if self.name == "stand_in":
                network: nn.Module = SmallVisionTransformer(**read_architecture(path))
            else:
                network = build_network(self._model, self.image_size, pretrained=False)
        self._check_shapes(network, shapes, path)

    @property
    def _file(self) -> Path | None:
        """Where its weights are; None is the hub."""
        if self.weights:
            return Path(self.weights)
        path = WEIGHTS / f"{self.name}.safetensors"
        return path if path.exists() else None

    @property
    def _remedy(self) -> str:
        return REMEDY if self.name == "stand_in" else f"run `make weights TEACHERS={self.name}`"

    def _check_shapes(self, network: nn.Module, shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
        what = "the network its header describes" if self.name == "stand_in" else self._model.model
        wanted = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        if lacking := sorted(wanted.keys() - shapes.keys()):
            raise UserError(f"{path} lacks {lacking[0]} and {len(lacking) - 1} more: it is not {what}; {self._remedy}")
        # a file may hold positions of another image size, which are resampled, or flat ones
        other = [key for key in wanted if key not in POSITIONS and shapes[key] != wanted[key]]
        if other:
            raise UserError(
                f"{path} has {other[0]} of shape {shapes[other[0]]}, not {wanted[other[0]]}: it is not {what}; "
                f"{self._remedy}"
            )

    def _load(self) -> nn.Module:
        if self.name == "stand_in":
            assert self.weights is not None
            return SmallVisionTransformer.load(self.weights).trunk
        path = self._file
        if path is None:
            return self._build(pretrained=True)
        network = self._build(pretrained=False)
        state = _fit_positions(load_state(path, self._remedy)[0], network, self.grid)
        shapes = {key: tuple(tensor.shape) for key, tensor in state.items() if isinstance(tensor, Tensor)}
        self._check_shapes(network, shapes, path)
        try:
            # a file may carry more than the trunk: the text tower, or a head that nobody asks here
            network.load_state_dict({key: state[key] for key in network.state_dict()})
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise UserError(f"{path} is not {self._model.model}: {reason}") from error
        return network

    def _build(self, pretrained: bool) -> nn.Module:
        try:
            return build_network(self._model, self.image_size, pretrained)
        except (OSError, RuntimeError) as error:
            raise MissingFileError(
                f"no weights of teacher {self.name}: weights/{self.name}.safetensors is missing and its hub does not "
                f"answer; run `make weights TEACHERS={self.name}` where there is a network"
            ) from error


def _fit_positions(state: dict[str, Tensor], network: nn.Module, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Positions learned at another image size, resampled to this one's grid as timm does for its hub's files."""
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
    """Prefix tokens that have a position: none where a model keeps them apart (DINOv2 with registers)."""
    return 0 if getattr(network, "no_embed_class", False) else int(getattr(network, "num_prefix_tokens", 0))


def build_network(model: FoundationModel, image_size: int, pretrained: bool) -> nn.Module:
    """The vision tower of a published model, with the weights of its hub or random ones."""
    if model.library == "open_clip":
        import open_clip

        name, tag = model.model.split("/")
        return open_clip.create_model(
            name,
            pretrained=tag if pretrained else None,
            force_image_size=image_size,
            load_weights=pretrained,
            device=torch.get_default_device(),  # it moves what it built, and could not from the meta device
        ).visual
    import timm

    return timm.create_model(model.model, pretrained=pretrained, img_size=image_size, num_classes=0)
