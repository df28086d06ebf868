"""Checkpoints that the authors of papers released, converted to the networks here."""

from __future__ import annotations

from polytoken.pretrained.released.convert import load_released
from polytoken.pretrained.released.zoo import FAMILIES, RELEASES, find

__all__ = ["FAMILIES", "RELEASES", "find", "load_released"]
