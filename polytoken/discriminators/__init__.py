"""Discriminators of the adversarial block, and the augmentation of their images."""

from polytoken.discriminators.augmentation import DiffAugment
from polytoken.discriminators.base import Discriminator
from polytoken.discriminators.dino import DinoDiscriminator
from polytoken.discriminators.patch import PatchDiscriminator

__all__ = ["DiffAugment", "DinoDiscriminator", "Discriminator", "PatchDiscriminator"]
