"""Compilation of modules, on machines that can compile."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from polytoken.errors import first_line

log = logging.getLogger(__name__)


def compile_modules(modules: Iterable[nn.Module], device: torch.device) -> bool:
    """Run each module under ``torch.compile`` from its next call on, in place; parameter names do not change.

    Where the machine cannot compile (without a C++ compiler or Triton), a warning says why and the modules stay as they
    are. Returns True if they compile.
    """
    problem = obstacle(device)
    if problem is not None:
        log.warning("compile is on, but torch.compile does not work here, so nothing is compiled: %s", problem)
        return False
    for module in modules:
        module.compile(fullgraph=True, dynamic=False)  # symbolic shapes make slower kernels
    return True


def obstacle(device: torch.device) -> str | None:
    """Return the reason why ``torch.compile`` fails on a device, by a trial with a small function; None if it works."""
    try:
        torch.compile(_trial)(torch.ones(8, device=device))
    except Exception as error:  # any: compilers, drivers and file systems raise their own
        return first_line(error)
    return None


def _trial(values: Tensor) -> Tensor:
    return values.sin() + 1
