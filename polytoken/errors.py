"""Exception classes for mistakes that the user can correct.

`cli.py` and the programs print one of these as a sentence and exit with code 2. Every other exception is a fault of the
code and keeps its traceback. Each class also derives from the built-in exception that a caller would expect.
"""

from __future__ import annotations

from typing import Self


def first_line(error: BaseException) -> str:
    """First line of an error's text, at most 200 characters; the name of its class if it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


class UserError(ValueError):
    """A wrong value, file or setting; the message names the thing, the place and the remedy."""


class SettingError(UserError):
    """A setting out of its range; the command line adds the place where it was given.

    Args:
        name: of the setting.
        value: of the setting.
        message: the whole sentence.
    """

    def __init__(self, name: str, value: object, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.value = value

    def __reduce__(self) -> tuple[type[SettingError], tuple[str, object, str]]:
        """Pickle all arguments, since errors travel between ranks and from data workers."""
        return type(self), (self.name, self.value, str(self))


class MissingPackageError(UserError):
    """A package that is not installed."""

    @classmethod
    def of(cls, what: str, error: ImportError, extra: str | None = "suite") -> Self:
        """The sentence for what needs the package; an extra of polytoken that installs it is named."""
        remedy = f": install the extra `{extra}`, pip install '.[{extra}]'" if extra else ""
        return cls(f"{what} needs a package that is not installed ({first_line(error)}){remedy}")


class MissingFileError(UserError, FileNotFoundError):
    """A file or directory that does not exist."""


class ExistingFileError(UserError, FileExistsError):
    """A file or directory that exists and would be overwritten."""


class RunError(UserError, RuntimeError):
    """A condition, found during a run, that prevents it from continuing."""
