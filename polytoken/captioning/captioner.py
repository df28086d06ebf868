"""Projector from features of a tokenizer to a language model that captions the image (FQGAN appendix D)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from polytoken.captioning.language import LanguageModel
from polytoken.frozen import FrozenNetwork

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100  # in targets


class Captioner(nn.Module):
    """Language model behind a projector of two layers (LLaVA-1.5's, arXiv 2310.03744).

    It reads the features of all positions, row-major, as embeddings of so many tokens, and the caption follows. A
    frozen language model is no part of the module: neither trained nor saved.

    Args:
        language: the language model.
        channels: D of the features.
        train_language: train the language model too (stage 2), not the projector alone (stage 1).
    """

    def __init__(self, language: LanguageModel, channels: int, train_language: bool = False) -> None:
        super().__init__()
        self.language = language
        self.projector = nn.Sequential(
            nn.Linear(channels, language.width), nn.GELU(), nn.Linear(language.width, language.width)
        )
        self.network = language.load() if train_language else None
        self._frozen = FrozenNetwork(language.load)  # loads on first use

    def loss(self, features: Tensor, captions: Sequence[str], max_tokens: int) -> Tensor:
        """Mean cross-entropy of the captions' tokens and of the token that ends each; float32 scalar.

        Args:
            features: (B, D, h, w).
            captions: B texts.
            max_tokens: longer captions are cut, and then have no end.
        """
        ends = [torch.tensor(self.tokens(caption, max_tokens)) for caption in captions]
        rows = nn.utils.rnn.pad_sequence(ends, batch_first=True, padding_value=IGNORED)
        targets = rows.to(features.device)
        network, prefix = self._prefix(features)
        tokens = network.get_input_embeddings()(targets.clamp_min(0))
        inputs = torch.cat([prefix, tokens.to(prefix.dtype)], dim=1)
        keep = targets.shape[1] + 1  # the logits from the last position of the image on
        # no mask: padding is behind the caption, where no token of it looks
        logits = network(inputs_embeds=inputs, logits_to_keep=keep, use_cache=False).logits
        return functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    def tokens(self, caption: str, max_tokens: int) -> list[int]:
        """Tokens of a caption that :meth:`loss` predicts: at most `max_tokens`, the last being the end if it fits."""
        return [*self.language.encode(caption), self.language.end][:max_tokens]

    @torch.no_grad()
    def generate(self, features: Tensor, max_tokens: int, beams: int = 1) -> list[str]:
        """Captions of features (B, D, h, w): greedy, or by beam search.

        Args:
            features: (B, D, h, w).
            max_tokens: most tokens of a caption.
            beams: 1 is greedy.
        """
        network, prefix = self._prefix(features)
        found = network.generate(  # type: ignore[operator] # GenerationMixin's
            inputs_embeds=prefix,
            attention_mask=prefix.new_ones(prefix.shape[:2], dtype=torch.int64),
            max_new_tokens=max_tokens,
            num_beams=beams,
            do_sample=False,
            eos_token_id=self.language.end,
            pad_token_id=self.language.end,
        )
        return [self.language.decode(_until(row, self.language.end)).strip() for row in found.tolist()]

    def _prefix(self, features: Tensor) -> tuple[PreTrainedModel, Tensor]:
        """The language model, and the embeddings (B, h·w, width) that stand for the image."""
        network = self.network if self.network is not None else self._frozen.on(features.device)
        return network, self.projector(features.flatten(2).transpose(1, 2))


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens
