"""`make weights`: fetch published weights once, for machines that have no network later."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from polytoken.errors import RunError
from polytoken.files import file_sha256
from polytoken.metrics import inception

DIRECTORY = Path("weights")


@dataclass(frozen=True)
class PublishedFile:
    """A file on its publisher's server.

    Args:
        name: where it is put, below ``weights/``.
        url: where it comes from.
        sha256_prefix: its digest, or the start of it.
    """

    name: str
    url: str
    sha256_prefix: str


FILES = (
    PublishedFile("vgg16.pth", "https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"),
    PublishedFile(inception.WEIGHTS.name, inception.URL, inception.SHA256),
)


def fetch(file: PublishedFile, directory: Path = DIRECTORY) -> Path:
    """Download one file unless it is there.

    Raises:
        OSError: if its publisher does not answer.
        RuntimeError: if the digest is not the published one, of what came or of what was there.
    """
    from torch.hub import download_url_to_file

    target = directory / file.name
    if not target.exists():
        directory.mkdir(parents=True, exist_ok=True)
        download_url_to_file(file.url, str(target), hash_prefix=file.sha256_prefix)
    elif not (found := file_sha256(target)).startswith(file.sha256_prefix):
        raise RunError(f"{target} has the SHA-256 {found}, not {file.sha256_prefix}…: delete it and fetch it again")
    return target


def fetch_teacher(name: str, directory: Path = DIRECTORY) -> Path:
    """Download a foundation model from its hub unless it is there, and keep its vision tower as safetensors.

    Raises:
        KeyError: if no teacher has this name.
        OSError: if its hub does not answer.
    """
    from polytoken.teachers import FOUNDATION_MODELS, build_network
    from polytoken.weights import save_state

    model = FOUNDATION_MODELS[name]
    target = directory / f"{name}.safetensors"
    if not target.exists():
        save_state(target, build_network(model, model.image_size, pretrained=True), {"model": model.model})
    return target


def main(teachers: list[str]) -> None:
    """Fetch all files and the named teachers, and say where they are."""
    from polytoken.teachers import FOUNDATION_MODELS

    unknown = [name for name in teachers if name not in FOUNDATION_MODELS]
    if unknown:
        sys.exit(f"error: no teacher is called {unknown[0]}; known are {', '.join(FOUNDATION_MODELS)}")
    for file in FILES:
        try:
            print(f"{file.name}: {fetch(file)}")
        except OSError as error:
            sys.exit(
                f"error: {file.url} cannot be fetched ({error}): fetch it elsewhere and put it at weights/{file.name}"
            )
        except RuntimeError as error:
            sys.exit(f"error: {file.name}: {error}")
    for name in teachers:
        try:
            print(f"{name}: {fetch_teacher(name)}")
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            sys.exit(
                f"error: teacher {name} cannot be fetched from its hub ({reason}): run this where there is a network"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
