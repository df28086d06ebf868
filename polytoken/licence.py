"""Origin and licence of weights that the authors of a paper released."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReleasedAs:
    """Origin of weights that the authors of a paper released: in an imported run, and in those trained from it.

    Args:
        name: of the release.
        source: paper and repository.
        licence: of the weights, as their authors write it.
        licence_on_hub: the same as an identifier of the hub.
        non_commercial: True if they forbid commercial use.
        sha256: of the released file.
    """

    name: str
    source: str
    licence: str
    licence_on_hub: str
    non_commercial: bool
    sha256: str
