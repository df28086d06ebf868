"""Download published weights, for machines that have no network later (`make weights`)."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from artifacts import yaml_files
from artifacts.reference import Reference
from artifacts.repository import ADM_REFERENCE, REPOSITORY
from commands.program import new_parser, run
from polytoken.errors import RunError, first_line
from polytoken.files import file_sha256, write_text
from polytoken.metrics import inception

DIRECTORY = Path("weights")
CONFIGS = REPOSITORY / "configs"
ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021"


@dataclass(frozen=True)
class PublishedFile:
    """A file on its publisher's server.

    Args:
        name: its name below ``weights/``.
        url: its address.
        sha256_prefix: its SHA-256, or the start of it; empty if none is published.
    """

    name: str
    url: str
    sha256_prefix: str


FILES = (
    PublishedFile("vgg16.pth", "https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"),
    PublishedFile(inception.WEIGHTS.name, inception.URL, inception.SHA256),
)
REFERENCE = PublishedFile(ADM_REFERENCE.name, f"{ADM}/ref_batches/imagenet/256/{ADM_REFERENCE.name}", "")


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
            download_url_to_file(file.url, str(target), hash_prefix=file.sha256_prefix or None)
        except (OSError, RuntimeError) as error:
            raise RunError(
                f"{file.url} cannot be fetched ({error}): fetch it elsewhere and put it at {target}"
            ) from error
    elif not (found := file_sha256(target)).startswith(file.sha256_prefix):
        raise RunError(f"{target} has the SHA-256 {found}, not {file.sha256_prefix}…: delete it and fetch it again")
    return target


def fetch_reference(file: PublishedFile = REFERENCE, directory: Path = DIRECTORY) -> Path:
    """Download ADM's statistics of ImageNet (2 GB) unless they exist, and read them.

    No digest is published. The one of the first download is kept in `<name>.sha256`, and a later call compares.

    Raises:
        RunError: the server does not answer, or the file has changed since.
        UserError: it is no reference.
    """
    target = fetch(file, directory)
    digest = Reference.read(target).sha256
    record = target.with_name(f"{target.name}.sha256")
    if not record.exists():
        write_text(record, f"{digest}  {target.name}\n")
    elif record.read_text().split()[:1] != [digest]:
        raise RunError(f"{target} is not the file whose digest is in {record}: delete both and fetch it again")
    return target


def fetch_teacher(name: str, directory: Path = DIRECTORY) -> Path:
    """Download a foundation model from its hub unless it exists, and save its vision tower as safetensors.

    Weights that a package has installed stay there.

    Raises:
        UserError: no teacher has this name.
        RunError: its hub does not answer.
    """
    from polytoken.teachers import build_network, published_model
    from polytoken.teachers.efficientnet import EFFICIENTNETS
    from polytoken.weights import save_state

    if name in EFFICIENTNETS:
        return EFFICIENTNETS[name].path
    model, target = published_model(name), directory / f"{name}.safetensors"
    if not target.exists():
        try:
            network = build_network(model, model.image_size, pretrained=True)
        except (OSError, RuntimeError) as error:
            reason = first_line(error)
            raise RunError(
                f"teacher {name} cannot be fetched from its hub ({reason}): run this where there is a network"
            ) from error
        save_state(target, network, {"model": model.model})
    return target


def teachers_of(name: str) -> list[str]:
    """Foundation models by the name of one, or by that of a recipe: all that it names.

    Raises:
        UserError: no teacher and no recipe has this name.
    """
    from polytoken.teachers import FOUNDATION_MODELS, published_model

    recipe = CONFIGS / f"{name}.yaml"
    if recipe.is_file():
        named = _names(yaml_files.read(recipe))
        return [model for model in named if model in FOUNDATION_MODELS or model.startswith("timm/")]
    published_model(name)
    return [name]


def _names(section: object) -> Iterator[str]:
    """All values of `name` in a configuration."""
    if isinstance(section, dict):
        if isinstance(name := section.get("name"), str):
            yield name
        for below in section.values():
            yield from _names(below)


def main(arguments: list[str] | None = None) -> None:
    """Fetch all files and the named teachers, and print their paths."""
    parser = new_parser("commands.weights", __doc__)
    parser.add_argument(
        "teachers", nargs="*", help="foundation models, e.g. dinov2_base, or recipes that name them, e.g. fq_dual"
    )
    run(parser, _fetch_all, arguments)


def _fetch_all(given: Namespace) -> None:
    teachers = dict.fromkeys(model for name in given.teachers for model in teachers_of(name))  # before 2 GB are fetched
    for file in FILES:
        print(f"{file.name}: {fetch(file)}")
    print(f"{REFERENCE.name}: {fetch_reference()}")
    for name in teachers:
        print(f"{name}: {fetch_teacher(name)}")


if __name__ == "__main__":
    main()
