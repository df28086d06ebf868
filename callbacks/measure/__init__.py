"""Measurements of validation images, figures and pictures."""
