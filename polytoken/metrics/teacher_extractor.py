"""Foundation models as extractors: Fréchet distances in the eyes of DINOv2 or CLIP (arXiv 2306.04675)."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from polytoken.files import file_sha256
from polytoken.images import from_uint8
from polytoken.metrics.extractor import ImageFeatures, check_images
from polytoken.precision import full_precision
from polytoken.teachers import WEIGHTS, Teacher


class TeacherExtractor:
    """The class token of a teacher, or the mean of its patches where it has none.

    Args:
        teacher: DINOv2, CLIP …; figures are called after it: ``gfd/dinov2_base``, ``gfd/dinov2_base_block9``.
        device: where it runs.

    Raises:
        FileNotFoundError: if its weights are neither on disk nor on a hub that answers.
        ValueError: if its file holds another architecture.
    """

    def __init__(self, teacher: Teacher, device: torch.device) -> None:
        self.teacher = teacher
        self.device = device
        teacher.prepare(device)

    @property
    def name(self) -> str:
        """The teacher's, and its block where that is not the last."""
        return self.teacher.name if self.teacher.block is None else f"{self.teacher.name}_block{self.teacher.block}"

    @property
    def num_features(self) -> int:
        """D of the class token."""
        return self.teacher.width

    @property
    def num_classes(self) -> None:
        """It knows no classes."""

    @property
    def num_spatial(self) -> None:
        """It is not asked for maps."""

    @property
    def resize(self) -> str:
        """To the teacher's own size."""
        return f"bicubic, antialiased, to {self.teacher.image_size} px"

    @cached_property
    def sha256(self) -> str | None:
        """Digest of the teacher's file; None if it came from its hub."""
        path = Path(self.teacher.weights or WEIGHTS / f"{self.teacher.name}.safetensors")
        return file_sha256(path) if path.is_file() else None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> ImageFeatures:
        """Images uint8 (B, 3, H, W) to class tokens."""
        check_images(images)
        with full_precision(self.device):
            inputs = from_uint8(images.to(self.device).contiguous())
            return ImageFeatures(self.teacher.features(inputs, full_precision=True)[0].cls)
