"""Provenance of a generator: its tokens, its tokenizer and its initial weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from polytoken.errors import UserError
from polytoken.generators.base import Generator
from polytoken.layout import CHECKPOINTS
from polytoken.licence import ReleasedAs
from polytoken.records import decode
from polytoken.specs import LatentSpec, TokenSpec


@dataclass(frozen=True)
class InitFrom:
    """The earlier stage whose weights a run started from.

    Args:
        path: its checkpoint.
        sha256: digest of that file.
        step: its optimizer steps.
        tokenizer_fingerprint: of the tokenizer whose tokens it was trained on.
        sub_codes: the sub-codes it generates.
        sub_code: which of this run's sub-codes that is; "all" for the same ones, None for other codes.
        carried: weights of this run that hold weights of the earlier stage.
        fresh: weights of this run that do not.
        left_behind: weights of the earlier stage that were not used.
        released: origin of its weights, if they are released ones or were trained from such.
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
    released: ReleasedAs | None = None


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
        spec: shape of the codes that it was trained on; None for latents of a tokenizer without codes.
        full_spec: shape of all codes of its tokenizer, or None.
        sub_codes: the sub-codes of ``full_spec`` that it was trained on, in its order.
        tokenizer_run: run of the tokenizer.
        tokenizer_fingerprint: of that tokenizer.
        num_classes: number of classes.
        class_to_idx: class names and their labels.
        lineage: origin of codes and weights.
        latents: shape and scale of the tokenizer's latents over the training images; None if the store has none.
        teacher: name and digest of the teacher that training aligns hidden states with; None without alignment.
    """

    spec: TokenSpec | None
    full_spec: TokenSpec | None
    sub_codes: tuple[int, ...]
    tokenizer_run: str
    tokenizer_fingerprint: str
    num_classes: int
    class_to_idx: dict[str, int]
    lineage: Lineage
    latents: LatentSpec | None = None
    teacher: str | None = None

    def __post_init__(self) -> None:
        if sorted(self.class_to_idx.values()) != list(range(min(self.num_classes, len(self.class_to_idx) + 1))):
            raise UserError(f"num_classes is {self.num_classes}, and class_to_idx numbers {len(self.class_to_idx)}")
        if (self.full_spec and self.full_spec.select(self.sub_codes)) != self.spec:
            raise UserError(f"spec is not that of the sub-codes {[*self.sub_codes]} of full_spec")

    @classmethod
    def from_plain(cls, data: Mapping[str, Any], where: str) -> GeneratorRecord:
        """Validate plain data from a checkpoint; UserError names the place in it."""
        return decode(data, cls, where)

    def to_plain(self) -> dict[str, Any]:
        """Return dicts, lists, texts and numbers, for a checkpoint."""
        return msgspec.json.decode(msgspec.json.encode(self))

    def described(self, generator: Generator, holder: str) -> TokenSpec | LatentSpec:
        """The spec that a generator of codes or of latents connects to.

        Args:
            generator: not connected yet.
            holder: what has these tokens, for the message.

        Raises:
            UserError: if the generator cannot learn these tokens.
        """
        name = type(generator).__name__
        if generator.models == "codes":
            if self.spec is None:
                raise UserError(
                    f"{name} models codes, and {holder} has latents of a tokenizer without codes: train a generator of "
                    "latents on it, or another tokenizer (fq_dual, vq, ifsq, …)"
                )
            return self.spec
        if self.full_spec is not None and self.sub_codes != tuple(range(self.full_spec.num_sub_codes)):
            raise UserError(
                f"{name} models the latents of all {self.full_spec.num_sub_codes} sub-codes, and the data are the "
                f"sub-codes {[*self.sub_codes]}: set data.sub_codes to null"
            )
        if self.latents is None and self.full_spec is None:
            raise UserError(f"{holder} has latents without their mean and deviation: write it again (make tokens)")
        if self.latents is None:
            raise UserError(
                f"{name} models latents, and {holder} has codes without the mean and deviation of their vectors: write "
                "it again by a tokenizer whose codes have vectors (make tokens)"
            )
        return self.latents

    @property
    def tokenizer(self) -> str:
        """The tokenizer, for messages."""
        return f"the tokenizer {self.tokenizer_run} (fingerprint {self.tokenizer_fingerprint[:12]})"


def run_name(recorded: str | Path) -> str:
    """Return the last two parts of a run's directory, ``stage2/fq_dual``, from it or one of its checkpoints."""
    path = Path(recorded)
    run = path.parent.parent if path.parent.name == CHECKPOINTS else path
    return "/".join([part for part in run.parts if part != run.anchor][-2:])
