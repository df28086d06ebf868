"""Trained models outside of the suite: `python -m commands.export` writes them, `from_pretrained` loads them."""

from __future__ import annotations

from polytoken.pretrained.folder import from_pretrained, save_pretrained

__all__ = ["from_pretrained", "save_pretrained"]
