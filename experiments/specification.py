"""Reading of an experiment's file. A mistake in it raises UserError with the file, the line and the row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import msgspec
from msgspec import structs

from artifacts import yaml_files
from artifacts.repository import CONFIGS, PRESETS, REPOSITORY
from commands.cli.places import compose, nearest, nearest_file, read_places
from experiments.stages import KINDS, input_stages
from polytoken.errors import UserError
from polytoken.files import real_path

DIRECTORY = REPOSITORY / "experiments"
Overrides = dict[str, Any]  # by dotted key
_NOT_EMPTY = msgspec.Meta(min_length=1)


class Metric(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A column of the table."""

    name: str  # as in metrics.json; `val/usage/*` is the mean over all that match
    label: str
    direction: Literal["up", "down"] | None = None  # the better one
    paper: str | None = None  # the paper's column that corresponds to this one
    percent: bool = False  # a share that is shown in percent, as the paper prints it
    presets: tuple[str, ...] = ()  # those that measure it; empty means all


class Paper(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Source of the paper's numbers, and the names of its columns."""

    name: str
    table: str
    source: str
    columns: tuple[str, ...] = ()


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run of `cli.py`, or of a program that trains nothing."""

    kind: str = msgspec.field(name="stage")  # a key of KINDS
    recipe: str | None = None  # configs/<recipe>.yaml; left out for a kind that has only one, or none
    preset_file: str | None = None  # configs/presets/<preset>/<preset_file>.yaml; likewise
    overrides: Overrides = {}
    sizes: dict[str, Overrides] = {}  # overrides of single presets; empty once `load` has applied them

    @property
    def is_program(self) -> bool:
        """True for a stage that trains nothing."""
        return KINDS[self.kind].options is not None

    def configs(self, preset: str) -> list[Path]:
        """Recipe, preset, and the preset's overlay of the recipe if there is one; empty for a program."""
        names = dict.fromkeys((self.preset_file, self.recipe))  # a recipe may have the name of its preset's file
        preset_file, *overlay = [PRESETS / preset / f"{name}.yaml" for name in names]
        files = [CONFIGS / f"{self.recipe}.yaml", preset_file, *filter(Path.exists, overlay)]
        return [] if self.is_program else [short(file) for file in files]


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row of the table: its stages in the order they run, and the paper's numbers by column."""

    label: str
    stages: Annotated[tuple[Stage, ...], _NOT_EMPTY]
    paper: dict[str, float] = {}
    against: str | None = None  # label of the row that a table of changes compares it with
    line: str | None = None  # rows of one line are a line of the picture, and their changes are pooled
    presets: tuple[str, ...] = ()  # those that run it; empty means all


class Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An experiment's file as written; `shared` and, by preset, `sizes` hold overrides by kind of stage."""

    title: str
    paper: Paper
    metrics: Annotated[tuple[Metric, ...], _NOT_EMPTY]
    presets: Annotated[tuple[str, ...], _NOT_EMPTY]
    rows: Annotated[tuple[Row, ...], _NOT_EMPTY]
    shared: dict[str, Overrides] = {}
    sizes: dict[str, dict[str, Overrides]] = {}

    def apply(self, stage: Stage, preset: str) -> Stage:
        """This stage with its kind's files and all overrides: those of the file, then its own; the preset's last."""
        name, kind = stage.kind, KINDS[stage.kind]
        given = [self.shared.get(name), self.sizes.get(preset, {}).get(name), stage.overrides, stage.sizes.get(preset)]
        return Stage(name, stage.recipe or kind.recipe, stage.preset_file or kind.preset_file, merged(*given))


@dataclass(frozen=True)
class Experiment:
    """One table of a paper at one preset."""

    name: str  # <paper>/<table>
    source: Source
    preset: str
    presets: tuple[str, ...]  # all that the file names
    title: str
    paper: Paper
    metrics: tuple[Metric, ...]  # those that the preset measures
    rows: tuple[Row, ...]  # with the overrides of their stages applied

    def compared_with(self, label: str) -> Experiment:
        """The same rows, each compared with the one of this label; UserError if there is none."""
        labels = [row.label for row in self.rows]
        if label not in labels:
            match = nearest(label, labels)
            remedy = f"did you mean {match}?" if match else f"there are: {', '.join(labels)}"
            raise UserError(f"'{label}' is no row of {self.name} at the preset {self.preset}: {remedy}")
        rows = [structs.replace(row, against=None if row.label == label else label, line=None) for row in self.rows]
        return replace(self, rows=tuple(rows))


@dataclass(frozen=True)
class Source:
    """An experiment's file, for error messages with its lines."""

    file: Path
    content: Any

    def where(self, *paths: tuple[str, ...]) -> str:
        """File and line of the first of these keys that exists, else of the nearest key above the first."""
        lines: dict[tuple[str, ...], str] = {}
        for keys, _, place in read_places(["--config", str(self.file)]):
            for end in range(1, len(keys) + 1):  # an item of a list begins with its first key
                lines.setdefault(keys[:end], place)
        above = [paths[0][:end] for end in range(len(paths[0]) - 1, 0, -1)]
        return next((lines[path] for path in (*paths, *above) if path in lines), f"in {self.file}")

    def overrides(self, stage: tuple[str, ...], kind: str, preset: str, key: str) -> list[tuple[str, ...]]:
        """Paths where an override of a stage may be, in order of precedence."""
        own = [(*stage, "sizes", preset, key), (*stage, "overrides", key)]
        return [*own, ("sizes", preset, kind, key), ("shared", kind, key)]

    def fail(self, message: str, *paths: tuple[str, ...], remedy: str | None = None) -> NoReturn:
        """Raise UserError for the first of these keys that exists."""
        if paths and paths[0] and paths[0][0].startswith("rows["):
            row = self.content["rows"][int(paths[0][0][5:-1])]
            label = row.get("label") if isinstance(row, dict) else None
            message = f"row '{label or paths[0][0]}': {message}"
        raise UserError("\n  ".join(filter(None, [message, self.where(*paths), remedy])))

    def one_of(self, value: Any, valid: Iterable[str], what: str, *paths: tuple[str, ...]) -> None:
        """Fail with the nearest valid name unless the value is one of them."""
        if value not in (names := sorted(valid)):
            match = nearest(str(value), names)
            remedy = f"did you mean {match}?" if match else f"there are: {', '.join(names) or 'none'}"
            self.fail(f"'{value}' is not {what}", *paths, remedy=remedy)

    def decode(self) -> Written:
        """The content with its types and names checked."""
        try:
            written = msgspec.convert(self.content, Written)
        except msgspec.ValidationError as error:
            message, _, place = str(error).partition(" - at ")
            path = tuple(filter(None, re.sub(r"\[\.\.\.\]|.*\$|`", "", place).split(".")))
            if unknown := re.search(r"unknown field `(.*)`", message):
                keys = {key for kind in (Written, Metric, Paper, Row, Stage) for key in kind.__struct_encode_fields__}
                self.one_of(unknown[1], keys - {unknown[1]}, "a key here", (*path, unknown[1]))
            self.fail(message[0].lower() + message[1:], path)
        for name, valid, what, path in _names(written):
            self.one_of(name, valid, what, path)
        for index, row in enumerate(written.rows):
            for number in range(len(row.stages)):
                for preset in row.presets or written.presets:
                    self._check_stage(written, row, number, preset, (f"rows[{index}]", f"stages[{number}]"))
        if len({row.label for row in written.rows}) < len(written.rows):
            self.fail("two rows have the same label: give each its own", ("rows",))
        for index, row in enumerate(written.rows):
            others = {other.label for other in written.rows} - {row.label}
            if row.against is not None:
                self.one_of(row.against, others, "the label of another row", (f"rows[{index}]", "against"))
        return written

    def _check_stage(self, written: Written, row: Row, number: int, preset: str, path: tuple[str, ...]) -> None:
        """Raise UserError for what can be told without the parser of `cli.py`."""
        stage = written.apply(row.stages[number], preset)
        kind = KINDS[stage.kind]
        recipes = [file.stem for file in CONFIGS.glob("*.yaml") if file.stem != "base"]
        files = [file.stem for file in PRESETS.glob(f"{preset}/*.yaml")]
        for key, name, valid, what in (
            ("recipe", stage.recipe, recipes, "a recipe"),
            ("preset_file", stage.preset_file, files, f"a file of the preset {preset}"),
        ):
            if stage.is_program and name is not None:
                self.fail(f"'{stage.kind}' trains nothing and has no {key}: leave it out", (*path, key))
            if not stage.is_program and name is None:
                self.fail(f"'{key}' is missing", path)
            if not stage.is_program:
                self.one_of(name, valid, what, (*path, key))
        for argument, given in input_stages([one.kind for one in row.stages[: number + 1]]).items():
            if given is None:
                needed = " or ".join(f"'{name}'" for name in kind.inputs[argument])
                self.fail(f"'{stage.kind}' needs {needed} before it in its row", path)
        for key, value in stage.overrides.items():
            places = self.overrides(path, stage.kind, preset, key)
            if key in kind.inputs:
                self.fail(f"{key} is not to be set: a '{stage.kind}' gets it from a stage before it", *places)
            if kind.options is not None:
                self.one_of(key, kind.options, f"an option of '{stage.kind}'", *places)
                if isinstance(value, bool) or not isinstance(value, int | float):
                    self.fail(f"{key} is '{value}', expected a number", *places)


def short(path: Path) -> Path:
    """A file of the repository, relative if the repository is the working directory."""
    return path.relative_to(REPOSITORY) if Path.cwd() == REPOSITORY else path


def names() -> list[str]:
    """All experiments of this package, as `<paper>/<table>`."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in DIRECTORY.glob("*/*.yaml"))


def load(name: str, preset: str | None = None) -> Experiment:
    """Read an experiment by its name or by the path of a YAML file, at a preset (default: the first that it names)."""
    file = Path(name) if name.endswith(".yaml") else short(DIRECTORY / f"{name}.yaml")
    if not file.is_file():
        match = nearest_file(file) if name.endswith(".yaml") else nearest(name, names())
        remedy = f"did you mean {match}?" if match else "`python -m experiments list` names all; a path ends in .yaml"
        raise UserError(f"there is no experiment '{name}'\n  {remedy}")
    compose(file)  # raises if it is not YAML
    source = Source(file, yaml_files.read(file))
    written = source.decode()
    full_name = f"{real_path(file).parent.name}/{file.stem}"
    preset = preset or written.presets[0]
    if preset not in written.presets:
        known = ", ".join(written.presets)
        source.fail(f"{full_name} is not made for the preset '{preset}', only for {known}", ("presets",))
    metrics = tuple(metric for metric in written.metrics if not metric.presets or preset in metric.presets)
    rows = tuple(
        msgspec.structs.replace(row, stages=tuple(written.apply(stage, preset) for stage in row.stages))
        for row in written.rows
        if not row.presets or preset in row.presets
    )
    return Experiment(full_name, source, preset, written.presets, written.title, written.paper, metrics, rows)


def merged(*overrides: Overrides | None) -> Overrides:
    """All in one. A repeated key moves to its later position: of two that contradict, the later counts."""
    together: Overrides = {}
    for key, value in (item for given in overrides for item in (given or {}).items()):
        together.pop(key, None)
        together[key] = value
    return together


def _names(written: Written) -> Iterator[tuple[str, Iterable[str], str, tuple[str, ...]]]:
    """Every name of a preset, kind or column: the name, the valid ones, what they are, and its path."""
    columns, kinds = (written.paper.columns, "a column of the paper"), (KINDS, "a kind of stage")
    presets = (written.presets, "a preset of this experiment")
    for preset in written.presets:
        yield preset, [path.name for path in PRESETS.iterdir()], "a preset", ("presets",)
    for index, metric in enumerate(written.metrics):
        if metric.paper is not None:
            yield metric.paper, *columns, (f"metrics[{index}]", "paper")
        for preset in metric.presets:
            yield preset, *presets, (f"metrics[{index}]", "presets")
    for kind in written.shared:
        yield kind, *kinds, ("shared", kind)
    for preset, by_kind in written.sizes.items():
        yield preset, *presets, ("sizes", preset)
        for kind in by_kind:
            yield kind, *kinds, ("sizes", preset, kind)
    for index, row in enumerate(written.rows):
        for column in row.paper:
            yield column, *columns, (f"rows[{index}]", "paper", column)
        for preset in row.presets:
            yield preset, *presets, (f"rows[{index}]", "presets")
        for number, stage in enumerate(row.stages):
            yield stage.kind, *kinds, (f"rows[{index}]", f"stages[{number}]", "stage")
            for preset in stage.sizes:
                yield preset, *presets, (f"rows[{index}]", f"stages[{number}]", "sizes", preset)
