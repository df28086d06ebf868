"""Foundation models as extractors, for Fréchet distances in DINOv2 or CLIP features (arXiv 2306.04675)."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from polytoken.files import file_sha256
from polytoken.images import from_uint8
from polytoken.metrics.extractor import ImageFeatures, check_images
from polytoken.precision import full_precision
from polytoken.teachers import Teacher


class TeacherExtractor:
    """Extractor over a teacher: its class token, or the mean of its patches if it has none.

    Args:
        teacher: DINOv2, CLIP …; it names the metrics: ``gfd/dinov2_base``, ``gfd/dinov2_base_block9``.
        device: device of the network.

    Raises:
        MissingFileError: if its weights are neither on disk nor on a reachable hub.
        UserError: if its file holds another architecture.
    """

    def __init__(self, teacher: Teacher, device: torch.device) -> None:
        self.teacher = teacher
        self.device = device
        teacher.prepare(device)

    @property
    def name(self) -> str:
        """Name of the teacher, and its block if that is not the last."""
        return self.teacher.name if self.teacher.block is None else f"{self.teacher.name}_block{self.teacher.block}"

    @property
    def num_features(self) -> int:
        return self.teacher.width

    @property
    def num_classes(self) -> None:
        return None

    @property
    def num_spatial(self) -> None:
        return None

    @property
    def resize(self) -> str:
        return f"bicubic, antialiased, to {self.teacher.image_size} px"

    @cached_property
    def sha256(self) -> str | None:
        """Digest of the teacher's file; None if it came from its hub."""
        return file_sha256(self.teacher.file) if self.teacher.file.is_file() else None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> ImageFeatures:
        check_images(images)
        with full_precision(self.device):
            inputs = from_uint8(images.to(self.device).contiguous())
            return ImageFeatures(self.teacher.features(inputs, full_precision=True)[0].cls)
