"""Next-scale generator: all codes of a scale at once, given the scales before (VAR; ImageFolder section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytoken.cache import KVCache
from polytoken.errors import UserError
from polytoken.generators.base import Codec, Generator, GeneratorLoss, SubCode
from polytoken.generators.decoding import CompiledStep, compiles, fix
from polytoken.generators.heads import ClassifierHead, Head
from polytoken.handover import check_equal_shapes, fits
from polytoken.next_scale_transformer import (
    CachedScale,
    NextScaleTrunk,
    NextScaleTrunkConfig,
    initialise_next_scale,
)
from polytoken.precision import compute_type
from polytoken.sampling import CategoricalSampler, Draw, ForcedCodes, ForcedDraw, RowNoise
from polytoken.sampling.forcing import PASSES
from polytoken.specs import LatentSpec, Tokens, TokenSpec
from polytoken.transformer import TrunkConfig


class NextScaleGenerator(Generator):
    """Generator of the scales of a multi-scale tokenizer, coarse first (VAR; ImageFolder section 3.2).

    A scale reads the sum of the tokenizer's vectors of all scales before, averaged down to its grid, and the class. Its
    positions see each other and the scales before, and the head predicts the k sub-codes of each. With a parallel head
    (MultiLinearHead) the sub-codes are independent given the state (ImageFolder eq. 5); other heads work too.

    Args:
        trunk: sizes and regularisation.
        head: predicts the sub-codes of a position.
    """

    spec: TokenSpec
    config: NextScaleTrunkConfig
    needs_codec: ClassVar = True
    embeddings: nn.ModuleList
    class_embedding: nn.Embedding
    word_embedding: nn.Linear
    trunk: NextScaleTrunk

    def __init__(self, trunk: NextScaleTrunkConfig, head: Head) -> None:
        super().__init__(trunk)
        self.head = head
        self._step: CompiledStep | None = None
        self._state: _SharedState | None = None

    @property
    def depth(self) -> int:
        return self.config.depth

    @property
    def width(self) -> int:
        return self.config.width

    @property
    def hidden_grid(self) -> tuple[int, int]:
        """Grid of the finest scale, whose positions ``hidden`` returns."""
        return self.spec.scales[-1]

    def connect(self, spec: TokenSpec | LatentSpec, num_classes: int, codec: Codec | None = None) -> None:
        """Create all layers; index ``num_classes`` of the class embedding is the null class of guidance.

        Raises:
            UserError: for latents, codes of one scale, or a head that cannot predict the codes.
        """
        if not isinstance(spec, TokenSpec):
            raise UserError("NextScaleGenerator models codes, and this spec is of latents: give it a TokenSpec")
        if codec is None:
            raise UserError("NextScaleGenerator reads the tokenizer's vectors: connect it with the tokenizer's codec")
        if len(spec.scales) == 1:
            height, width = spec.scales[0]
            raise UserError(
                f"these codes have one scale, {height} × {width}, and NextScaleGenerator predicts a scale from those "
                "before: use a tokenizer of several scales (var, imagefolder), or AutoregressiveGenerator"
            )
        self.take_spec(spec, num_classes)
        self._codec = codec
        dim = self.config.width
        tables = spec.codebook_sizes[:-1] if self.head.reads_codes else ()  # DDP refuses a table that nothing reads
        self.embeddings = nn.ModuleList(nn.Embedding(size, dim) for size in tables)
        self.class_embedding = nn.Embedding(num_classes + 1, dim)
        self.word_embedding = nn.Linear(codec.channels, dim)
        self.level_embedding = nn.Embedding(len(spec.scales), dim)
        self.position_embedding = nn.Embedding(spec.num_positions, dim)
        self.start_embedding = nn.Embedding(self._count(0), dim)
        self.trunk = NextScaleTrunk(self.config, spec.scales)
        depth, heads, multiple = self.config.depth, self.config.heads, self.config.ffn_multiple
        plain = TrunkConfig(dim, depth, heads, multiple, resid_dropout=0.0, ffn_dropout=0.0, token_dropout=0.0)
        self.head.connect(plain, spec.codebook_sizes, spec.scales[-1])
        self.head.reset_parameters()
        initialise_next_scale([module for name, module in self.named_children() if name != "head"], self.config)

    def carried(self, source: Mapping[str, Tensor], sub_code: SubCode = None) -> dict[str, str]:
        """Return which weights an earlier stage hands over (SSQ section 4.2).

        The trunk must be equal and carries over, as do the head's norm, and the embeddings of class, scales and
        positions where their shapes agree. One sub-code also brings its word embedding, and its output layer where that
        reads the hidden state. The same sub-codes bring every tensor of equal name and shape.

        Raises:
            UserError: if the trunks differ, or this model has no such sub-code.
        """
        state = self.state_dict()
        check_equal_shapes(source, state, "trunk")
        pairs = super().carried(source)
        if sub_code == "all":
            return pairs
        count = self.spec.num_sub_codes
        if sub_code is not None and not 0 <= sub_code < count:
            raise UserError(f"sub_code is {sub_code}, and this model has sub-codes 0 to {count - 1}")
        of_codes = ("head.", "embeddings.", *(("word_embedding.",) if sub_code is None else ()))
        pairs = {name: pairs[name] for name in pairs if not name.startswith(of_codes)}
        of_head = {f"head.{name}": f"head.{origin}" for name, origin in self.head.carried(sub_code).items()}
        return pairs | {name: origin for name, origin in of_head.items() if fits(source, origin, state, name)}

    @torch.no_grad()
    def after_handover(self, sub_code: SubCode) -> None:
        """Ignore the other subspaces at first, so that the hidden states are the earlier stage's.

        Their vectors were zero in it, so that their columns of the word embedding are untrained. They have gradients.
        """
        if isinstance(sub_code, int):
            weight, kept = self.word_embedding.weight, self._codec.channels_of(sub_code)
            trained = weight[:, kept].clone()
            weight.zero_()
            weight[:, kept] = trained

    def blocks(self) -> Iterator[nn.Module]:
        """Return the blocks of the trunk."""
        return iter(self.trunk.blocks)

    def loss(self, tokens: Tokens, labels: Tensor, step: int = 0, taps: Collection[int] = ()) -> GeneratorLoss:
        """Cross-entropy of all positions, a mean over positions and sub-codes.

        Args:
            tokens: target codes (B, k, N), coarse scale first.
            labels: (B,) int64 classes.
            step: not used.
            taps: numbers of the blocks whose outputs at the finest scale are returned, counted from 1.
        """
        codes = self.codes_of(tokens)
        self.check_labels(labels)
        self.check_taps(taps)
        condition = self.class_embedding(self.drop_labels(labels))
        features = torch.cat([self._start(condition), *self._words(codes)], dim=1)
        features, hidden = self.trunk(features, condition, taps)
        loss = self.head.loss(features, codes, self.embeddings)
        parts = {str(i): value for i, value in enumerate(loss.per_code)}
        last = {number: rows[:, -self._count(-1) :] for number, rows in hidden.items()}
        return GeneratorLoss(loss.total, parts, loss.unit, loss.is_bound, hidden=last)

    @torch.no_grad()
    def sample(
        self, labels: Tensor, sampler: CategoricalSampler, noise: RowNoise, forced: ForcedCodes | None = None
    ) -> Tokens:
        """Return codes (B, k, N) for labels (B,) int64, with one pass of the trunk per scale.

        Progress of guidance is the scale: with the schedule ``linear`` it begins unguided, as VAR.

        Args:
            labels: classes.
            sampler: the rules.
            noise: of the rows.
            forced: sub-codes of reference images that are written at every scale (ImageFolder section 4).

        Raises:
            UserError: for a class out of range, rules that do not fit (see :meth:`check_sampler`), a head that cannot
                be forced, or forced codes of another shape.
        """
        self.check_classes(labels)
        self.check_sampler(sampler)
        if forced is not None:
            self.check_forced()
            self.check_sampler(replace(sampler, guidance=forced.guidance))
            self.codes_of(Tokens(codes=forced.codes))
        steps = len(self.spec.scales), self.spec.num_sub_codes
        guided = sampler.guided_steps(*steps) if forced is None else steps[0]
        passes = 1 + bool(guided) if forced is None else PASSES
        draw = Draw(sampler, noise, torch.tensor(sampler.scales(*steps), device=labels.device))
        with self.evaluating():
            if forced is None and compiles(self.compile_decoding, labels.device):
                codes = self._write_compiled(labels, draw, guided, passes)
            else:
                cache = self.trunk.new_cache(passes * len(labels))
                codes = self._write(labels, draw, guided, passes, cache, self._draw_scale, forced)
        draw.check()
        return Tokens(codes=codes[: len(labels)])

    def _write_compiled(self, labels: Tensor, draw: Draw, guided_scales: int, passes: int) -> Tensor:
        """Write codes by one graph per scale and number of passes, for as many rows as the largest batch had."""
        dtype = compute_type(self.class_embedding.weight)
        if self._step is None or self._step.device != labels.device:
            self._step = CompiledStep(self._draw_scale, self)
        if self._state is None or not self._state.serves(labels, passes, dtype):
            with torch.inference_mode(False):  # made in inference, it serves everywhere
                cache = self.trunk.new_cache(passes * len(labels))
                self._state = _SharedState(cache, torch.zeros_like(draw.wrong), passes)
        state = self._state
        lacking = state.batch - len(labels)
        labels, keys = (torch.cat([rows, rows[-1:].expand(lacking)]) for rows in (labels, draw.noise.keys))
        state.wrong.zero_()
        own = Draw(draw.sampler, draw.noise.of(keys), draw.scales, wrong=state.wrong)
        with self._step.running():
            codes = self._write(labels, own, guided_scales, passes, state.cache, self._step)
        draw.wrong.logical_or_(state.wrong)
        return codes

    def _write(
        self,
        labels: Tensor,
        draw: Draw,
        guided_scales: int,
        passes: int,
        cache: KVCache,
        step: Callable[..., Tensor],
        forced: ForcedCodes | None = None,
    ) -> Tensor:
        """Write codes scale by scale: (B, k, N), or those of all passes where some are forced.

        Args:
            labels: (B,) int64.
            draw: of B rows.
            guided_scales: from this scale on, the first pass remains alone.
            passes: over the trunk; those after the first have the null class.
            cache: of passes · B rows.
            step: :meth:`_draw_scale`, perhaps compiled.
            forced: see :meth:`sample`.
        """
        batch, written = len(labels), []
        rows = torch.cat([labels, *[torch.full_like(labels, self.num_classes)] * (passes - 1)])
        condition = self.class_embedding(rows)
        features = self._start(condition)
        for scale in range(len(self.spec.scales)):
            if scale == guided_scales and len(condition) > batch:
                condition, features, cache = condition[:batch], features[:batch], cache.rows(batch)
                fix(*cache.tensors())
            count, first = self._count(scale), self._first(scale)
            own = Draw(draw.sampler, draw.noise.spread(count), draw.scales, scale, draw.wrong)
            if forced is not None:
                own = ForcedDraw(own, forced, first)
            codes = step(features, condition, CachedScale(cache, first), own)
            written.append(codes.unflatten(0, (-1, count)).transpose(1, 2).clone())  # a CUDA graph reuses its memory
            if scale + 1 < len(self.spec.scales):
                *_, words = self._words(torch.cat(written, dim=2))
                features = words.repeat(len(condition) // len(words), 1, 1)
        return torch.cat(written, dim=2)

    def _draw_scale(self, features: Tensor, condition: Tensor, cached: CachedScale, draw: Draw) -> Tensor:
        """Codes (M, k) of a scale, for its input (B', n, dim) and the classes (B', dim)."""
        hidden = self.trunk.step(features, condition, cached)
        return self.head.sample(hidden.flatten(0, 1), self.embeddings, draw)

    def check_sampler(self, sampler: Any) -> None:
        super().check_sampler(sampler)
        self.head.check_sampler(sampler)

    def check_forced(self) -> None:
        """Raise UserError if the head cannot write forced sub-codes."""
        if not isinstance(self.head, ClassifierHead):
            raise UserError(
                f"{type(self.head).__name__} writes the sub-codes of a position in an order of its own, and forcing "
                "some needs a fixed one: train with MultiLinearHead, MultiMLPHead or AutoregressiveHead"
            )

    def _start(self, condition: Tensor) -> Tensor:
        """Input (B, n, dim) of the first scale: the class."""
        return condition.unsqueeze(1) + self.start_embedding.weight + self._places(0)

    def _words(self, codes: Tensor) -> Iterator[Tensor]:
        """Inputs (B, n, dim) of the second scale and the following ones, given all or the first scales' codes."""
        for scale, total in enumerate(self._codec.partial_sums(codes), start=1):
            if scale < len(self.spec.scales):
                words = functional.adaptive_avg_pool2d(total, self.spec.scales[scale]).flatten(2).transpose(1, 2)
                # vectors are float32 whatever the weights are
                yield self.word_embedding(words.type_as(self.word_embedding.weight)) + self._places(scale)

    def _places(self, scale: int) -> Tensor:
        """Level and position embedding (n, dim) of a scale."""
        first = self._first(scale)
        return self.level_embedding.weight[scale] + self.position_embedding.weight[first : first + self._count(scale)]

    def _first(self, scale: int) -> int:
        """Positions of the scales before."""
        return sum(self._count(before) for before in range(scale))

    def _count(self, scale: int) -> int:
        height, width = self.spec.scales[scale]
        return height * width


class _SharedState:
    """Cache and flags that the compiled steps of all batches write in place."""

    def __init__(self, cache: KVCache, wrong: Tensor, passes: int) -> None:
        self.cache, self.wrong, self.passes = cache, wrong, passes
        self.batch = cache.keys[0].shape[0] // passes
        fix(wrong, *cache.tensors())

    def serves(self, labels: Tensor, passes: int, dtype: torch.dtype) -> bool:
        """True for as many images or fewer in as many passes, on the device, and in the type of the cache."""
        keys = self.cache.keys[0]
        return len(labels) <= self.batch and (passes, labels.device, dtype) == (self.passes, keys.device, keys.dtype)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Leave the state out of copies of a generator."""
        return type(None), ()
