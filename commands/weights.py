"""Download published weights, for machines that have no network later (`make weights`)."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from commands.program import new_parser, run
from polytoken.errors import RunError
from polytoken.files import file_sha256
from polytoken.metrics import inception

DIRECTORY = Path("weights")


@dataclass(frozen=True)
class PublishedFile:
    """A file on its publisher's server.

    Args:
        name: its name below ``weights/``.
        url: its address.
        sha256_prefix: its SHA-256, or the start of it.
    """

    name: str
    url: str
    sha256_prefix: str


FILES = (
    PublishedFile("vgg16.pth", "https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"),
    PublishedFile(inception.WEIGHTS.name, inception.URL, inception.SHA256),
)


def fetch(file: PublishedFile, directory: Path = DIRECTORY) -> Path:
    """Download a file unless it exists.

    Raises:
        RunError: the server does not answer, or the digest is not the published one.
    """
    from torch.hub import download_url_to_file

    target = directory / file.name
    if not target.exists():
        directory.mkdir(parents=True, exist_ok=True)
        try:
            download_url_to_file(file.url, str(target), hash_prefix=file.sha256_prefix)
        except (OSError, RuntimeError) as error:
            raise RunError(
                f"{file.url} cannot be fetched ({error}): fetch it elsewhere and put it at {target}"
            ) from error
    elif not (found := file_sha256(target)).startswith(file.sha256_prefix):
        raise RunError(f"{target} has the SHA-256 {found}, not {file.sha256_prefix}…: delete it and fetch it again")
    return target


def fetch_teacher(name: str, directory: Path = DIRECTORY) -> Path:
    """Download a foundation model from its hub unless it exists, and save its vision tower as safetensors.

    Raises:
        UserError: no teacher has this name.
        RunError: its hub does not answer.
    """
    from polytoken.teachers import build_network, published_model
    from polytoken.weights import save_state

    model, target = published_model(name), directory / f"{name}.safetensors"
    if not target.exists():
        try:
            network = build_network(model, model.image_size, pretrained=True)
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(
                f"teacher {name} cannot be fetched from its hub ({reason}): run this where there is a network"
            ) from error
        save_state(target, network, {"model": model.model})
    return target


def main(arguments: list[str] | None = None) -> None:
    """Fetch all files and the named teachers, and print their paths."""
    parser = new_parser("commands.weights", __doc__)
    parser.add_argument("teachers", nargs="*", help="foundation models, e.g. dinov2_base")
    run(parser, _fetch_all, arguments)


def _fetch_all(given: Namespace) -> None:
    for file in FILES:
        print(f"{file.name}: {fetch(file)}")
    for name in given.teachers:
        print(f"{name}: {fetch_teacher(name)}")


if __name__ == "__main__":
    main()
