"""A backbone for LPIPS."""

from pathlib import Path

import torch

VGG_LAYERS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)}
VGG_LAYERS |= {17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}


def random_vgg(path: Path) -> dict[str, torch.Tensor]:
    """A VGG-16 file as torchvision writes it, with random weights (the classifier's tensors left small)."""
    generator = torch.Generator().manual_seed(0)
    state = {"classifier.0.bias": torch.zeros(3)}
    for position, (wide_in, wide_out) in VGG_LAYERS.items():
        state[f"features.{position}.weight"] = 0.05 * torch.randn(wide_out, wide_in, 3, 3, generator=generator)
        state[f"features.{position}.bias"] = torch.zeros(wide_out)
    torch.save(state, path)
    return state
