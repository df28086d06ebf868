"""Context managers: float32 without autocast and TF32, and float32 weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Lock
from typing import Any

import torch
from torch import Tensor


@contextmanager
def full_precision(device: torch.device | str) -> Iterator[None]:
    """Compute float32 in float32: no autocast and no TF32.

    Rounding of the inputs would select other codes and change metrics; TF32, cuDNN's default, keeps 10 bits. Autocast
    is a state of the thread and TF32 one of the process: TF32 stays off in all threads until the last of them leaves.
    """
    kind = torch.device(device).type
    if kind == "meta":  # where FLOPs are counted, and which has no autocast
        yield
        return
    with _without_tf32, torch.autocast(kind, enabled=False):
        yield


@contextmanager
def float32_weights() -> Iterator[None]:
    """Build networks of stored weights, and move them, whatever default dtype and inference mode the caller has set.

    Weights of another dtype would be rounded, and those made in inference mode never serve training. The default dtype
    is a state of the process: it stays float32 in all threads until the last of them leaves.
    """
    with _float32_default, torch.inference_mode(False):
        yield


class _OfTheProcess:
    """Context of a state of the process: the first entry of all threads sets it, the last exit restores it.

    Args:
        set_state: sets it, and returns a stack whose closing restores it.
    """

    def __init__(self, set_state: Callable[[], ExitStack]) -> None:
        self._set_state = set_state
        self._lock = Lock()
        self._entries = 0
        self._undo = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._entries == 0:
                self._undo = self._set_state()
            self._entries += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._entries -= 1
            if self._entries == 0:
                self._undo.close()


def _set_float32() -> ExitStack:
    undo = ExitStack()
    undo.callback(torch.set_default_dtype, torch.get_default_dtype())
    torch.set_default_dtype(torch.float32)
    return undo


def _set_ieee() -> ExitStack:
    """Compute float32 products without TF32 and bfloat16; closing the stack restores the settings.

    torch has them in two forms. ``fp32_precision`` of an operation follows the more general ones until it is set. The
    setters of the older ``float32_matmul_precision`` and ``allow_tf32`` also set the newer form, and their getters
    raise where both differ: both are set, since code inside may read either.
    """
    backends: Any = torch.backends
    products = backends.cuda.matmul, backends.mkldnn.matmul
    operations = *products, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.conv, backends.mkldnn.rnn
    settings = backends, backends.cudnn, *operations  # the general first: what follows it is left without an own value
    with ExitStack() as undo:

        def replace(target: Any, name: str, value: object) -> None:
            undo.callback(setattr, target, name, getattr(target, name))
            setattr(target, name, value)

        found = [each.fp32_precision for each in products]
        with suppress(RuntimeError):
            if backends.cudnn.allow_tf32:
                replace(backends.cudnn, "allow_tf32", False)
        for each in settings:
            if each.fp32_precision != "ieee":
                replace(each, "fp32_precision", "ieee")
        matmul = torch.get_float32_matmul_precision()  # raises in no state that is reached here
        if matmul != "highest":
            for each, value in zip(products, found, strict=True):  # which the older setter overwrites
                undo.callback(setattr, each, "fp32_precision", value)
            undo.callback(torch.set_float32_matmul_precision, matmul)
            torch.set_float32_matmul_precision("highest")
        return undo.pop_all()


_without_tf32, _float32_default = _OfTheProcess(_set_ieee), _OfTheProcess(_set_float32)


def autocasts(device: torch.device) -> bool:
    """True in a region of autocast for the device; the meta device has none."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def compute_type(weight: Tensor) -> torch.dtype:
    """Type in which a linear layer of this weight computes: autocast's in its region, else that of the weight."""
    return torch.get_autocast_dtype(weight.device.type) if autocasts(weight.device) else weight.dtype
