"""Captioning of images by a language model that reads features of a frozen tokenizer (FQGAN appendix D).

Language models are those of `transformers`, which the extra `caption` installs and this package imports when it builds
one.
"""

from polytoken.captioning.captioner import Captioner
from polytoken.captioning.language import LanguageModel, PretrainedLanguageModel, SmallLanguageModel

__all__ = ["Captioner", "LanguageModel", "PretrainedLanguageModel", "SmallLanguageModel"]
