"""Metrics of generated captions: BLEU-1 to BLEU-4, and CIDEr-D."""

from __future__ import annotations

from collections.abc import Sequence

from polytoken.metrics.cider import cider_d, words


def caption_metrics(generated: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU of a whole set without smoothing, and mean CIDEr-D, both in percent as papers give them.

    Args:
        generated: a caption of each image.
        references: the captions of each image, one at least.
    """
    from torchmetrics.functional.text import bleu_score

    spaced = [" ".join(words(caption)) for caption in generated]
    targets = [[" ".join(words(caption)) for caption in captions] for captions in references]
    bleu = {f"bleu_{order}": 100.0 * float(bleu_score(spaced, targets, n_gram=order)) for order in range(1, 5)}
    return {**bleu, "cider_d": cider_d(generated, references)}
