"""Multi-scale residual quantization (VAR, arXiv 2404.02905; ImageFolder, arXiv 2410.01756)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytoken.errors import SettingError, UserError
from polytoken.precision import full_precision
from polytoken.quantizers.base import Quantizer
from polytoken.quantizers.vector import initialise_codebook, nearest_codes
from polytoken.ranges import MOST_CODES, at_least, one_of, within
from polytoken.specs import Encoding

OverScales = Literal["mean", "sum"]
IMAGEFOLDER_SCALES = (1, 1, 2, 3, 3, 4, 5, 6, 8, 11)
"""Sides of ImageFolder's ten grids, 286 codes."""


class MultiScaleQuantizer(Quantizer):
    """A sum of maps, each quantized on a finer grid than the one before, by one codebook (ImageFolder eqs. 2 and 3).

    At each scale the rest of the features is averaged down to the scale's grid and replaced by its nearest codes. These
    are enlarged to the full grid (bicubic), blended with a convolution of themselves, γ · conv(ẑ) + (1 − γ) · ẑ
    (eq. 2), and subtracted from the rest. The gradient of the sum passes straight through.

    The losses compare the sum after each scale with the features, as means over scales, samples and entries: codebook
    ‖ẑ_s − sg z‖² and commitment β‖sg ẑ_s − z‖². Quantizer dropout keeps the first n scales of some samples in training
    (eq. 3), n uniform from ``dropout_start`` to all; a dropped scale counts in no loss.

    Args:
        scales: side of each square grid, coarse first; the last one is that of the features.
        codebook_size: V.
        code_dim: d.
        commitment_weight: β.
        commitment_over_scales: ``mean`` over the scales, as VAR, or their ``sum``, as ImageFolder's release, whose β is
            in effect S times as large.
        normalize: compare directions, as ImageFolder; otherwise distances, as VAR. Codes are returned as they are.
        num_convolutions: most convolutions that the scales share, evenly: 1 for all of them, S or more for one each.
        blend: γ.
        dropout: share p of the samples that lose scales.
        dropout_start: N_start, the scales that no sample loses.
        max_matrix_elements: the most entries of the (positions × V) matrix ever held at once.

    Raises:
        UserError: if the scales do not grow, or a value is out of its range.
    """

    def __init__(
        self,
        scales: Sequence[int] = IMAGEFOLDER_SCALES,
        codebook_size: int = 4096,
        code_dim: int = 32,
        commitment_weight: float = 0.25,
        commitment_over_scales: OverScales = "mean",
        normalize: bool = True,
        num_convolutions: int = 4,
        blend: float = 0.5,
        dropout: float = 0.0,
        dropout_start: int = 3,
        max_matrix_elements: int = 2**24,
    ) -> None:
        within(1, MOST_CODES, self, codebook_size=codebook_size)
        at_least(1, self, code_dim=code_dim, max_matrix_elements=max_matrix_elements)
        at_least(1, self, scales=scales, num_convolutions=num_convolutions)
        at_least(0, self, commitment_weight=commitment_weight)
        one_of(self, get_args(OverScales), commitment_over_scales=commitment_over_scales)
        within(0, 1, self, blend=blend, dropout=dropout)
        super().__init__((code_dim,), (code_dim,), (codebook_size,))
        if list(scales) != sorted(scales):
            raise SettingError("scales", scales, f"scales are {list(scales)}: give sides of grids from coarse to fine")
        if dropout > 0 and not 1 <= dropout_start <= len(scales):
            message = f"dropout_start is {dropout_start}: {len(scales)} scales keep the first 1 to {len(scales)}"
            raise SettingError("dropout_start", dropout_start, message)
        self.sides = tuple(scales)
        self.commitment_weight = commitment_weight
        self.commitment_factor = 1.0 if commitment_over_scales == "mean" else float(len(scales))
        self.normalize = normalize
        self.blend = blend
        self.dropout = dropout
        self.dropout_start = dropout_start
        self.max_matrix_elements = max_matrix_elements
        self.embedding = nn.Embedding(codebook_size, code_dim)
        count = min(num_convolutions, len(scales))
        self.convolutions = nn.ModuleList(nn.Conv2d(code_dim, code_dim, 3, padding=1) for _ in range(count))
        self.convolution_of = shared_convolutions(len(scales), count)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        initialise_codebook(self.embedding, self.normalize)
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv2d)
            convolution.reset_parameters()

    def scales(self, grid: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Grids of the codes; raises UserError unless the last is ``grid``."""
        last = self.sides[-1]
        if tuple(grid) != (last, last):
            raise UserError(
                f"scales end at {last} × {last} and the features have a grid of {grid[0]} × {grid[1]}: make the last "
                "scale that grid, or choose another image size"
            )
        return tuple((side, side) for side in self.sides)

    def depths(self, batch: int, device: torch.device) -> Tensor | None:
        """Draw the number of scales (B,) that each sample keeps; None where none is dropped."""
        if not self.training or self.dropout == 0:
            return None
        drawn = torch.randint(self.dropout_start, len(self.sides) + 1, (batch,), device=device)
        return torch.where(torch.rand(batch, device=device) < self.dropout, drawn, len(self.sides))

    def forward(self, features: Tensor, depths: Tensor | None = None) -> Encoding:
        """Features (B, d, K, K) to codes (B, 1, N), coarse scale first, and the sum of all scales (B, d, K, K).

        Args:
            features: to be quantized.
            depths: scales (B,) that each sample keeps, at least one; None draws them (:meth:`depths`). The codes are of
                all scales.
        """
        grid = (features.shape[2], features.shape[3])
        self.scales(grid)
        depths = self.depths(features.shape[0], features.device) if depths is None else depths
        with full_precision(features.device):
            features = features.float()
            rest = features.detach()
            total = torch.zeros_like(rest)
            codes, errors = [], []
            for scale, side in enumerate(self.sides):
                found = self._nearest(functional.adaptive_avg_pool2d(rest, side))
                added = self._enlarged(found, scale, grid)
                rest = rest - added.detach()
                keeps = None if depths is None else (scale < depths).float().view(-1, 1, 1, 1)
                total = total + (added if keeps is None else keeps * added)
                codes.append(found.flatten(1))
                if self.training:
                    errors.append(self._errors(total, features, keeps))
            quantized = features + (total - features).detach()
            return Encoding(
                codes=torch.cat(codes, dim=1).unsqueeze(1),
                quantized=quantized,
                subspaces=(quantized,),
                losses=self._losses(errors) if self.training else {},
                latents=(features,),
                code_vectors=(total,),
                kept=None if depths is None else depths == len(self.sides),
            )

    def embed_codes(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes (B, 1, N) to the sum of all scales (B, d, K, K) float32."""
        self.check_codes(codes, grid)
        *_, total = self.partial_sums(codes, grid)
        return total

    def partial_sums(self, codes: Tensor, grid: tuple[int, int]) -> Iterator[Tensor]:
        """Yield the sum (B, d, K, K) after each scale of codes (B, 1, n), in float32: what a generator reads."""
        self.check_sub_codes(codes)
        ends = list(accumulate(side**2 for side in self.sides))
        if codes.shape[2] not in ends:
            raise UserError(f"got codes of {codes.shape[2]} positions, and scales of {[*self.sides]} end after {ends}")
        total, first = torch.zeros((), device=codes.device), 0
        for scale, side in enumerate(self.sides):
            if first == codes.shape[2]:
                return
            part = codes[:, 0, first : first + side**2].unflatten(1, (side, side))
            with full_precision(codes.device):
                total = total + self._enlarged(part, scale, grid)
            first += side**2
            yield total

    def codebooks(self) -> tuple[Tensor, ...]:
        codebook = self.embedding.weight.detach().float()
        return (functional.normalize(codebook, dim=-1) if self.normalize else codebook,)

    def _nearest(self, maps: Tensor) -> Tensor:
        """Codes (B, s, s) of maps (B, d, s, s)."""
        rows, (codebook,) = maps.permute(0, 2, 3, 1), self.codebooks()
        if self.normalize:
            rows = functional.normalize(rows, dim=-1)
        return nearest_codes(rows.flatten(0, 2), codebook, self.max_matrix_elements).view(rows.shape[:3])

    def _enlarged(self, codes: Tensor, scale: int, grid: tuple[int, int]) -> Tensor:
        """Contribution (B, d, K, K) of a scale's codes (B, s, s) to the sum (ImageFolder eq. 2)."""
        vectors = functional.embedding(codes, self.embedding.weight.float()).permute(0, 3, 1, 2)
        if vectors.shape[2:] != grid:
            vectors = functional.interpolate(vectors, size=grid, mode="bicubic")
        convolution = self.convolutions[self.convolution_of[scale]]
        convolved = convolution(vectors.to(self.embedding.weight.dtype)).float()
        return self.blend * convolved + (1 - self.blend) * vectors

    def _errors(self, total: Tensor, features: Tensor, keeps: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codebook and commitment error after a scale, means over the samples that keep it."""
        pairs = (total, features.detach()), (total.detach(), features)
        squares = [functional.mse_loss(one, other, reduction="none").mean((1, 2, 3)) for one, other in pairs]
        if keeps is None:
            codebook, commitment = (square.mean() for square in squares)
        else:
            weights = keeps.flatten() / keeps.sum().clamp_min(1)
            codebook, commitment = (square @ weights for square in squares)
        return codebook, commitment

    def _losses(self, errors: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        codebook, commitment = (torch.stack(parts).mean() for parts in zip(*errors, strict=True))
        return {"codebook": codebook, "commitment": self.commitment_weight * self.commitment_factor * commitment}


def shared_convolutions(num_scales: int, count: int) -> tuple[int, ...]:
    """Number of the convolution of each scale: that whose place on [0, 1] is nearest to the scale's.

    Places of convolutions are even from 1/(3·count) to 1 − 1/(3·count), those of scales from 0 to 1. At equal distance
    the later one is taken, in exact arithmetic. For four convolutions, one, or one per scale this is VAR's rule; for
    other numbers VAR's places begin at 1/(2·count), and some scales take another convolution.
    """
    first = Fraction(1, 3 * count)
    places = [first + (1 - 2 * first) * Fraction(i, max(1, count - 1)) for i in range(count)]
    scales = (Fraction(scale, max(1, num_scales - 1)) for scale in range(num_scales))
    return tuple(min(range(count), key=lambda i: (abs(places[i] - scale), -i)) for scale in scales)
