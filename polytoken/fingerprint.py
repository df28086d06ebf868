"""A tokenizer's fingerprint: whoever uses its codes can tell whether they are this tokenizer's."""

from __future__ import annotations

import hashlib
import json

import torch

from polytoken.tokenizers.base import Tokenizer


def fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 in hex over the spec and the name, type, shape and bytes of every tensor of the state dict.

    Device and memory layout do not matter; one weight that differs in one bit does.
    """
    digest = hashlib.sha256(json.dumps(tokenizer.spec and tokenizer.spec.to_json()).encode())
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
