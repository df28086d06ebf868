"""Labels to sample: values, order, and distribution over ranks."""

from types import SimpleNamespace

import numpy as np
import pytest
from jsonargparse import ArgumentParser

from datamodules.labels import LabelDataModule


def drawn(data: LabelDataModule, rank: int = 0, ranks: int = 1, num_classes: int = 4) -> dict[int, int]:
    module = SimpleNamespace(num_classes=num_classes)
    data.trainer = SimpleNamespace(lightning_module=module, global_rank=rank, world_size=ranks)  # type: ignore[assignment]
    batches = data.predict_dataloader()
    for batch in batches:
        index = batch["index"]
        assert (index.diff() == 1).all() and len(index) <= data.batch_size
        assert index[0] // data.part_size == index[-1] // data.part_size
    pairs = [(int(i), int(label)) for batch in batches for i, label in zip(batch["index"], batch["label"], strict=True)]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_balanced_labels_cycle_through_the_classes() -> None:
    labels = LabelDataModule(10).labels(4)
    assert labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_a_list_is_repeated_and_random_follows_the_seed() -> None:
    assert LabelDataModule(5, [3, 1]).labels(4).tolist() == [3, 1, 3, 1, 3]
    random = [LabelDataModule(1000, "random", seed=seed).labels(4) for seed in (0, 0, 1)]
    assert (random[0] == random[1]).all() and (random[0] != random[2]).any()
    assert np.bincount(random[0]).min() > 200


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_ranks_share_all_images_for_any_batch_size(ranks: int, batch_size: int) -> None:
    data = LabelDataModule(23, batch_size=batch_size, part_size=5)
    shares = [drawn(data, rank, ranks) for rank in range(ranks)]
    together = {index: label for share in shares for index, label in share.items()}
    assert sum(map(len, shares)) == 23 and together == {i: i % 4 for i in range(23)}


def test_finished_parts_are_skipped_and_the_rest_shared_evenly() -> None:
    data = LabelDataModule(23, batch_size=5, part_size=5)
    data.leave_out({0, 2})
    shares = [drawn(data, rank, 2) for rank in range(2)]
    assert [sorted(share) for share in shares] == [[*range(5, 10), *range(20, 23)], [*range(15, 20)]]


def test_classes_are_named_as_well_as_numbered() -> None:
    names = ["ape", "bear", "cat", "dog"]
    assert LabelDataModule(4, ["dog", 1, "ape"]).labels(4, names).tolist() == [3, 1, 0, 3]
    with pytest.raises(ValueError, match=r"class 'owl', and the generator knows the 4 classes 0 … 3 \(ape, bear, cat"):
        LabelDataModule(4, ["owl"]).labels(4, names)


@pytest.mark.parametrize(
    ("given", "classes"), [("[3, 5]", [3, 5]), ('["10"]', ["10"]), ("['10', 10, cat]", ["10", 10, "cat"])]
)
@pytest.mark.parametrize(("kind", "needed"), [("LabelDataModule", "num_images"), ("ReferenceDataModule", "image_size")])
def test_digits_in_quotes_name_a_class(kind: str, needed: str, given: str, classes: list) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(LabelDataModule, "data")
    options = ("--data", f"datamodules.{kind}", f"--data.{needed}", "4", "--data.classes", given)
    file = f"data: {{class_path: datamodules.{kind}, init_args: {{{needed}: 4, classes: {given}}}}}"
    for found in (parser.parse_args(options), parser.parse_string(file)):
        assert found.data.init_args.classes == classes


@pytest.mark.parametrize("label", [-1, 4])
def test_a_class_out_of_range_is_rejected(label: int) -> None:
    with pytest.raises(ValueError, match=rf"class {label}, and the generator knows the 4 classes 0 … 3"):
        LabelDataModule(5, [0, label]).labels(4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"num_images": 0}, "num_images is 0"),
        ({"num_images": 1, "batch_size": 300}, "batch_size=300 is more than data.part_size=256"),
        ({"num_images": 1, "classes": []}, "empty"),
        ({"num_images": 1, "seed": -1}, "seed is -1"),
    ],
)
def test_invalid_settings_are_rejected(arguments: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LabelDataModule(**arguments)
