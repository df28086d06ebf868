"""Numbers as people read them."""

from __future__ import annotations

UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def duration(seconds: float) -> str:
    """The two largest units of a time: `1 d 3 h`, `5 min 3 s`, `12 s`."""
    rest = round(seconds)
    if rest >= 60:  # no seconds beside hours: the smaller unit rounds the larger one
        unit = max(size for _, size in UNITS if size <= rest)
        smaller = next((size for _, size in UNITS if size < unit), 1)
        rest = round(rest / smaller) * smaller
    parts = []
    for name, size in UNITS:
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2]) or "0 s"


def memory(size: float) -> str:
    """Bytes in GB: `38 GB`, `1.2 GB`."""
    return f"{size / 1e9:.2g} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"
