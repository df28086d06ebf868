"""Typed reading and writing of small records: JSON files, and plain data inside checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from polytoken.errors import MissingFileError, UserError
from polytoken.files import check_no_pipe, write_bytes

T = TypeVar("T")

LIMIT = 1 << 28  # bytes of a file
DEPTH = 100  # of plain data inside of checkpoints
VALUES = 10_000_000  # likewise, with each part as often as it is held

log = logging.getLogger(__name__)


def decode(data: bytes | Mapping[str, Any], type: type[T], where: Path | str) -> T:
    """Validate JSON text, or plain data, as a dataclass, a `msgspec.Struct` or any other annotated type.

    Fields that the type does not name are ignored.

    Args:
        data: UTF-8 JSON, or what JSON would decode to.
        type: the expected type.
        where: the file, for the message.

    Raises:
        UserError: naming the file and the place in it: `metrics.json: $.validate.metrics: expected object, got array`.
    """
    try:
        return msgspec.json.decode(data, type=type) if isinstance(data, bytes) else msgspec.convert(data, type)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `")
        reason = f"{reason[:1].lower()}{reason[1:]}".replace("`", "")
        raise UserError(f"{where}: {place.rstrip('`') or '$'}: {reason}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise UserError(f"{where} is not valid JSON: {reason[:1].lower()}{reason[1:]}") from error
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply") from error


def check_size(value: Any, where: Path | str) -> None:
    """Raise UserError if plain data are nested too deeply for a recursive reader, or hold a part so often that it ends.

    A pickle can hold one list nine times in another, and that nine times in a third: a reader would visit it 9^n times.
    """
    sizes: dict[int, int] = {}

    def size(node: Any, depth: int) -> int:
        if not isinstance(node, Mapping | list | tuple | set | frozenset):
            return 1
        if id(node) not in sizes:
            if depth > DEPTH:
                raise UserError(f"{where} is nested more than {DEPTH} deep")
            items = [*node.keys(), *node.values()] if isinstance(node, Mapping) else node
            sizes[id(node)] = 1 + sum(size(item, depth + 1) for item in items)
        return sizes[id(node)]

    if size(value, 0) > VALUES:
        raise UserError(f"{where} holds more than {VALUES:,} values")


def encode(value: Any) -> bytes:
    """Indented JSON of plain data, dataclasses and structs; NaN and infinity become null.

    Raises:
        UserError: if a text is not valid Unicode.
    """
    try:
        return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
    except UnicodeEncodeError as error:
        raise UserError(f"{error.object!r} is not valid Unicode and cannot be written to a JSON file") from error


def read(path: Path, type: type[T]) -> T:
    """Read and validate a JSON file.

    Raises:
        MissingFileError: there is no such file.
        UserError: it cannot be read, or is not what `decode` expects.
    """
    try:
        check_no_pipe(path)
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > LIMIT:
        raise UserError(f"{path} is larger than {LIMIT >> 20} MiB")
    return decode(data, type, path)


def read_derived(path: Path, type: type[T]) -> T | None:
    """Read a JSON file that can be regenerated; None if it does not exist.

    A broken one is renamed to `<name>.broken` with a warning, and None is returned.
    """
    try:
        return read(path, type)
    except MissingFileError:
        return None
    except UserError as error:
        aside = path.with_name(f"{path.name}.broken")
        with suppress(OSError):  # in a read-only directory it stays
            path.replace(aside)
        log.warning("%s. It is set aside as %s.", error, aside)
        return None


def write(path: Path, value: Any) -> None:
    """Write a value as a JSON file; a reader sees the old file or the new one."""
    write_bytes(path, encode(value))
