"""The record in a generator's checkpoint is plain data and validated."""

from typing import Any

import pytest

from polytoken.generators.record import GeneratorRecord, InitFrom, Lineage
from polytoken.specs import TokenSpec

SPEC = TokenSpec((8, 8), ((2, 3),))
SOURCE = InitFrom("last.ckpt", "b" * 64, 7, "a" * 64, (0,), "all", ("one",), ("two",), ())
RECORD = GeneratorRecord(
    SPEC, SPEC, (0, 1), "runs/t", "a" * 64, 2, {"cat": 0, "dog": 1}, Lineage("runs/t", "a" * 64, "store", SOURCE)
)


def test_a_record_round_trips_through_plain_data() -> None:
    plain = RECORD.to_plain()
    assert plain["spec"] == SPEC.to_json() and plain["sub_codes"] == [0, 1]
    assert plain["lineage"]["init_from"]["sub_code"] == "all"
    assert GeneratorRecord.from_plain(plain, "last.ckpt: generator") == RECORD


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"spec": None}, r"\$\.spec: expected object, got null"),
        ({"spec": {"codebook_sizes": ["a"], "scales": []}}, r"\$\.spec\.codebook_sizes\[0\]: expected int, got str"),
        ({"sub_codes": 3}, r"\$\.sub_codes: expected array, got int"),
        ({"class_to_idx": {"cat": "dog"}}, r"\$\.class_to_idx"),
        ({"lineage": {}}, r"\$\.lineage: object missing required field tokenizer_run"),
    ],
)
def test_a_broken_record_is_one_sentence_with_its_place(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^last.ckpt: generator: {says}"):
        GeneratorRecord.from_plain({**RECORD.to_plain(), **changes}, "last.ckpt: generator")
