"""Classes recorded in a file are looked up in trusted packages only."""

import sys
from pathlib import Path
from typing import Any

import pytest

from polytoken.building import build
from polytoken.generators import AutoregressiveGenerator, Generator, TrunkConfig

TRUNK = {"dim": 16, "depth": 1, "num_heads": 2}


def section(head: Any = None, **arguments: Any) -> dict[str, Any]:
    head = {"class_path": "polytoken.generators.LinearHead"} if head is None else head
    return {
        "class_path": "polytoken.generators.AutoregressiveGenerator",
        "init_args": {"trunk": TRUNK, "head": head, "noise": None, **arguments},
    }


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module on the path; importing it writes this file."""
    ran = tmp_path / "ran"
    (tmp_path / "evil_module.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    return ran


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
