"""Counter of host synchronisations: operations whose result the host must read before it continues."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = frozenset({Tensor.tolist, Tensor.numpy, Tensor.__array__})
"""Reads that never reach the dispatcher on a CPU."""
UPLOADS = frozenset({torch.tensor, torch.as_tensor, Tensor.new_tensor})
"""Copies of Python numbers to a device, for which the host waits as well."""


@contextmanager
def host_syncs() -> Iterator[Counter[str]]:
    """Count, by operator name, the operations of the block that wait for a device.

    Counted are ``item``/``bool``/``int``/``float`` of a tensor (``aten::_local_scalar_dense``), all operators whose
    output shape depends on data (``nonzero``, ``unique``, indexing with a mask, …), comparisons that return a Python
    bool (``equal``), copies from a device to the host, ``tolist`` and ``numpy``, and tensors made of Python numbers.
    Most show on a CPU already.
    """
    counts: Counter[str] = Counter()
    with _Reads(counts), _Dispatches(counts):
        yield counts


class _Dispatches(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if _waits(func, args, result):
            self.counts[str(func.name())] += 1
        return result


class _Reads(TorchFunctionMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in READS or (func in UPLOADS and not isinstance(args[-1], Tensor)):
            self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def _waits(func: Any, args: tuple[Any, ...], result: object) -> bool:
    name = func.name()
    if name.startswith(("aten::index.", "aten::index_put", "aten::_unsafe_index", "aten::_index_put")):
        return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
        return True
    copied = name.startswith(("aten::_to_copy", "aten::copy_"))
    return copied and _device(result) == "cpu" and any(_device(value) not in ("cpu", None) for value in args)


def _device(value: object) -> str | None:
    return value.device.type if isinstance(value, Tensor) else None
