"""The record of the measured weights, of a run whose training goes on meanwhile."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from commands.codes import codes
from commands.fidelity import measure
from commands.probe import probe
from commands.recovery import recovery
from polytoken.files import file_sha256
from polytoken.metrics.recovery import Recovery
from tests.support.extractors import MeanColours
from tests.support.generated import configure, write_runs

PROGRAMS: dict[str, Callable[[Path], Mapping[str, Any]]] = {
    "codes": lambda run: codes(run, MeanColours(), max_images=4),  # type: ignore[arg-type]
    "fidelity": lambda run: measure(run, 0, new_extractor=MeanColours).result,  # type: ignore[arg-type]
    "probe": lambda run: probe(run, ["after/0"], max_train=20),
    "recovery": lambda run: recovery(run, Recovery(1, batch_size=4), max_images=4),
}


def check_record(run: Path, measured: Callable[[Path], Mapping[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the checkpoint by the next one as soon as images are read; the record is of the first one."""
    file = run / "checkpoints/last.ckpt"
    first, seen = file_sha256(file), []

    def track(items: Iterable[Any], *_: object, **__: object) -> Iterator[Any]:
        content = torch.load(file, weights_only=True)
        torch.save(content | {"global_step": content["global_step"] + 1}, file.with_name("next.ckpt"))
        os.replace(file.with_name("next.ckpt"), file)
        seen.append(file_sha256(file))
        yield from items

    for module in ("measuring", "fidelity"):
        monkeypatch.setattr(f"commands.{module}.track", track)
    record = measured(run)["checkpoint"]
    assert (record["sha256"], record["step"]) == (first, 7)
    assert seen and first not in seen


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_record_is_of_the_measured_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(write_runs(tmp_path / "runs/digits", image_size=32))
    check_record(tmp_path / "runs/digits/tokenizer/tiny", PROGRAMS[name], monkeypatch)
