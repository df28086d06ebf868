"""Places of the repository that the suite reads."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = REPOSITORY / "configs"
PRESETS = CONFIGS / "presets"
BASE_CONFIG = CONFIGS / "base.yaml"
ADM_REFERENCE = Path("weights/VIRTUAL_imagenet256_labeled.npz")  # statistics of ImageNet; `make weights` fetches it
