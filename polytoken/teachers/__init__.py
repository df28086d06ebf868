"""Frozen vision foundation models, and the small stand-ins of the embedded data sets."""

from polytoken.teachers.foundation_models import FOUNDATION_MODELS, FoundationModel, build_network, published_model
from polytoken.teachers.loading import WEIGHTS
from polytoken.teachers.stand_in import SmallVisionTransformer
from polytoken.teachers.teacher import Teacher, TeacherFeatures

__all__ = [
    "FOUNDATION_MODELS",
    "WEIGHTS",
    "FoundationModel",
    "SmallVisionTransformer",
    "Teacher",
    "TeacherFeatures",
    "build_network",
    "published_model",
]
