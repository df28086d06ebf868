"""Groups of similar codes, for statistics of codebooks that are large against the number of images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from polytoken.precision import full_precision
from polytoken.tokenizers.base import Tokenizer

CODES_AT_ONCE = 256


def code_groups(tokenizer: Tokenizer, sub_code: int, counts: Tensor, num_groups: int, seed: int = 0) -> Tensor:
    """Group (K,) int64 of each code: k-means of the code vectors, weighted by use; codes that never occur are in 0.

    A function of the codes cannot have more mutual information than they have, so groups give lower bounds.

    Args:
        tokenizer: whose codes they are.
        sub_code: number of the codebook.
        counts: occurrences (K,) of each code; a codebook of at most ``num_groups`` used codes keeps them apart.
        num_groups: M.
        seed: of k-means.
    """
    from sklearn.cluster import KMeans

    used = counts.nonzero().flatten()
    groups = torch.zeros(len(counts), dtype=torch.int64)
    if len(used) <= num_groups:
        groups[used] = torch.arange(len(used))
    else:
        vectors = torch.cat(list(_vectors(tokenizer, sub_code, used)))
        means = KMeans(num_groups, n_init=3, random_state=seed)
        labels = means.fit_predict(vectors.double().numpy(), sample_weight=counts[used].double().numpy())
        groups[used] = torch.from_numpy(labels).long()
    return groups


@torch.no_grad()
def _vectors(tokenizer: Tokenizer, sub_code: int, codes: Tensor) -> Iterator[Tensor]:
    """Yield vectors (n, C) on the CPU: means over positions of features in which the whole first scale has that code.

    All other sub-codes are 0. Of a multi-scale code, it is the code vector after the convolution of its scale.
    """
    spec, device = tokenizer.require_codes(), tokenizer.last_layer.device
    height, width = spec.scales[0]
    for some in codes.split(CODES_AT_ONCE):
        given = torch.zeros(len(some), spec.num_sub_codes, height * width, dtype=torch.int64, device=device)
        given[:, sub_code] = some[:, None].to(device)
        with full_precision(device):
            yield next(iter(tokenizer.partial_sums(given))).float().mean((2, 3)).cpu()
