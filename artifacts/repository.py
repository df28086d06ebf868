"""Places of the repository that the suite reads."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = REPOSITORY / "configs"
PRESETS = CONFIGS / "presets"
BASE_CONFIG = CONFIGS / "base.yaml"
