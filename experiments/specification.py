"""What an experiment file says; a mistake in it is named with the file, the line and the row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from artifacts.repository import CONFIGS, PRESETS, REPOSITORY
from commands.cli.places import compose, nearest, nearest_file, read_places
from experiments.stages import KINDS, METRICS, built_upon
from polytoken.errors import UserError

DIRECTORY = Path(__file__).resolve().parent
DIRECTIONS = {"up": "↑", "down": "↓"}
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Metric:
    """A column of the table.

    Args:
        name: As in `metrics.json`; `val/usage/*` is the mean over all that match.
        label: The column's head.
        direction: What is better, `up` or `down`.
        paper: The paper's column this one stands for, if it has one.
        presets: Those that measure it; none named is all.
    """

    name: str
    label: str
    direction: str
    paper: str | None = None
    presets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Paper:
    """Where the paper's numbers are from, and the names of its columns."""

    name: str
    table: str
    source: str
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One run of `cli.py`, or of a program that trains nothing.

    Args:
        stage: Its kind, a key of `KINDS`.
        recipe: The file `configs/<recipe>.yaml`; a kind with only one has it by itself, a program has none.
        preset_file: The file `configs/presets/<preset>/<preset_file>.yaml`; likewise.
        overrides: What differs from both, by dotted key; those that all stages of the kind share come first.
        sizes: Overrides of one preset alone, by its name; they count more.
    """

    stage: str
    recipe: str
    preset_file: str
    overrides: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def at(self, preset: str) -> Stage:
        """It with the overrides of one preset."""
        return replace(self, overrides=merged(self.overrides, self.sizes.get(preset, {})), sizes={})

    def configs(self, preset: str) -> list[Path]:
        """Recipe, preset, and the preset's overlay of the recipe where there is one; none of a program."""
        if KINDS[self.stage].options is not None:
            return []
        names = dict.fromkeys((self.preset_file, self.recipe))  # a recipe may have the name of its preset's file
        files = [CONFIGS / "presets" / preset / f"{name}.yaml" for name in names]
        return [short(CONFIGS / f"{self.recipe}.yaml"), short(files[0]), *map(short, filter(Path.exists, files[1:]))]


@dataclass(frozen=True)
class Row:
    """A row of the table: its stages in the order they run."""

    label: str
    stages: tuple[Stage, ...]
    paper: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """One table of a paper.

    Args:
        name: `<paper>/<table>`.
        file: Where it is written.
        title: One line.
        paper: What it is compared with.
        metrics: The columns.
        presets: The presets that it is made for.
        rows: The rows.
    """

    name: str
    file: Path
    title: str
    paper: Paper
    metrics: tuple[Metric, ...]
    presets: tuple[str, ...]
    rows: tuple[Row, ...]

    def at(self, preset: str) -> Experiment:
        """It with the columns and the overrides of one preset; raises UserError if it is not made for that one."""
        if preset not in self.presets:
            raise UserError(
                f"{self.name} is not made for the preset '{preset}', only for {', '.join(self.presets)}\n"
                f"  {where(self.file, ('presets',))}"
            )
        metrics = tuple(metric for metric in self.metrics if not metric.presets or preset in metric.presets)
        rows = tuple(replace(row, stages=tuple(stage.at(preset) for stage in row.stages)) for row in self.rows)
        return replace(self, metrics=metrics, rows=rows)


def short(path: Path) -> Path:
    """A file of the repository as a user in it would type it."""
    return path.relative_to(REPOSITORY) if Path.cwd() == REPOSITORY else path


