import pytest
import torch

from lightning_modules import MaskedPatchModule
from polytoken.teachers.stand_in import SmallVisionTransformer


def build() -> MaskedPatchModule:
    torch.manual_seed(0)
    network = SmallVisionTransformer(image_size=16, patch_size=4, width=16, depth=1, pooling="mean")
    return MaskedPatchModule(network, "unused.safetensors").eval()


def test_the_loss_counts_masked_patches_only_and_the_network_sees_none() -> None:
    module = build()
    images = torch.rand(2, 3, 16, 16)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, 1, 2] = True
    patch = images[:, :, 4:8, 8:12].flatten(1)
    blanked = images.clone()
    blanked[:, :, 4:8, 8:12] = 0
    with torch.no_grad():
        predicted = module.to_pixels(module.network.patches(blanked))[:, 1 * 4 + 2]
        assert module._error(images, mask).item() == pytest.approx((predicted - patch).abs().mean().item(), rel=1e-5)


def test_mask_ratio() -> None:
    module = build()
    module.mask_ratio = 0.25
    assert module._random_mask(torch.zeros(500, 3, 16, 16)).float().mean().item() == pytest.approx(0.25, abs=0.02)
    with pytest.raises(ValueError, match="mask_ratio"):
        MaskedPatchModule(module.network, "unused.safetensors", mask_ratio=1.0)
