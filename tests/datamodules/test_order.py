import pytest

from datamodules.order import PADDING, EvaluationOrder, TrainingOrder, seeded_generator


def training_draws(length: int, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0, position: int = 0):
    return list(TrainingOrder(length, batch_size, rank, world_size, seed, lambda: position))


def batches(draws: list, batch_size: int) -> list:
    return [draws[start : start + batch_size] for start in range(0, len(draws), batch_size)]


def test_two_ranks_draw_the_global_batch_of_one() -> None:
    alone = batches(training_draws(22, 4), 4)
    left, right = (batches(training_draws(22, 2, rank, 2), 2) for rank in range(2))
    assert [a + b for a, b in zip(left, right, strict=True)] == alone


def test_an_epoch_shows_each_image_at_most_once() -> None:
    draws = training_draws(22, 4)
    assert len(draws) == len({index for _, index in draws}) == 20
    assert {epoch for epoch, _ in draws} == {0}


def test_iteration_begins_at_the_position_of_the_run() -> None:
    first, second = training_draws(22, 4), training_draws(22, 4, position=5)
    assert training_draws(22, 4, position=3) == first[12:] + second[:12]
    assert {epoch for epoch, _ in second} == {1}


def test_position_is_read_at_each_iteration() -> None:
    places = iter([0, 5])
    order = TrainingOrder(22, 4, 0, 1, 0, lambda: next(places))
    assert list(order) == training_draws(22, 4) and list(order) == training_draws(22, 4, position=5)


def test_order_depends_on_seed_and_epoch() -> None:
    assert training_draws(22, 4) == training_draws(22, 4)
    assert training_draws(22, 4) != training_draws(22, 4, seed=1)
    images = [[index for _, index in training_draws(22, 4, position=position)] for position in (0, 5)]
    assert images[0] != images[1]


def test_too_few_images_for_one_global_batch_are_rejected() -> None:
    with pytest.raises(ValueError, match="holds 7 images, fewer than one global batch of 8"):
        TrainingOrder(7, 4, 0, 2, 0, lambda: 0)


@pytest.mark.parametrize(("length", "world_size"), [(7, 1), (7, 2), (8, 2), (7, 3), (2, 4)])
def test_evaluation_shows_every_image_once(length: int, world_size: int) -> None:
    ranks = [list(EvaluationOrder(length, rank, world_size)) for rank in range(world_size)]
    indices = [index for draws in ranks for _, index in draws]
    assert sorted(index for index in indices if index != PADDING) == list(range(length))
    assert len({len(draws) for draws in ranks}) == 1  # equally many on every rank
    assert all(PADDING not in [index for _, index in draws[:-1]] for draws in ranks)
    assert len(EvaluationOrder(length, 0, world_size)) == len(ranks[0])
    if world_size == 1:
        assert indices == list(range(length))


def test_random_streams_differ() -> None:
    keys = [("order", 3, 1), ("augmentation", 3, 1, 0), ("augmentation", 3, 1, 1), ("replacement", 3, 1, 0)]
    assert len({int(seeded_generator(*key).integers(2**62)) for key in keys}) == 4
