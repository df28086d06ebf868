"""Class-conditional diffusion transformer over latents (iFSQ section 4.1.2; LightningDiT, arXiv 2501.01423)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor, nn

from polytoken.errors import UserError
from polytoken.generators.base import Codec, Generator, GeneratorLoss, SubCode
from polytoken.generators.flow_matching import FlowMatching, interpolate
from polytoken.handover import check_equal_shapes
from polytoken.modulated_transformer import (
    DiffusionTrunkConfig,
    ModulatedOutput,
    ModulatedTrunk,
    TimeEmbedding,
    initialise_modulated,
)
from polytoken.sampling import FlowSampler, RowNoise
from polytoken.specs import LatentSpec, Tokens, TokenSpec


class DiffusionTransformer(Generator):
    """Velocity network of a flow from noise at t = 0 to latents at t = 1 (iFSQ eq. 9, LightningDiT).

    It reads and writes latents as the decoder takes them. Inside it normalises each channel by the mean and deviation
    of its :class:`~polytoken.specs.LatentSpec`. Position i is the patch i, row by row; its channels are ordered by
    row, column and channel.

    Args:
        trunk: sizes and regularisation.
        flow: times and loss.
    """

    models: ClassVar = "latents"
    sampler_type: ClassVar = FlowSampler
    forward_methods: ClassVar = ("loss", "velocity", "sample")
    spec: LatentSpec
    config: DiffusionTrunkConfig
    patch_embedding: nn.Linear
    time_embedding: TimeEmbedding
    class_embedding: nn.Embedding
    trunk: ModulatedTrunk
    output: ModulatedOutput

    def __init__(self, trunk: DiffusionTrunkConfig, flow: FlowMatching | None = None) -> None:
        super().__init__(trunk)
        self.flow = flow or FlowMatching()

    @property
    def depth(self) -> int:
        return self.config.depth

    @property
    def width(self) -> int:
        return self.config.dim

    @property
    def hidden_grid(self) -> tuple[int, int]:
        height, width = self.spec.grid
        return height // self.config.patch_size, width // self.config.patch_size

    def connect(self, spec: TokenSpec | LatentSpec, num_classes: int, codec: Codec | None = None) -> None:
        """Create all layers; index ``num_classes`` of the class embedding is the null class of guidance.

        Raises:
            UserError: for codes, or a grid that does not divide into patches.
        """
        if not isinstance(spec, LatentSpec):
            raise UserError("DiffusionTransformer models latents, and this spec is of codes: give it a LatentSpec")
        dim, side = self.config.dim, self.config.patch_size
        if any(size % side for size in spec.grid):
            raise UserError(
                f"trunk.patch_size is {side}, and the latents' grid of {spec.grid[0]} × {spec.grid[1]} does not divide "
                "into such patches: choose a divisor of both sides"
            )
        self.take_spec(spec, num_classes)
        patch_channels = spec.channels * side**2
        self.patch_embedding = nn.Linear(patch_channels, dim)
        self.time_embedding = TimeEmbedding(dim)
        self.class_embedding = nn.Embedding(num_classes + 1, dim)
        self.trunk = ModulatedTrunk(self.config, self.hidden_grid)
        self.output = ModulatedOutput(dim, patch_channels)
        initialise_modulated(self)

    def carried(self, source: Mapping[str, Tensor], sub_code: SubCode = None) -> dict[str, str]:
        """Return the weights of equal name and shape; the trunk must be equal.

        The layers that read and write latents are carried between stages on the same latents alone.

        Raises:
            UserError: if the trunks differ, or ``sub_code`` is a number.
        """
        if isinstance(sub_code, int):
            raise UserError(f"sub_code is {sub_code}, and latents have no sub-codes: leave it out")
        check_equal_shapes(source, self.state_dict(), "trunk")
        pairs = super().carried(source)
        if sub_code == "all":
            return pairs
        return {name: pairs[name] for name in pairs if not name.startswith(("patch_embedding.", "output.output."))}

    def autocast_layers(self) -> Iterator[nn.Linear]:
        """Return those of the blocks: the layers of time compute in float32 under any precision."""
        return (layer for block in self.blocks() for layer in block.modules() if isinstance(layer, nn.Linear))

    def blocks(self) -> Iterator[nn.Module]:
        """Return the blocks of the trunk."""
        return iter(self.trunk.blocks)

    def loss(self, tokens: Tokens, labels: Tensor, step: int = 0, taps: Collection[int] = ()) -> GeneratorLoss:
        """Velocity loss (iFSQ eq. 9); see :class:`FlowMatching`, also for times and noise outside of training.

        Row i of a tapped output belongs to patch i.

        Args:
            tokens: latents (B, C, h, w), not normalised.
            labels: (B,) int64 classes.
            step: not used.
            taps: numbers of the blocks whose outputs are returned, counted from 1.
        """
        latents = self._latents_of(tokens)
        self.check_labels(labels)
        mean, deviation = moments(self.spec, latents.device)
        data = (latents.float() - mean) / deviation
        times, noise = self.flow.draw(data, self.training)
        labels = self.drop_labels(labels)
        velocity, hidden = self._velocity(interpolate(data, noise, times), times, labels, taps)
        total, parts = self.flow.loss(velocity, data, noise)
        return GeneratorLoss(total, parts, "velocity", hidden=hidden)

    def velocity(
        self, states: Tensor, times: Tensor, labels: Tensor, taps: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return velocities (B, C, h, w) of normalised states x_t, and the outputs of tapped blocks.

        Args:
            states: (B, C, h, w).
            times: (B,) float32 in [0, 1].
            labels: (B,) int64; ``num_classes`` is the null class.
            taps: as in :meth:`loss`.
        """
        self.check_labels(labels)
        return self._velocity(states, times, labels, taps)

    def states(self, tokens: Tokens, labels: Tensor, time: float = 0.5, first_index: int = 0) -> dict[int, Tensor]:
        """Return the outputs (B, N, dim) of all blocks for latents with noise at a time."""
        latents = self._latents_of(tokens)
        mean, deviation = moments(self.spec, latents.device)
        noise = RowNoise(0, first_index, len(latents), latents.device).normal((0,), *latents.shape[1:])
        times = torch.full((len(latents),), time, device=latents.device)
        states = interpolate((latents.float() - mean) / deviation, noise, times)
        return self.velocity(states, times, labels, range(1, self.depth + 1))[1]

    @torch.no_grad()
    def sample(self, labels: Tensor, sampler: FlowSampler, noise: RowNoise) -> Tokens:
        """Return latents (B, C, h, w) in float32 for labels (B,) int64.

        Raises:
            UserError: for a class out of range, rules that do not fit (see :meth:`check_sampler`), or latents that are
                not finite.
        """
        self.check_classes(labels)
        self.check_sampler(sampler)
        start = noise.normal((0,), self.spec.channels, *self.spec.grid)
        mean, deviation = moments(self.spec, labels.device)
        with self.evaluating():
            data = sampler.integrate(lambda *states: self._velocity(*states)[0], start, labels, self.num_classes)
        latents = data * deviation + mean
        if not bool(latents.isfinite().all()):  # snapped to a codebook they would pass for others
            raise UserError("sampled latents are not finite: lower sampler.guidance, or train the generator again")
        return Tokens(latents=latents)

    def _velocity(
        self, states: Tensor, times: Tensor, labels: Tensor, taps: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        self.check_taps(taps)
        classes = self.class_embedding(labels)
        condition = (self.time_embedding(times) + classes).type_as(classes)
        features = self.patch_embedding(self._patches(states).type_as(classes))
        features, hidden = self.trunk(features, condition, taps)
        return self._unpatched(self.output(features, condition)), hidden

    def _patches(self, states: Tensor) -> Tensor:
        """Return (B, N, p · p · C) of states (B, C, h, w)."""
        side = self.config.patch_size
        blocks = states.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (B, C, rows, p, columns, p)
        return blocks.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def _unpatched(self, patches: Tensor) -> Tensor:
        """Inverse of :meth:`_patches`."""
        side, channels = self.config.patch_size, self.spec.channels
        blocks = patches.unflatten(2, (side, side, channels)).unflatten(1, self.hidden_grid)
        return blocks.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def _latents_of(self, tokens: Tokens) -> Tensor:
        if tokens.latents is None:
            raise UserError("DiffusionTransformer models latents, and these tokens are codes: embed them first")
        if tokens.latents.shape[1:] != self.spec.shape:
            raise UserError(
                f"latents have shape {tuple(tokens.latents.shape)} and the generator reads (batch, "
                f"{', '.join(map(str, self.spec.shape))}): use the token store it was built for"
            )
        return tokens.latents


@lru_cache(maxsize=64)
def moments(spec: LatentSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and deviation (C, 1, 1) in float32."""
    with torch.inference_mode(False):  # constants first used in inference also serve training
        values = torch.tensor([spec.mean, spec.deviation], dtype=torch.float32, device=device)
        mean, deviation = values.view(2, -1, 1, 1).unbind(0)
        return mean, deviation
