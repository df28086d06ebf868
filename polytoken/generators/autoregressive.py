"""Class-conditional generator of k codes a position: embeddings, trunk, head (LlamaGen, FQGAN 3.3, SSQ 4)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from polytoken.errors import UserError
from polytoken.generators.heads import Head
from polytoken.generators.noise import NoisyCodes, SubTokenNoise
from polytoken.sampling.categorical import RowNoise, Sampler, guide
from polytoken.specs import TokenSpec
from polytoken.transformer import RMSNorm, Trunk, TrunkConfig

INITIAL_DEVIATION = 0.02

ChooseAt = Callable[[Tensor, int, int], Tensor]
"""(logits (B or 2B, K_i), position, sub-code i) to codes (B,)."""


class GeneratorLoss(NamedTuple):
    """Cross-entropy of a batch.

    Args:
        total: mean over the sub-codes, in nats; what training minimises.
        per_code: (k,) mean over images and positions, in nats.
        noise_rate: share of the input sub-codes that were noise, a float32 scalar.
    """

    total: Tensor
    per_code: Tensor
    noise_rate: Tensor


class AutoregressiveGenerator(nn.Module):
    """Writes the codes of an image row by row: class → codes at position 0 → … (facts B2, B3).

    Args:
        spec: shape of the codes; one scale.
        num_classes: classes; index ``num_classes`` of the class embedding is the null class of guidance.
        trunk: sizes and regularisation.
        head: what predicts the sub-codes of a position; it is connected here.
        aggregation: how k embeddings become one input: concatenated and led through a linear layer (as released) or
            summed. With one codebook its embedding is the input.
        noise: noisy sub-tokens in training; None is clean.

    Raises:
        ValueError: for a spec of several scales, or a head that cannot predict its codes.
    """

    def __init__(
        self,
        spec: TokenSpec,
        num_classes: int,
        trunk: TrunkConfig,
        head: Head,
        aggregation: Literal["concatenation", "sum"] = "concatenation",
        noise: SubTokenNoise | None = None,
    ) -> None:
        super().__init__()
        if len(spec.scales) != 1:
            raise UserError(
                f"these codes have {len(spec.scales)} scales {list(spec.scales)} and AutoregressiveGenerator writes "
                "one grid: use a tokenizer of one scale"
            )
        if num_classes < 1:
            raise UserError(f"num_classes is {num_classes}: a generator needs at least one class")
        if aggregation not in ("concatenation", "sum"):
            raise UserError(f"aggregation is {aggregation!r}: choose concatenation or sum")
        self.spec = spec
        self.num_classes = num_classes
        self.noise = noise
        self.embeddings = nn.ModuleList(nn.Embedding(size, trunk.dim) for size in spec.codebook_sizes)
        self.aggregation: nn.Linear | None = None
        if spec.num_sub_codes > 1 and aggregation == "concatenation":
            self.aggregation = nn.Linear(spec.num_sub_codes * trunk.dim, trunk.dim)
        self.class_embedding = nn.Embedding(num_classes + 1, trunk.dim)
        self.trunk = Trunk(trunk, spec.scales[0])
        head.connect(trunk, spec.codebook_sizes, spec.scales[0])
        self.head = head
        self.apply(_initialise)
        head.initialise()

    @property
    def norm(self) -> RMSNorm:
        """The final norm, which the head owns: an autoregressive head comes before it."""
        return self.head.norm

    def hidden(self, codes: Tensor, labels: Tensor) -> Tensor:
        """What the head reads: trunk output (B, N, dim) for codes (B, k, N) int64 and labels (B,) int64.

        Position t has seen the class and the codes before t. In training mode labels and channels are dropped.

        Raises:
            ValueError: for another grid or number of sub-codes, a code outside its codebook, or a class out of range.
        """
        self._check_codes(codes)
        self._check_labels(labels)
        return self._hidden(codes, labels)

    def loss(self, codes: Tensor, labels: Tensor, step: int = 0) -> GeneratorLoss:
        """Teacher-forced cross-entropy of codes (B, k, N) int64 given labels (B,) int64.

        Args:
            codes: targets; in training mode the input may be a noisy copy.
            labels: classes.
            step: optimizer steps done, for the noise's schedule.

        Raises:
            ValueError: see :meth:`hidden`.
        """
        self._check_codes(codes)
        self._check_labels(labels)
        if self.noise is not None and self.training:
            read = self.noise(codes, self.spec.codebook_sizes, step)
        else:
            read = NoisyCodes(codes, codes, torch.zeros((), device=codes.device))
        hidden = self._hidden(read.trunk, labels)
        per_code = self.head.loss(hidden, codes, self.embeddings, read.head)
        return GeneratorLoss(per_code.mean(), per_code, read.rate)

    @torch.no_grad()
    def generate(self, labels: Tensor, sampler: Sampler, seed: int, first_index: int = 0) -> Tensor:
        """Write images of the given classes.

        Args:
            labels: (B,) int64.
            sampler: the rules.
            seed: of the whole set of samples.
            first_index: row i's randomness depends on (seed, first_index + i), whatever the batch.

        Returns:
            Codes (B, k, N) int64.

        Raises:
            ValueError: for a class out of range, or rules that do not fit the number of sub-codes.
        """
        self._check_labels(labels)
        num_sub_codes, num_positions = self.spec.num_sub_codes, self.spec.num_positions
        sampler.check(num_sub_codes)
        noise = RowNoise(seed, first_index, len(labels), labels.device)

        def choose(logits: Tensor, position: int, sub_code: int) -> Tensor:
            if len(logits) > len(labels):
                logits = guide(logits, sampler.scale(sub_code, position, num_positions))
            return sampler.choose(logits, sub_code, noise.gumbel(position, sub_code, logits.shape[1]))

        was_training = self.training
        self.eval()
        try:
            return self.write(labels, choose, sampler.guided_positions(num_sub_codes, num_positions))
        finally:
            self.train(was_training)

    def write(self, labels: Tensor, choose: ChooseAt, guided_positions: int = 0) -> Tensor:
        """Write codes (B, k, N) position by position, whatever rule chooses them.

        Args:
            labels: (B,) int64.
            choose: (logits, position, sub-code) to codes (B,); see ``guided_positions`` for the logits' rows.
            guided_positions: up to this position the logits have 2B rows, those given the null class last; then B.
        """
        batch = len(labels)
        rows = torch.cat([labels, torch.full_like(labels, self.num_classes)]) if guided_positions else labels
        trunk_cache, head_cache = self.trunk.new_cache(len(rows)), self.head.new_cache(len(rows))
        codes = labels.new_empty(batch, self.spec.num_sub_codes, self.spec.num_positions)
        features = self.class_embedding(rows).unsqueeze(1)
        for position in range(self.spec.num_positions):
            if position == guided_positions and len(features) > batch:
                features = features[:batch]
                trunk_cache.keep_rows(batch)
                if head_cache is not None:
                    head_cache.keep_rows(batch)
            hidden = self.trunk.step(features, position, trunk_cache).squeeze(1)
            chosen = self.head.sample(hidden, self.embeddings, partial(_choose_here, choose, position), head_cache)
            codes[:, :, position] = chosen
            features = self._embed(chosen.unsqueeze(2).repeat(len(features) // batch, 1, 1))
        return codes

    def _hidden(self, codes: Tensor, labels: Tensor) -> Tensor:
        dropped = self.trunk.config.class_dropout if self.training else 0.0
        if dropped:
            labels = labels.masked_fill(torch.rand(labels.shape, device=labels.device) < dropped, self.num_classes)
        start = self.class_embedding(labels).unsqueeze(1)
        return self.trunk(torch.cat([start, self._embed(codes[:, :, :-1])], dim=1))

    def _embed(self, codes: Tensor) -> Tensor:
        """Codes (B, k, n) to the trunk's input (B, n, dim)."""
        embedded = [table(codes[:, i]) for i, table in enumerate(self.embeddings)]
        if self.aggregation is not None:
            return self.aggregation(torch.cat(embedded, dim=2))
        return torch.stack(embedded).sum(0) if len(embedded) > 1 else embedded[0]

    def _check_codes(self, codes: Tensor) -> None:
        sizes, positions = self.spec.codebook_sizes, self.spec.num_positions
        if codes.ndim != 3 or codes.shape[1:] != (len(sizes), positions):
            height, width = self.spec.scales[0]
            raise UserError(
                f"codes have shape {tuple(codes.shape)} and the generator reads (batch, {len(sizes)} sub-codes, "
                f"{positions} positions of a {height} × {width} grid): use the token store it was built for"
            )
        bounds = torch.tensor(sizes, device=codes.device).view(1, -1, 1)
        if bool(((codes < 0) | (codes >= bounds)).any()):
            for i, size in enumerate(sizes):
                low, high = int(codes[:, i].min()), int(codes[:, i].max())
                if low < 0 or high >= size:
                    raise UserError(
                        f"sub-code {i} ranges from {low} to {high} and its codebook has {size} entries: the codes are "
                        "of another tokenizer"
                    )

    def _check_labels(self, labels: Tensor) -> None:
        if labels.ndim != 1 or labels.dtype != torch.int64:
            raise UserError(f"labels are {labels.dtype} {tuple(labels.shape)}: they must be int64 (batch,)")
        if bool(((labels < 0) | (labels >= self.num_classes)).any()):
            raise UserError(
                f"labels range from {int(labels.min())} to {int(labels.max())} and the generator knows classes 0 to "
                f"{self.num_classes - 1}"
            )


def _choose_here(choose: ChooseAt, position: int, logits: Tensor, sub_code: int) -> Tensor:
    return choose(logits, position, sub_code)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
        bias = getattr(module, "bias", None)
        if bias is not None:
            nn.init.zeros_(cast(Tensor, bias))
