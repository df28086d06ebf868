"""Class vectors: embeddings of the names of classes, all that zero-shot classification needs of a text tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor
from torch.nn import functional

from polytoken.errors import UserError
from polytoken.records import decode
from polytoken.teachers.text_towers import TextTower
from polytoken.weights import load_state, save_tensors

PLACEHOLDER = "{}"
REMEDY = "write it by `python -m commands.class_vectors`"


class Header(TypedDict):
    """The header of a file of class vectors."""

    text_tower: str
    teacher: str
    classes: dict[str, str]
    prompts: list[str]


@dataclass(frozen=True)
class ClassVectors:
    """A unit vector for each class, compared with the pooled and normalised features of one teacher.

    Args:
        vectors: (C, D) float32, of length 1.
        text_tower: name of the text tower.
        teacher: its image tower: name of a published teacher, or identity of a stand-in.
        classes: names in prompts by class of the data set, in the order of ``vectors``.
        prompts: the ensemble, with a placeholder {}.
    """

    vectors: Tensor
    text_tower: str
    teacher: str
    classes: Mapping[str, str]
    prompts: tuple[str, ...]

    @classmethod
    def of(cls, tower: TextTower, classes: Mapping[str, str], prompts: Sequence[str]) -> ClassVectors:
        """The mean of the normalised embeddings of all prompts of a class, normalised again (CLIP, arXiv 2103.00020).

        Raises:
            UserError: there is no class or no prompt, a prompt lacks the placeholder, or a text is too long.
        """
        check_prompts(prompts)
        if not classes:
            raise UserError("no classes are named: name at least one")
        rows = []
        for name in classes.values():
            embedded = functional.normalize(tower.embed([prompt.replace(PLACEHOLDER, name) for prompt in prompts]))
            rows.append(functional.normalize(embedded.mean(0), dim=0))
        return cls(torch.stack(rows), tower.name, tower.teacher, dict(classes), tuple(prompts))

    def save(self, path: Path) -> None:
        """Write safetensors that :meth:`load` reads."""
        header: Header = {
            "text_tower": self.text_tower,
            "teacher": self.teacher,
            "classes": dict(self.classes),
            "prompts": list(self.prompts),
        }
        save_tensors(path, {"vectors": self.vectors}, header)

    @classmethod
    def load(cls, path: Path) -> ClassVectors:
        """The content of a file of :meth:`save`.

        Raises:
            MissingFileError: it is missing.
            UserError: it does not hold class vectors.
        """
        state, metadata = load_state(path, REMEDY)
        vectors = state.get("vectors") if isinstance(state, dict) else None
        if vectors is None or "classes" not in metadata:
            raise UserError(f"{path} does not hold class vectors: {REMEDY}")
        header = decode(metadata, Header, f"the header of {path}")
        lengths = vectors.float().norm(dim=-1)
        if vectors.ndim != 2 or len(vectors) != len(header["classes"]) or not bool(((lengths - 1).abs() < 1e-3).all()):
            raise UserError(f"{path} does not hold a unit vector for each class of its header: {REMEDY}")
        return cls(
            vectors.float(), header["text_tower"], header["teacher"], header["classes"], tuple(header["prompts"])
        )

    def by_label(self, class_to_idx: Mapping[str, int]) -> Tensor:
        """The vectors (C, D) in the order of a data set's labels.

        Raises:
            UserError: the data set has other classes.
        """
        if differing := sorted(self.classes.keys() ^ class_to_idx.keys()):
            which = "has no class vector" if differing[0] in class_to_idx else "is no class of the data set"
            raise UserError(
                f"class {differing[0]!r} {which} ({len(differing)} differ): the {len(self.classes)} class vectors "
                f"and {len(class_to_idx)} classes of the data set must have the same names; {REMEDY}"
            )
        rows = {name: row for row, name in enumerate(self.classes)}
        return self.vectors[[rows[name] for name in sorted(class_to_idx, key=class_to_idx.__getitem__)]]


def check_prompts(prompts: Sequence[str]) -> None:
    """Check that there are prompts, and that each has a placeholder.

    Raises:
        UserError: naming the first prompt that has none.
    """
    if not prompts:
        raise UserError("there are no prompts: name at least one, such as 'a photo of a {}'")
    if lacking := [prompt for prompt in prompts if PLACEHOLDER not in prompt]:
        raise UserError(
            f"the prompt {lacking[0]!r} has no placeholder {{}} for the name of the class: write it, such as "
            "'a photo of a {}'"
        )
