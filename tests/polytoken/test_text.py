import pytest

from polytoken.text import duration, memory


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.6, "1 min"),
        (12, "12 s"),
        (303, "5 min 3 s"),
        (3600, "1 h"),
        (3629, "1 h"),
        (3631, "1 h 1 min"),
        (7199.6, "2 h"),
        (97_200, "1 d 3 h"),
        (86_399, "1 d"),
        (1e7, "115 d 18 h"),
    ],
)
def test_the_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_memory() -> None:
    assert [memory(size) for size in (3.84e10, 9.99e9, 1.23e9, 4.5e7)] == ["38 GB", "10 GB", "1.2 GB", "0.045 GB"]
