"""Class-conditional autoregressive generator of k sub-codes per position (LlamaGen, FQGAN 3.3, SSQ 4)."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from polytoken.errors import UserError
from polytoken.generators.base import Codec, Generator, GeneratorLoss, SubCode
from polytoken.generators.decoding import CompiledStep, DecodingState, compiles, packs_weights
from polytoken.generators.heads import ClassifierHead, Head
from polytoken.generators.noise import NoisyCodes, SubTokenNoise
from polytoken.handover import check_equal_shapes, fits, shape
from polytoken.precision import compute_type
from polytoken.ranges import one_of
from polytoken.sampling import CategoricalSampler, Draw, RowNoise
from polytoken.specs import LatentSpec, Tokens, TokenSpec
from polytoken.transformer import Block, RotaryCache, Trunk, TrunkConfig, initialise

Aggregation = Literal["concatenation", "sum"]


class AutoregressiveGenerator(Generator):
    """Autoregressive generator of k sub-codes per position, in raster order after the class (LlamaGen, FQGAN, SSQ).

    Several scales are one sequence, coarse scale first. A code's rotary position is its place in units of the finest
    grid, and a learned level embedding says which scale it belongs to; one scale has none.

    Args:
        trunk: sizes and regularisation.
        head: predicts the sub-codes of a position.
        aggregation: how k embeddings become one input: ``concatenation`` followed by a linear layer, as in FQGAN's
            released code, or ``sum``. With one codebook its embedding is the input.
        noise: noisy sub-tokens in training (SSQ section 4.2); None leaves the inputs clean.
    """

    spec: TokenSpec
    config: TrunkConfig
    is_causal: ClassVar = True
    sampler_type: ClassVar = CategoricalSampler
    forward_methods: ClassVar = ("loss", "generate", "sample", "write")
    aggregation: nn.Linear | None
    class_embedding: nn.Embedding
    trunk: Trunk
    level_embedding: nn.Embedding | None

    def __init__(
        self,
        trunk: TrunkConfig,
        head: Head,
        aggregation: Aggregation = "concatenation",
        noise: SubTokenNoise | None = None,
    ) -> None:
        super().__init__(trunk)
        one_of(self, get_args(Aggregation), aggregation=aggregation)
        self.concatenates = aggregation == "concatenation"
        self.noise = noise
        # Sub-modules are initialised and listed in the order of registration, so connect() fills reserved places.
        self.embeddings = nn.ModuleList()
        for name in ("aggregation", "class_embedding", "trunk", "level_embedding"):
            self.register_module(name, None)
        self.head = head
        self._step: CompiledStep | None = None
        self._state: DecodingState | None = None

    @property
    def depth(self) -> int:
        return self.config.depth

    @property
    def width(self) -> int:
        return self.config.dim

    @property
    def hidden_grid(self) -> tuple[int, int]:
        """Grid of the finest scale, whose positions the loss returns as ``hidden``."""
        return self.spec.scales[-1]

    def connect(self, spec: TokenSpec | LatentSpec, num_classes: int, codec: Codec | None = None) -> None:
        """Create embeddings, trunk and head.

        Index ``num_classes`` of the class embedding is the null class of guidance.

        Raises:
            UserError: for latents, or a head that cannot predict the codes.
        """
        if not isinstance(spec, TokenSpec):
            raise UserError(
                "AutoregressiveGenerator models codes, and this store holds latents: use a tokenizer with a quantizer"
            )
        self.take_spec(spec, num_classes)
        dim = self.config.dim
        self.embeddings.extend(nn.Embedding(size, dim) for size in spec.codebook_sizes)
        if spec.num_sub_codes > 1 and self.concatenates:
            self.aggregation = nn.Linear(spec.num_sub_codes * dim, dim)
        self.class_embedding = nn.Embedding(num_classes + 1, dim)
        self.trunk = Trunk(self.config, spec.scales)
        if len(spec.scales) > 1:
            self.level_embedding = nn.Embedding(len(spec.scales), dim)
        self.head.connect(self.config, spec.codebook_sizes, self.hidden_grid)
        for module in (self.embeddings, self.aggregation, self.class_embedding, self.trunk, self.level_embedding):
            if module is not None:
                module.apply(initialise)
        self.head.reset_parameters()

    def check_training(self) -> None:
        k = self.spec.num_sub_codes
        reads = self.head.reads_codes and k > 1 if isinstance(self.head, ClassifierHead) else True
        if self.noise is not None and self.noise.where != "trunk" and not reads:
            raise UserError(
                f"noise.where is {self.noise.where}, and {type(self.head).__name__} reads none of a position's {k} "
                "sub-codes: set it to trunk"
            )

    @property
    def needs_code_vectors(self) -> bool:
        return self.noise is not None and self.noise.nearest is not None

    def take_code_vectors(self, vectors: Sequence[Tensor]) -> None:
        assert self.noise is not None
        self.noise.connect(vectors)

    def carried(self, source: Mapping[str, Tensor], sub_code: SubCode = None) -> dict[str, str]:
        """Return which weights an earlier stage hands over (SSQ section 4.2).

        The trunk must be equal and carries over, as do the class embedding, the level embedding of as many scales and
        the head's norm. One sub-code also brings its embedding table, and its output layer where the shapes agree and
        that reads the hidden state. The same sub-codes bring every tensor of equal name and shape.

        Raises:
            UserError: if the trunks differ, or ``sub_code`` does not fit.
        """
        state = self.state_dict()
        check_equal_shapes(source, state, "trunk")
        if sub_code == "all":
            return super().carried(source)
        pairs = {name: name for name in state if name.startswith("trunk.")}
        optional = {f"{name}.weight": f"{name}.weight" for name in ("class_embedding", "level_embedding")}
        optional |= {f"head.{name}": f"head.{origin}" for name, origin in self.head.carried(sub_code).items()}
        if sub_code is not None:
            self._check_sub_code(source, state, sub_code)
            optional[f"embeddings.{sub_code}.weight"] = "embeddings.0.weight"
        return pairs | {name: origin for name, origin in optional.items() if fits(source, origin, state, name)}

    @torch.no_grad()
    def after_handover(self, sub_code: SubCode) -> None:
        """Remove the influence of the other sub-codes, so that the trunk's hidden states are the earlier stage's.

        Their block of the aggregation becomes zero; when embeddings are summed, their tables do. Both have gradients.
        """
        if not isinstance(sub_code, int):
            return
        if self.aggregation is not None:
            weight, bias = self.aggregation.weight, self.aggregation.bias
            dim = weight.shape[0]
            weight.zero_()
            bias.zero_()
            weight[:, sub_code * dim : (sub_code + 1) * dim].fill_diagonal_(1.0)
            return
        for i, table in enumerate(self.embeddings):
            if i != sub_code:
                cast(nn.Embedding, table).weight.zero_()

    def _check_sub_code(self, source: Mapping[str, Tensor], state: Mapping[str, Tensor], sub_code: int) -> None:
        tables = [name for name in source if name.startswith("embeddings.")]
        if len(tables) != 1:
            raise UserError(
                f"sub_code is {sub_code}, but the weights to start from read {len(tables)} sub-codes: leave it out"
            )
        if not 0 <= sub_code < len(self.embeddings):
            raise UserError(f"sub_code is {sub_code}, and this model has sub-codes 0 to {len(self.embeddings) - 1}")
        table = f"embeddings.{sub_code}.weight"
        if not fits(source, "embeddings.0.weight", state, table):
            raise UserError(
                f"the earlier stage's embedding table is {shape(source, 'embeddings.0.weight')} and that of sub-code "
                f"{sub_code} is {shape(state, table)}: the codes differ, leave sub_code out or choose the right one"
            )

    def blocks(self) -> Iterator[nn.Module]:
        """Return the transformer blocks of trunk and head."""
        return (module for module in self.modules() if isinstance(module, Block))

    def hidden(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Return the head's input: trunk output (B, N, dim) for codes (B, k, N) int64 and labels (B,) int64.

        Position t has seen the class and the codes before t. In training mode labels and channels are dropped.

        Raises:
            UserError: for another grid or number of sub-codes.
        """
        codes = self.codes_of(Tokens(codes=codes))
        self.check_labels(labels)
        return self._hidden(codes, labels)[0]

    def loss(self, tokens: Tokens, labels: Tensor, step: int = 0, taps: Collection[int] = ()) -> GeneratorLoss:
        """Teacher-forced cross-entropy, a mean over the sub-codes (iFSQ eq. 10, Ideal eqs. 12, 13).

        Row i of a tapped output is of the finest scale; it has seen the class and all codes before the one at i, which
        it predicts.

        Args:
            tokens: target codes (B, k, N); in training mode the input may be a noisy copy.
            labels: (B,) int64 classes.
            step: optimizer steps done, for the noise's schedule.
            taps: numbers of the trunk's blocks whose outputs are returned, counted from 1.
        """
        codes = self.codes_of(tokens)
        self.check_taps(taps)
        self.check_labels(labels)
        statistics = {}
        read = NoisyCodes(codes, codes, torch.zeros((), device=codes.device))
        if self.noise is not None and self.training:
            read = self.noise(codes, self.spec.codebook_sizes, step)
            statistics["noise_rate"] = read.rate
        hidden, tapped = self._hidden(read.trunk, labels, taps)
        loss = self.head.loss(hidden, codes, self.embeddings, read.head)
        parts = {str(i): value for i, value in enumerate(loss.per_code)}
        finest = {number: rows[:, -math.prod(self.hidden_grid) :] for number, rows in tapped.items()}
        return GeneratorLoss(loss.total, parts, loss.unit, loss.is_bound, statistics, finest, read.replaced)

    def check_sampler(self, sampler: Any) -> None:
        super().check_sampler(sampler)
        self.head.check_sampler(sampler)

    @torch.no_grad()
    def generate(self, labels: Tensor, sampler: CategoricalSampler, seed: int, first_index: int = 0) -> Tensor:
        """Write images of the given classes.

        Args:
            labels: (B,) int64.
            sampler: the rules.
            seed: of the whole set of samples.
            first_index: row i's randomness depends on (seed, first_index + i), not on the batch.

        Returns:
            Codes (B, k, N) int64.

        Raises:
            UserError: for a class out of range, or rules that do not fit; see :meth:`check_sampler`.
        """
        codes = self.sample(labels, sampler, RowNoise(seed, first_index, len(labels), labels.device)).codes
        assert codes is not None
        return codes

    @torch.no_grad()
    def sample(self, labels: Tensor, sampler: CategoricalSampler, noise: RowNoise) -> Tokens:
        """Return codes (B, k, N) for labels (B,) int64; see :meth:`generate`."""
        self.check_classes(labels)
        self.check_sampler(sampler)
        steps = self.spec.num_positions, self.spec.num_sub_codes
        draw = Draw(sampler, noise, torch.tensor(sampler.scales(*steps), device=labels.device))
        with self.evaluating():
            codes = self.write(labels, draw, sampler.guided_steps(*steps))
        draw.check()
        return Tokens(codes=codes)

    @torch.no_grad()
    def write(self, labels: Tensor, draw: Draw, guided_positions: int = 0) -> Tensor:
        """Write codes (B, k, N) position by position, compiled where ``compile_decoding`` says so.

        Args:
            labels: (B,) int64.
            draw: draws the codes; see ``guided_positions`` for the logits' rows.
            guided_positions: up to this position the logits have 2B rows, those given the null class last; then B.
        """
        batch = len(labels)
        rows = torch.cat([labels, torch.full_like(labels, self.num_classes)]) if guided_positions else labels
        features = self.class_embedding(rows).unsqueeze(1)
        if compiles(self.compile_decoding, labels.device):
            return self._write_compiled(features, draw, guided_positions)
        trunk_cache, head_cache = self.trunk.new_cache(len(rows)), self.head.new_cache(len(rows))
        codes = labels.new_empty(batch, self.spec.num_sub_codes, self.spec.num_positions)
        for position in range(self.spec.num_positions):
            if position == guided_positions and len(features) > batch:
                features, trunk_cache = features[:batch], trunk_cache.rows(batch)
                head_cache = head_cache and head_cache.rows(batch)
            codes[:, :, position], features = self.decode(features, position, draw, trunk_cache, head_cache)
        return codes

    def compiled_step(self, features: Tensor, draw: Draw) -> tuple[CompiledStep, DecodingState]:
        """Return the compiled step, and a state that has the rows of features (B', 1, dim) and draws of B rows.

        Both are kept for later batches of as many images or fewer.
        """
        if self._step is None or self._step.device != features.device:
            self._step = CompiledStep(self._advance, self)
        dtype = compute_type(self.class_embedding.weight)
        if self._state is None or not self._state.serves(features, draw, dtype):
            self._state = self._new_state(features, draw)
        return self._step, self._state

    def _write_compiled(self, features: Tensor, draw: Draw, guided_positions: int) -> Tensor:
        """Write codes by one graph for all positions with 2B rows, and one for those with B."""
        step, state = self.compiled_step(features, draw)
        state.begin(features, draw)
        with step.running(packs=packs_weights(state.features.shape[0], state.trunk_cache.keys[0].dtype)):
            for position in range(self.spec.num_positions):
                if position == guided_positions and len(state.features) > len(state):
                    state = state.first_half
                step(state)
                state.position.add_(1)
        draw.wrong.logical_or_(state.draw.wrong)
        return state.codes[: len(draw.noise)].clone()

    def _new_state(self, features: Tensor, draw: Draw) -> DecodingState:
        batch, keys = len(draw.noise), draw.noise.keys
        with torch.inference_mode(False):  # a state made in inference serves everywhere
            own = Draw(draw.sampler, draw.noise.of(keys.clone()), draw.scales.clone())
            return DecodingState(
                keys.new_zeros(()),
                torch.zeros_like(features),
                keys.new_zeros(batch, self.spec.num_sub_codes, self.spec.num_positions),
                own,
                self.trunk.new_cache(features.shape[0]),
                self.head.new_cache(features.shape[0]),
            )

    def _advance(self, state: DecodingState) -> None:
        """Take the next step, in place."""
        found = self.decode(state.features, state.position, state.draw, state.trunk_cache, state.head_cache)
        state.codes.index_copy_(2, state.position.view(1), found[0].unsqueeze(2))
        state.features.copy_(found[1])

    def decode(
        self,
        features: Tensor,
        position: int | Tensor,
        draw: Draw,
        trunk_cache: RotaryCache,
        head_cache: RotaryCache | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Take one step: draw the codes of a position, and embed them.

        With ``position`` as a tensor this is a fixed-shape function of tensors without host synchronisation, which
        ``torch.compile(fullgraph=True)`` holds whole. A Python integer lets attention read a slice of the cache, which
        is faster in eager mode.

        Args:
            features: (B', 1, dim), embedded class or codes of the position before; B' is 2B under guidance, else B.
            position: an integer, or an int64 tensor ().
            draw: of any position.
            trunk_cache: written to.
            head_cache: written to.

        Returns:
            Codes (B, k), and the features (B', 1, dim) of the next step.
        """
        hidden = self.trunk.step(features, position, trunk_cache).squeeze(1)
        codes = self.head.sample(hidden, self.embeddings, draw.at(position), head_cache)
        following = codes.unsqueeze(2).repeat(features.shape[0] // codes.shape[0], 1, 1)
        return codes, self._embed(following, position).type_as(features)  # float32 under autocast, as in training

    def _hidden(self, codes: Tensor, labels: Tensor, taps: Collection[int] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        labels = self.drop_labels(labels)
        start = self.class_embedding(labels).unsqueeze(1)
        return self.trunk(torch.cat([start, self._embed(codes[:, :, :-1])], dim=1), taps)

    def _embed(self, codes: Tensor, first: int | Tensor = 0) -> Tensor:
        """Codes (B, k, n) of position ``first`` and after to the trunk's input (B, n, dim)."""
        embedded = [table(codes[:, i]) for i, table in enumerate(self.embeddings)]
        if self.aggregation is not None:
            features = self.aggregation(torch.cat(embedded, dim=2))
        else:
            features = torch.stack(embedded).sum(0) if len(embedded) > 1 else embedded[0]
        if self.level_embedding is None:
            return features
        places = torch.arange(codes.shape[2], device=codes.device) + first
        ends = accumulate(height * width for height, width in self.spec.scales[:-1])
        levels = torch.stack([places >= end for end in ends]).sum(0)  # no table: compiled steps would copy it
        return features + self.level_embedding(levels)
