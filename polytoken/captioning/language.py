"""Causal language models of `transformers`, and their vocabularies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from polytoken.errors import MissingFileError, UserError, first_line
from polytoken.ranges import LARGEST_SEED, at_least, within

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BYTES = 256


class LanguageModel(ABC):
    """Vocabulary and weights of a causal language model. It is no module: who trains the weights owns them.

    Raises:
        UserError: `transformers` is not installed.
    """

    width: int
    """Channels of the embeddings of its tokens."""
    end: int
    """The token that ends a caption."""
    identity: str
    """Name of the weights in the record of a run; two names are two sets of weights."""

    def __init__(self) -> None:
        self._transformers()

    def _transformers(self) -> ModuleType:
        try:
            import transformers
        except ImportError as error:
            raise UserError(
                f"captions need a language model of transformers, which cannot be imported ({error}): install the "
                "extra `caption`, pip install '.[suite,caption]'"
            ) from error
        return transformers

    @abstractmethod
    def load(self) -> PreTrainedModel:
        """Build the network with its initial weights."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without any that mark its start or end."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, without those that mark an end."""


class SmallLanguageModel(LanguageModel):
    """Phi-3 of any size on bytes, with random weights: it runs the code where there is no network.

    Args:
        width: channels.
        depth: blocks.
        num_heads: attention heads.
        seed: of the weights, which are the same in both stages.

    Raises:
        UserError: `transformers` is not installed, or the heads do not divide the width.
    """

    def __init__(self, width: int = 64, depth: int = 2, num_heads: int = 4, seed: int = 0) -> None:
        super().__init__()
        at_least(1, self, width=width, depth=depth, num_heads=num_heads)
        within(0, LARGEST_SEED, self, seed=seed)
        if width % (2 * num_heads):  # rotary positions turn pairs of channels
            raise UserError(f"language.width is {width}: set a multiple of twice language.num_heads={num_heads}")
        self.width, self.depth, self.num_heads, self.seed = width, depth, num_heads, seed
        self.end = BYTES
        self.identity = f"random of {width} channels, {depth} blocks, {num_heads} heads, seed {seed}"

    def load(self) -> PreTrainedModel:
        transformers = self._transformers()
        config = transformers.Phi3Config(
            vocab_size=BYTES + 1,
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.num_heads,
            bos_token_id=self.end,
            eos_token_id=self.end,
            pad_token_id=self.end,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return transformers.Phi3ForCausalLM(config)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token < BYTES).decode(errors="replace")


class PretrainedLanguageModel(LanguageModel):
    """Published language model, read from this machine: nothing is downloaded, and no code of its files is run.

    Args:
        name: a folder, or a name on the hub that `hf download` has put into the cache.

    Raises:
        MissingFileError: it is not on this machine.
        UserError: `transformers` is not installed, or the vocabulary has no token that ends a text.
    """

    def __init__(self, name: str = "microsoft/Phi-3-mini-4k-instruct") -> None:
        super().__init__()
        self.name = self.identity = name
        transformers = self._transformers()
        try:
            self._config = transformers.AutoConfig.from_pretrained(name, local_files_only=True)
            self._vocabulary = transformers.AutoTokenizer.from_pretrained(name, local_files_only=True)
        except (OSError, ValueError) as error:
            raise self._missing(error) from error
        if self._vocabulary.eos_token_id is None:
            raise UserError(f"the vocabulary of {name} has no token that ends a text: name another language model")
        self.width, self.end = self._config.hidden_size, self._vocabulary.eos_token_id

    def load(self) -> PreTrainedModel:
        load = self._transformers().AutoModelForCausalLM.from_pretrained
        try:  # float32, as trained weights must be; the trainer's precision computes in bf16
            return load(self.name, local_files_only=True, use_safetensors=True, dtype=torch.float32)
        except OSError as error:
            raise self._missing(error) from error

    def encode(self, text: str) -> list[int]:
        return self._vocabulary.encode(text, add_special_tokens=False)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._vocabulary.decode(list(tokens), skip_special_tokens=True)

    def _missing(self, error: Exception) -> MissingFileError:
        reason = first_line(error)
        return MissingFileError(
            f"the language model {self.name} cannot be read from this machine ({reason}): fetch it where there is a "
            f"network by `hf download {self.name}`, or set language.name to its folder"
        )
