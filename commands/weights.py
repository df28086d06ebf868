"""`make weights`: fetch published weights once, for machines that have no network later."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path("weights")


@dataclass(frozen=True)
class PublishedFile:
    """A file on its publisher's server.

    Args:
        name: where it is put, below ``weights/``.
        url: where it comes from.
        sha256_prefix: the start of its digest, checked after the download.
    """

    name: str
    url: str
    sha256_prefix: str


FILES = (PublishedFile("vgg16.pth", "https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"),)


def fetch(file: PublishedFile, directory: Path = DIRECTORY) -> Path:
    """Download one file unless it is there; raises RuntimeError if its digest is not the published one."""
    from torch.hub import download_url_to_file

    target = directory / file.name
    if not target.exists():
        directory.mkdir(parents=True, exist_ok=True)
        download_url_to_file(file.url, str(target), hash_prefix=file.sha256_prefix)
    return target


def main() -> None:
    """Fetch all files, and say where they are."""
    for file in FILES:
        try:
            print(f"{file.name}: {fetch(file)}")
        except OSError as error:
            sys.exit(
                f"error: {file.url} cannot be fetched ({error}): fetch it elsewhere and put it at weights/{file.name}"
            )


if __name__ == "__main__":
    main()
