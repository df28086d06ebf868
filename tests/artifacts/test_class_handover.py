"""Class embeddings are handed over by the names of the classes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from artifacts.lineage import hand_over
from polytoken.generators import DiffusionTransformer
from polytoken.handover import CLASS_EMBEDDING
from polytoken.licence import ReleasedAs
from polytoken.loading import GENERATOR, RELEASED, Checkpoint
from tests.support.generated import SCALAR, write_latent_runs
from tests.support.released import ADOBE


@pytest.fixture(scope="module")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latent_runs(tmp_path_factory.mktemp("runs") / "digits", SCALAR)


def handed_over(stage1: Path, classes: list[str]) -> tuple[torch.Tensor, torch.Tensor, object]:
    """The class embedding of stage 1, that of a stage 2 of these classes, and the handover."""
    checkpoint = Checkpoint.open(stage1)
    earlier, generator = checkpoint.generator(), checkpoint.generator()
    assert isinstance(earlier, DiffusionTransformer) and isinstance(generator, DiffusionTransformer)
    generator.class_embedding.weight.fill_(7)
    record = replace(checkpoint.record, class_to_idx={name: index for index, name in enumerate(classes)})
    handover = hand_over(str(stage1), generator, record)
    return earlier.class_embedding.weight, generator.class_embedding.weight, handover


def names(stage1: Path) -> list[str]:
    classes = Checkpoint.open(stage1).record.class_to_idx
    return sorted(classes, key=classes.__getitem__)


def test_the_same_classes_keep_their_rows(stage1: Path) -> None:
    before, after, _ = handed_over(stage1, names(stage1))
    assert torch.equal(before, after)


def test_the_release_of_the_weights_is_carried_through_all_runs(stage1: Path, tmp_path: Path) -> None:
    file, content = tmp_path / "of.ckpt", dict(Checkpoint.open(stage1).content)
    torch.save({**content, RELEASED: ADOBE}, file)
    for _ in range(2):
        checkpoint = Checkpoint.open(file)
        start = hand_over(str(file), checkpoint.generator(), checkpoint.record)
        assert start.released == ReleasedAs(**ADOBE)
        record = replace(checkpoint.record, lineage=replace(checkpoint.record.lineage, init_from=start))
        file = tmp_path / "again.ckpt"
        torch.save({**content, GENERATOR: record.to_plain()}, file)
    checkpoint = Checkpoint.open(stage1)
    assert hand_over(str(stage1), checkpoint.generator(), checkpoint.record).released is None


def test_another_order_moves_the_rows_with_the_names(stage1: Path) -> None:
    before, after, handover = handed_over(stage1, names(stage1)[::-1])
    assert torch.equal(after[:10], before[:10].flip(0)) and torch.equal(after[10], before[10])
    assert CLASS_EMBEDDING in handover.carried


def test_other_classes_start_from_scratch_with_a_message(stage1: Path) -> None:
    others = [*names(stage1)[:9], "zebra"]
    with pytest.warns(UserWarning, match=r"has the classes 0, 1, .* … \(10\), and this run has .*from scratch"):
        _, after, handover = handed_over(stage1, others)
    assert (after == 7).all()
    assert CLASS_EMBEDDING in handover.fresh and CLASS_EMBEDDING in handover.left_behind
