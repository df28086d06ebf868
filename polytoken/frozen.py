"""Frozen networks that their owners use but do not own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor, nn

from polytoken.errors import MissingPackageError
from polytoken.precision import float32_weights

Network = TypeVar("Network", bound=nn.Module)


@final
class FrozenNetwork(Generic[Network]):
    """Keeps a frozen network out of the parameters, checkpoint, averages and ``train()`` of the module that uses it.

    torch registers modules that are attributes of a module, and does not look into plain objects such as this one. The
    network is built on first use, in float32, in eval mode and without gradients of its weights. Gradients of its
    inputs flow, also after a first use in inference mode.

    Args:
        load: builds the network; it may draw random numbers, which leaves the caller's stream as it was.
    """

    def __init__(self, load: Callable[[], Network]) -> None:
        self._load = load
        self._network: Network | None = None
        self._device: torch.device | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the loader out of a pickle that holds the network: few functions can be pickled.

        The device is left out too, since ``torch.load`` may put the network on another one.
        """
        state = vars(self)
        return state if self._network is None else {"_network": self._network, "_device": None}

    def on(self, device: torch.device) -> Network:
        """The network, loaded once and moved to ``device``.

        Raises:
            UserError: it needs a package that is not installed.
        """
        if self._network is None:
            # discarded initial weights must not shift the caller's stream
            with torch.random.fork_rng(devices=[]), float32_weights():
                try:
                    self._network = self._load().eval().requires_grad_(False)
                except ImportError as error:
                    raise MissingPackageError.of("a frozen network of this model", error) from error
        if self._device != device:
            with float32_weights():
                self._network.to(device)
            self._device = device
        return self._network

    def sha256(self, without: Collection[str] = ()) -> str:
        """SHA-256 in hex over name, type, shape and bytes of all weights but those named; loads the network."""
        digest = hashlib.sha256()
        hash_weights(digest, self.on(self._device or torch.device("cpu")), without)
        return digest.hexdigest()


def hash_weights(digest: hashlib._Hash, network: nn.Module, without: Collection[str] = ()) -> None:
    """Add every tensor of the state dict but those named; see :func:`hash_tensors`."""
    hash_tensors(digest, {name: tensor for name, tensor in network.state_dict().items() if name not in without})


def hash_tensors(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    """Add name, type, shape and bytes of tensors, in the order of their names.

    Device and memory layout do not matter.
    """
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
