"""Provenance of a generator: its tokens, its tokenizer and its initial weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from polytoken.records import decode
from polytoken.specs import TokenSpec


@dataclass(frozen=True)
class InitFrom:
    """The earlier stage whose weights a run started from.

    Args:
        path: its checkpoint.
        sha256: digest of that file.
        step: its optimizer steps.
        tokenizer_fingerprint: of the tokenizer whose codes it was trained on.
        sub_codes: the sub-codes it generates.
        sub_code: which of this run's sub-codes that is; "all" for the same ones, None for other codes.
        carried: weights of this run that hold weights of the earlier stage.
        fresh: weights of this run that do not.
        left_behind: weights of the earlier stage that were not used.
    """

    path: str
    sha256: str
    step: int
    tokenizer_fingerprint: str
    sub_codes: tuple[int, ...]
    sub_code: int | Literal["all"] | None
    carried: tuple[str, ...]
    fresh: tuple[str, ...]
    left_behind: tuple[str, ...]


@dataclass(frozen=True)
class Lineage:
    """Content of ``lineage.json``.

    Args:
        tokenizer_run: run of the tokenizer.
        tokenizer_fingerprint: of that tokenizer.
        store: token store of the run.
        init_from: None for a run from scratch.
    """

    tokenizer_run: str
    tokenizer_fingerprint: str
    store: str
    init_from: InitFrom | None = None


@dataclass(frozen=True)
class GeneratorRecord:
    """Description of a generator inside its checkpoint.

    Args:
        spec: shape of the codes that it generates.
        full_spec: shape of all codes of its tokenizer.
        sub_codes: the sub-codes of ``full_spec`` that it generates, in its order.
        tokenizer_run: run of the tokenizer.
        tokenizer_fingerprint: of that tokenizer.
        num_classes: number of classes.
        class_to_idx: class names and their labels.
        lineage: origin of codes and weights.
    """

    spec: TokenSpec
    full_spec: TokenSpec
    sub_codes: tuple[int, ...]
    tokenizer_run: str
    tokenizer_fingerprint: str
    num_classes: int
    class_to_idx: dict[str, int]
    lineage: Lineage

    @classmethod
    def from_plain(cls, data: Mapping[str, Any], where: str) -> GeneratorRecord:
        """Validate plain data from a checkpoint; UserError names the place in it."""
        return decode(data, cls, where)

    def to_plain(self) -> dict[str, Any]:
        """Return dicts, lists, texts and numbers, for a checkpoint."""
        return msgspec.json.decode(msgspec.json.encode(self))

    @property
    def tokenizer(self) -> str:
        """The tokenizer, for messages."""
        return f"the tokenizer {self.tokenizer_run} (fingerprint {self.tokenizer_fingerprint[:12]})"
