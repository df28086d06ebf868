"""Every converter: all names and shapes of the released architecture load strictly, and come back."""

from __future__ import annotations

import pytest
import torch

from polytoken.pretrained.released.convert import empty_generator, empty_tokenizer
from polytoken.pretrained.released.layout import shapes_of
from polytoken.pretrained.released.zoo import RELEASES
from tests.support.released import released_state

TOKENIZERS = {
    "llamagen/vq_ds16_c2i": "llamagen_vq_ds16",
    "fqgan/dual_ds16": "fqgan_dual_ds16",
    "fqgan/dual_ds8": "fqgan_dual_ds8",
    "fqgan/triple_ds16": "fqgan_triple_ds16",
    "var/vae_ch160v4096z32": "var_vqvae",
    "ifsq/f16_d4_4bit": "ifsq_f16",
    "ifsq/f16_d4_4bit_grouped": "ifsq_f16",
    "ifsq/f8_d4_4bit": "ifsq_f8",
    "lightningdit/vavae_f16d32": "vavae",
    "imagefolder/MSVR10P2-4096": "imagefolder_tokenizer",
}
GENERATORS = {
    "llamagen/c2i_B_256": "llamagen_gpt_b",
    "llamagen/c2i_L_384": "llamagen_gpt_l",
    "fqgan/far_dual_base": "far_dual_base",
    "fqgan/far_triple_base": "far_triple_base",
    "var/d16": "var_d16",
    "imagefolder/VAR-d17": "imagefolder_var_d17",
    "ifsq/llamagen_l": "ifsq_llamagen",
    "ifsq/llamagen_l_grouped": "ifsq_llamagen_grouped",
    "ifsq/dit_l1": "ifsq_dit_l1",
    "ifsq/dit_l2": "ifsq_dit_l2",
    "lightningdit/xl_64ep": "lightningdit_xl1",
}
COMPANIONS = {
    "lightningdit/xl_64ep": {
        "latents_stats.pt:mean": torch.zeros(1, 32, 1, 1),
        "latents_stats.pt:std": torch.ones(1, 32, 1, 1),
    },
}


@pytest.mark.parametrize(("name", "keys"), [*TOKENIZERS.items(), *GENERATORS.items()])
def test_all_weights_are_converted_and_come_back(name: str, keys: str) -> None:
    release, state = RELEASES[name], {**released_state(keys), **COMPANIONS.get(name, {})}
    network = release.describe(state, release.image_size)
    if release.tokenizer is None:
        shapes = shapes_of(empty_tokenizer(network).state_dict())
    else:
        of_tokenizer = RELEASES[release.tokenizer].describe(
            released_state(TOKENIZERS[release.tokenizer]), release.image_size
        )
        shapes = shapes_of(empty_generator(network, empty_tokenizer(of_tokenizer)).state_dict())
    weights = network.layout.to_ours(state, shapes)
    assert shapes_of(weights) == shapes

    left_out = set(network.layout.left_out(state))
    kept = {key: tensor for key, tensor in state.items() if key not in left_out}
    back = network.layout.to_released(weights, shapes_of(kept))
    assert back.keys() == kept.keys()
    for key, tensor in kept.items():
        assert torch.equal(back[key], tensor), key