def names() -> list[str]:
    """All experiments of this package, as `<paper>/<table>`."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in DIRECTORY.glob("*/*.yaml"))


def load(name: str) -> Experiment:
    """Read an experiment by its name, or by the path of a YAML file; raises UserError if anything in it is wrong."""
    file = Path(name) if name.endswith(".yaml") else short(DIRECTORY / f"{name}.yaml")
    if not file.is_file():
        match = nearest_file(file) if name.endswith(".yaml") else nearest(name, names())
        raise UserError(f"there is no experiment '{name}'" + (f"\n  did you mean {match}?" if match else ""))
    compose(file)  # raises if it is not YAML
    return _Reader(file).experiment()


@dataclass(frozen=True)
class Overrides:
    """What the stages of an experiment share: by kind, and by preset and kind."""

    shared: dict[str, dict[str, Any]]
    sizes: dict[str, dict[str, dict[str, Any]]]


def merged(*overrides: dict[str, Any]) -> dict[str, Any]:
    """All in one. A key that is given again moves to its later place: of two that contradict, the later counts."""
    together: dict[str, Any] = {}
    for given in overrides:
        for key, value in given.items():
            together.pop(key, None)
            together[key] = value
    return together


class _Reader:
    """Turns the content of one file into an Experiment."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.content = yaml.safe_load(file.read_text(encoding="utf-8"))

    def experiment(self) -> Experiment:
        content = dict(self.mapping(self.content, ()))
        shared = self.by_kind(content.pop("shared", None) or {}, ("shared",))
        sizes = content.pop("sizes", None) or {}
        listed = ("metrics", "presets", "rows")
        self.known(content, ("title", "paper", *listed), (), what="a key of an experiment")
        for key in ("title", "paper", *listed):
            if not content.get(key):
                self.fail((), f"'{key}' is missing")
            if key in listed and not isinstance(content[key], list):
                self.fail((key,), f"'{key}' is no list")
        presets = content["presets"]
        self.one_of(presets, [path.name for path in PRESETS.iterdir()], ("presets",), "a preset")
        self.of_presets(sizes, presets, ("sizes",))
        common = Overrides(shared, {name: self.by_kind(given, ("sizes", name)) for name, given in sizes.items()})
        paper = self.build(Paper, content["paper"], ("paper",))
        metrics = tuple(self.metric(given, index, paper, presets) for index, given in enumerate(content["metrics"]))
        rows = tuple(self.row(given, index, paper, common, presets) for index, given in enumerate(content["rows"]))
        if len({row.label for row in rows}) < len(rows):
            self.fail(("rows",), "two rows have the same label")
        name = f"{self.file.resolve().parent.name}/{self.file.stem}"
        return Experiment(name, self.file, content["title"], paper, metrics, tuple(presets), rows)

    def by_kind(self, given: Any, path: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """The overrides that all stages of a kind share, by kind."""
        self.known(self.mapping(given, path), list(KINDS), path, what="a kind of stage")
        return {kind: self.overrides(kind, keys, (*path, kind)) for kind, keys in given.items()}

    def of_presets(self, given: Any, presets: list[str], path: tuple[str, ...]) -> None:
        """Refuse sizes of a preset that the experiment is not made for."""
        self.known(self.mapping(given, path), presets, path, what="a preset of this experiment")

    def metric(self, given: Any, index: int, paper: Paper, presets: list[str]) -> Metric:
        path = (f"metrics[{index}]",)
        metric = self.build(Metric, given, path)
        if not any(fnmatch(metric.name, known) or fnmatch(known, metric.name) for known in METRICS):
            self.one_of([metric.name], METRICS, (*path, "name"), "a metric")
        self.one_of([metric.direction], DIRECTIONS, (*path, "direction"), "a direction")
        if metric.paper is not None:
            self.one_of([metric.paper], paper.columns, (*path, "paper"), "a column of the paper")
        if not isinstance(metric.presets, list | tuple):
            self.fail((*path, "presets"), "'presets' is no list")
        self.one_of([*metric.presets], presets, (*path, "presets"), "a preset of this experiment")
        return replace(metric, presets=tuple(metric.presets))

    def row(self, given: Any, index: int, paper: Paper, common: Overrides, presets: list[str]) -> Row:
        path = (f"rows[{index}]",)
        row = self.build(Row, given, path)
        numbers = self.mapping(row.paper or {}, (*path, "paper"))
        self.known(numbers, paper.columns, (*path, "paper"), what="a column of the paper")
        for column, number in numbers.items():
            if not isinstance(number, int | float):
                self.fail((*path, "paper", column), f"{column} is '{number}', which is no number: leave it out")
        if not row.stages or not isinstance(row.stages, list):
            self.fail((*path, "stages"), "'stages' is no list of stages")
        stages = [self.stage(stage, (*path, f"stages[{i}]"), common, presets) for i, stage in enumerate(row.stages)]
        for i, stage in enumerate(stages):
            for argument, place in built_upon([one.stage for one in stages[: i + 1]]).items():
                if place is None:
                    needed = " or ".join(f"'{kind}'" for kind in KINDS[stage.stage].upon[argument])
                    self.fail(
                        (*path, f"stages[{i}]"),
                        f"'{stage.stage}' is built upon {needed}, and the row has none before it",
                    )
        return Row(str(row.label), tuple(stages), dict(numbers))

    def stage(self, given: Any, path: tuple[str, ...], common: Overrides, presets: list[str]) -> Stage:
        keys = self.mapping(given, path)
        name = keys.get("stage")
        program = False
        if name is not None:
            self.one_of([name], KINDS, (*path, "stage"), "a kind of stage")
            kind = KINDS[name]
            program = kind.options is not None
            for key in ("recipe", "preset_file"):
                if program and key in keys:
                    self.fail((*path, key), f"'{name}' trains nothing and has no {key}: leave it out")
            only = {"recipe": name, "preset_file": name} if program else vars(kind)
            keys = {"recipe": only["recipe"], "preset_file": only["preset_file"], **keys}
        stage = self.build(Stage, keys, path)
        if not program:
            recipes = [file.stem for file in CONFIGS.glob("*.yaml") if file.stem != "base"]
            self.one_of([stage.recipe], recipes, (*path, "recipe"), "a recipe")
            for preset in presets:
                files = [file.stem for file in CONFIGS.glob(f"presets/{preset}/*.yaml")]
                self.one_of([stage.preset_file], files, (*path, "preset_file"), f"a file of the preset {preset}")
        own = self.overrides(stage.stage, stage.overrides or {}, (*path, "overrides"))
        self.of_presets(stage.sizes or {}, presets, (*path, "sizes"))
        sizes = {}
        for preset in presets:
            place = (*path, "sizes", preset)
            given_here = self.overrides(stage.stage, (stage.sizes or {}).get(preset) or {}, place)
            # the stage's own count more than those of all stages of the preset
            sizes[preset] = merged(common.sizes.get(preset, {}).get(stage.stage, {}), own, given_here)
        return replace(stage, overrides=merged(common.shared.get(stage.stage, {}), own), sizes=sizes)

    def overrides(self, kind: str, given: Any, path: tuple[str, ...]) -> dict[str, Any]:
        """Overrides of a stage of this kind, without what the stages before it decide."""
        options = KINDS[kind].options
        for key, value in self.mapping(given, path).items():
            if key in KINDS[kind].upon:
                self.fail((*path, key), f"{key} is not to be set: a '{kind}' gets it from the stage before it")
            if options is not None:  # else cli.py's parser has a say
                self.one_of([key], options, (*path, key), f"an option of '{kind}'")
                if isinstance(value, bool) or not isinstance(value, int | float):
                    self.fail((*path, key), f"{key} is '{value}', which is no number")
        return dict(given)

    def build(self, kind: type[Kind], given: Any, path: tuple[str, ...]) -> Kind:
        """Make one dataclass of a mapping, after a look at its keys."""
        declared = fields(kind)  # type: ignore[arg-type]
        keys = self.mapping(given, path)
        self.known(keys, [entry.name for entry in declared], path, what=f"a key of a {kind.__name__.lower()}")
        for entry in declared:
            if entry.default is MISSING and entry.default_factory is MISSING and keys.get(entry.name) is None:
                self.fail(path, f"'{entry.name}' is missing")
        return kind(**keys)

    def mapping(self, given: Any, path: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
            self.fail(path, f"expected keys with values, got '{given}'")
        return given

    def known(self, keys: dict[str, Any], valid: Sequence[str], path: tuple[str, ...], what: str) -> None:
        for key in keys:
            self.one_of([key], valid, (*path, key), what)

    def one_of(self, values: list[Any], valid: Any, path: tuple[str, ...], what: str) -> None:
        for value in values:
            if value not in valid:
                match = nearest(str(value), valid)
                meant = f"did you mean {match}?" if match else f"there are: {', '.join(sorted(valid)) or 'none'}"
                self.fail(path, f"'{value}' is not {what}", meant)

    def fail(self, path: tuple[str, ...], message: str, remedy: str | None = None) -> NoReturn:
        if path and path[0].startswith("rows["):
            row = self.content["rows"][int(path[0][5:-1])]
            label = row.get("label") if isinstance(row, dict) else None
            message = f"row '{label or path[0]}': {message}"
        raise UserError("\n  ".join(filter(None, [message, where(self.file, path), remedy])))


def where(file: Path, *paths: tuple[str, ...]) -> str:
    """File and line of the first of these keys that is there, else of the nearest key above the first."""
    places: dict[tuple[str, ...], str] = {}
    for keys, _, place in read_places(["--config", str(file)]):
        for end in range(1, len(keys) + 1):  # an item of a list begins with its first key
            places.setdefault(keys[:end], place)
    above = [paths[0][:end] for end in range(len(paths[0]) - 1, 0, -1)]
    return next((places[path] for path in (*paths, *above) if path in places), f"in {file}")
