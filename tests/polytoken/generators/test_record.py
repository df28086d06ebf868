"""The record in a generator's checkpoint is plain data and validated."""

from dataclasses import replace
from typing import Any

import pytest

from polytoken.generators.record import GeneratorRecord, InitFrom, Lineage
from polytoken.specs import LatentSpec, TokenSpec
from tests.support.toy_generator import ToyGenerator

SPEC = TokenSpec((8, 8), ((2, 3),))
SOURCE = InitFrom("last.ckpt", "b" * 64, 7, "a" * 64, (0,), "all", ("one",), ("two",), ())
RECORD = GeneratorRecord(
    SPEC, SPEC, (0, 1), "runs/t", "a" * 64, 2, {"cat": 0, "dog": 1}, Lineage("runs/t", "a" * 64, "store", SOURCE)
)


def test_a_record_round_trips_through_plain_data() -> None:
    plain = RECORD.to_plain()
    assert plain["spec"] == {"codebook_sizes": [8, 8], "scales": [[2, 3]]} and plain["sub_codes"] == [0, 1]
    assert plain["lineage"]["init_from"]["sub_code"] == "all"
    assert GeneratorRecord.from_plain(plain, "last.ckpt: generator") == RECORD


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"spec": 3}, r"\$\.spec: expected object \| null, got int"),
        ({"spec": {"codebook_sizes": ["a"], "scales": []}}, r"\$\.spec\.codebook_sizes\[0\]: expected int, got str"),
        ({"sub_codes": 3}, r"\$\.sub_codes: expected array, got int"),
        ({"class_to_idx": {"cat": "dog"}}, r"\$\.class_to_idx"),
        ({"lineage": {}}, r"\$\.lineage: object missing required field tokenizer_run"),
    ],
)
def test_a_broken_record_is_one_sentence_with_its_place(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^last.ckpt: generator: {says}"):
        GeneratorRecord.from_plain({**RECORD.to_plain(), **changes}, "last.ckpt: generator")


LATENTS = LatentSpec(2, (2, 3), (0.5, -0.5), (1.0, 2.0))
CONTINUOUS = replace(RECORD, spec=None, full_spec=None, sub_codes=(), latents=LATENTS)


class Latents(ToyGenerator):
    models = "latents"


def test_latents_round_trip_and_may_be_missing() -> None:
    assert GeneratorRecord.from_plain(CONTINUOUS.to_plain(), "last.ckpt") == CONTINUOUS
    plain = RECORD.to_plain()
    del plain["latents"]  # a checkpoint of a generator of codes, from before latents were recorded
    assert GeneratorRecord.from_plain(plain, "last.ckpt") == RECORD


def test_a_generator_gets_the_spec_of_its_kind() -> None:
    both = replace(RECORD, latents=LATENTS)
    assert both.described(ToyGenerator(), "the store") == SPEC and both.described(Latents(), "the store") == LATENTS
    assert CONTINUOUS.described(Latents(), "the store") == LATENTS
    part = replace(both, spec=SPEC.select([1]), sub_codes=(1,))
    assert part.described(ToyGenerator(), "the store") == SPEC.select([1])
    for record, generator, says in (
        (CONTINUOUS, ToyGenerator(), "ToyGenerator models codes, and the store x has latents of a tokenizer without"),
        (RECORD, Latents(), "Latents models latents, and the store x has codes without the mean and deviation"),
        (part, Latents(), r"the latents of all 2 sub-codes, and the data are the sub-codes \[1\]: set data.sub_codes"),
        (replace(both, sub_codes=(1, 0)), Latents(), r"the data are the sub-codes \[1, 0\]"),
    ):
        with pytest.raises(ValueError, match=says):
            record.described(generator, "the store x")
