"""Discriminators of the adversarial term."""

from models.discriminators.patch import PatchDiscriminator

__all__ = ["PatchDiscriminator"]
