"""Frozen vision foundation models, and the small stand-ins of the embedded data sets."""

from polytoken.teachers.stand_in import SmallVisionTransformer
from polytoken.teachers.teacher import FOUNDATION_MODELS, FoundationModel, Teacher, TeacherFeatures

__all__ = ["FOUNDATION_MODELS", "FoundationModel", "SmallVisionTransformer", "Teacher", "TeacherFeatures"]
