"""Discriminators of the adversarial term."""

from polytoken.discriminators.patch import PatchDiscriminator

__all__ = ["PatchDiscriminator"]
