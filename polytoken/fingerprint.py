"""Fingerprint of a tokenizer: equal fingerprints mean that codes of one are codes of the other."""

from __future__ import annotations

import hashlib
import json

from polytoken.frozen import hash_weights
from polytoken.tokenizers.base import Tokenizer


def fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 in hex over the spec, the frozen networks, and name, type, shape and bytes of the state dict's tensors.

    Device and memory layout do not matter; a single different bit of a weight does.
    """
    frozen = dict(sorted(tokenizer.frozen_identities().items()))
    digest = hashlib.sha256(json.dumps([tokenizer.spec and tokenizer.spec.to_json(), frozen]).encode())
    hash_weights(digest, tokenizer)
    return digest.hexdigest()
