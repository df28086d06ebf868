"""Classes recorded in a file are looked up in trusted packages only, and built as in training."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polytoken.building import build
from polytoken.errors import UserError
from polytoken.generators import AutoregressiveGenerator, Generator, TrunkConfig
from polytoken.quantizers import Quantizer, VectorQuantizer

TRUNK = {"dim": 16, "depth": 1, "num_heads": 2}


def section(head: Any = None, **arguments: Any) -> dict[str, Any]:
    head = {"class_path": "polytoken.generators.LinearHead"} if head is None else head
    return {
        "class_path": "polytoken.generators.AutoregressiveGenerator",
        "init_args": {"trunk": TRUNK, "head": head, "noise": None, **arguments},
    }


VECTORS = {"class_path": "polytoken.quantizers.VectorQuantizer", "init_args": {"codebook_size": 4, "code_dim": 2}}
OWN = """
from __future__ import annotations
from typing import TYPE_CHECKING
from polytoken.quantizers import VectorQuantizer
if TYPE_CHECKING:
    from pathlib import Path

class Passes(VectorQuantizer):
    def __init__(self, extra: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.extra = extra

class PassesOn(Passes):
    def __init__(self, bare=1, codebook_size="small", **kwargs):
        super().__init__(codebook_size={"small": 8}[codebook_size], **kwargs)
        self.bare = bare

class Hidden(VectorQuantizer):
    def __init__(self, file: Path | None = None):
        super().__init__()

class Complete(Hidden):
    def __init__(self, code_dim: int = 8):
        VectorQuantizer.__init__(self, code_dim=code_dim)

class Unsupported(VectorQuantizer):
    def __init__(self, part: VectorQuantizer | Passes | None = None):
        super().__init__()

class Needy(VectorQuantizer):
    def __init__(self):
        import no_such_package
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of a module with quantizers that jsonargparse takes."""
    (tmp_path / "own_quantizers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_quantizers"
    sys.modules.pop("own_quantizers", None)


def build_own(own: str, name: str, **arguments: Any) -> Any:
    section = {"class_path": f"{own}.{name}", "init_args": arguments}
    return build(section, Quantizer, "last.ckpt", trust=(own,))  # type: ignore[type-abstract]


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module on the path; importing it writes this file."""
    ran = tmp_path / "ran"
    (tmp_path / "evil_module.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield ran
    sys.modules.pop("evil_module", None)


def test_nested_sections_and_plain_values_become_arguments() -> None:
    noise = {"class_path": "polytoken.generators.SubTokenNoise", "init_args": {"probability": 0.5}}
    generator = build(section(noise=noise, aggregation="sum"), Generator, "last.ckpt")
    assert isinstance(generator, AutoregressiveGenerator)
    assert generator.config == TrunkConfig(16, 1, 2)
    assert generator.noise.probability == 0.5 and not generator.concatenates


@pytest.mark.parametrize(
    "recorded",
    [
        {"class_path": "evil_module.Generator"},
        section({"class_path": "evil_module.Head", "init_args": {}}),
        section(noise={"deeper": [{"class_path": "evil_module"}]}),
        section({"class_path": ["evil_module.Head"]}),
        section({"class_path": "polytoken_evil.Head"}),
        section("evil_module.Head"),
        section('{"class_path": "evil_module.Head"}'),
        section(noise="evil_module.Noise"),
        {"class_path": "polytoken.generators.AutoregressiveGenerator", "init_args": "evil_module.Arguments"},
        {"class_path": "polytoken.building.importlib.import_module", "init_args": {"name": "evil_module"}},
        {"class_path": "polytoken.generators.base.nn.Linear", "init_args": {}},
        {"class_path": "polytoken.os.system", "init_args": {"command": "true"}},
        {"class_path": "polytoken.files.os.system", "init_args": {"command": "true"}},
        {"class_path": "polytoken.fingerprint.subprocess.Popen", "init_args": {"args": ["true"]}},
        {"class_path": "polytoken.files.Path", "init_args": {}},
        {"class_path": "polytoken.generators.Generator", "init_args": {}},
        section({"class_path": "polytoken.generators.Head"}),
        {"class_path": "polytoken.generators.LinearHead"},
        {"class_path": "polytoken.generators.Gone"},
        {"class_path": ""},
        "evil_module.Generator",
        None,
        [],
    ],
)
def test_a_foreign_class_is_rejected_and_not_imported(recorded: Any, evil: Path) -> None:
    with pytest.raises(ValueError, match=r"last\.ckpt"):
        build(recorded, Generator, "last.ckpt")
    assert not evil.exists() and "evil_module" not in sys.modules


def test_the_error_names_file_and_class_and_trust_allows_it(evil: Path) -> None:
    recorded = section({"class_path": "evil_module.Head"})
    with pytest.raises(ValueError, match=r"^last\.ckpt names the class evil_module\.Head, .*pass .*as trust$"):
        build(recorded, Generator, "last.ckpt")
    with pytest.raises(ValueError, match="does not have"):
        build(recorded, Generator, "last.ckpt", trust=("evil_module",))
    assert evil.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"width": 3}, "unexpected keyword argument 'width'"),
        ({"trunk": {"dim": "wide", "depth": 1, "num_heads": 2}}, r"trunk: Expected `int`, got `str` - at `\$.dim`"),
        ({"aggregation": "product"}, "aggregation: Invalid enum value 'product'"),
        ({"trunk": {**TRUNK, "depth": 0}}, "trunk: depth is 0"),
    ],
)
def test_arguments_of_another_version_are_reported(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build(section(**arguments), Generator, "last.ckpt")


def test_arguments_that_are_passed_on_have_the_types_of_the_base_class(own: str) -> None:
    made = build_own(own, "Passes", extra=2, codebook_size=4, code_dim=2)
    assert (made.extra, made.codebook_sizes, made.in_channels) == (2, (4,), 2)
    assert build_own(own, "Complete", code_dim=2).in_channels == 2  # the types of its base do not matter
    with pytest.raises(UserError, match="do not fit .*: codebook_size: Expected `int`, got `str`"):
        build_own(own, "Passes", codebook_size="four")
    with pytest.raises(UserError, match="do not fit .*: .* unexpected keyword argument 'entries'"):
        build_own(own, "Passes", entries=4)


def test_an_argument_without_a_type_gets_its_value_as_it_is(own: str) -> None:
    made = build_own(own, "PassesOn", bare={"deep": [1, "a"]}, codebook_size="small", extra=3, code_dim=2)
    assert (made.bare, made.extra, made.codebook_sizes) == ({"deep": [1, "a"]}, 3, (8,))
    assert isinstance(build_own(own, "PassesOn", bare=VECTORS).bare, VectorQuantizer)
    with pytest.raises(UserError, match="class os.PathLike, and only classes of polytoken and own_quantizers"):
        build_own(own, "PassesOn", bare={"class_path": "os.PathLike"})


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("Hidden", {}, "do not fit .*: name 'Path' is not defined, so import it outside of `if TYPE_CHECKING`"),
        ("Unsupported", {"part": VECTORS}, "do not fit .*: part: .* is not supported"),
        ("Needy", {}, r"needs a package that is not installed \(No module named 'no_such_package'\)$"),
    ],
)
def test_a_class_that_cannot_be_built_is_reported(own: str, name: str, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        build_own(own, name, **arguments)
    assert f"{own}.{name}" in str(refused.value) and "last.ckpt" in str(refused.value)
