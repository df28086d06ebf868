"""All released checkpoints that this package reads, by name."""

from __future__ import annotations

from difflib import get_close_matches

from polytoken.errors import UserError
from polytoken.pretrained.released import fqgan, ifsq, imagefolder, lightningdit, llamagen, var
from polytoken.pretrained.released.release import Release, Table

RELEASES: Table = {
    **llamagen.RELEASES,
    **fqgan.RELEASES,
    **var.RELEASES,
    **ifsq.RELEASES,
    **lightningdit.RELEASES,
    **imagefolder.RELEASES,
}
FAMILIES = sorted({name.split("/")[0] for name in RELEASES})


def find(name: str) -> Release:
    """Return the release of a name; UserError with the nearest names if there is none."""
    release = RELEASES.get(name)
    if release is None:
        near = get_close_matches(name, RELEASES, 3) or [f"{family}/…" for family in FAMILIES]
        raise UserError(
            f"there is no released checkpoint {name!r}: choose one of docs/model_zoo.md, such as {', '.join(near)}"
        )
    return release
