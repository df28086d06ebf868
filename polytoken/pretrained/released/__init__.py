"""Checkpoints that the authors of papers released, converted to the networks here."""

from __future__ import annotations

from polytoken.pretrained.released.convert import load_released
from polytoken.pretrained.released.zoo import RELEASES, find

__all__ = ["RELEASES", "find", "load_released"]
