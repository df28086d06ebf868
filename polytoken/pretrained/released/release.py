"""Description of a released checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from polytoken.pretrained.released.layout import Network, State
from polytoken.pretrained.released.reading import PLACES


class Describe(Protocol):
    """Reads the architecture off released weights."""

    def __call__(self, state: State, image_size: int) -> Network:
        """Describe the network of a state for images of ``image_size`` pixels a side."""


@dataclass(frozen=True)
class Licence:
    """Terms of released weights.

    Args:
        name: as its authors write it.
        hub: its identifier on the Hugging Face hub.
        non_commercial: True if they forbid commercial use; such weights are loaded only by who accepts that.
    """

    name: str
    hub: str
    non_commercial: bool = False


MIT = Licence("MIT", "mit")
APACHE = Licence("Apache-2.0", "apache-2.0")


@dataclass(frozen=True)
class Companion:
    """A second file of a release: tensors that are no weights, such as statistics of latents.

    Its tensors join the weights under names that begin with the file's and a colon.

    Args:
        repository: on the Hugging Face hub.
        file: in that repository; beside the first file if that one is on this machine.
    """

    repository: str
    file: str


@dataclass(frozen=True)
class Release:
    """A released checkpoint.

    Args:
        describe: reads the architecture.
        licence: of the weights.
        source: paper and repository.
        repository: on the Hugging Face hub; None if the authors released no file.
        file: in that repository.
        image_size: pixels a side.
        downsampling: pixels a side of a position of a tokenizer, which its name states; None is not checked.
        sub_codes: of a position; None is not checked.
        tokenizer: name of the release whose codes a generator writes; None for a tokenizer.
        companion: a second file that the network needs.
        places: keys that lead to the weights.
        published: figures of the authors.
        remark: what a user should know.
    """

    describe: Describe
    licence: Licence
    source: str
    repository: str | None = None
    file: str | None = None
    image_size: int = 256
    downsampling: int | None = None
    sub_codes: int | None = None
    tokenizer: str | None = None
    companion: Companion | None = None
    places: tuple[tuple[str, ...], ...] = PLACES
    published: str = ""
    remark: str = ""


Table = dict[str, Release]
