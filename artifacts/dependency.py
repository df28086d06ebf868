"""Definition of `dependency.json` of a token store, apart from `artifacts.run_files` because its types need torch."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from polytoken.metrics.dependency import Dependence
from polytoken.specs import TokenSpec

DEPENDENCY = "dependency.json"


class Dependency(TypedDict):
    """`dependency.json` of a token store."""

    entries: list[Dependence]
    estimator: str
    store: str
    images: int
    views: int
    spec: TokenSpec
    groups: list[int]  # number of groups of each codebook's codes
    shuffles: int
    seed: int
    tokenizer_fingerprint: str
    versions: NotRequired[dict[str, str]]
    commit: NotRequired[str | None]
