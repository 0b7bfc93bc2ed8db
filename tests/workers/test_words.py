"""Counts as people say them."""

import pytest

from workers.words import counted


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 stations"), (1, "1 station"), (2, "2 stations"), (4096, "4,096 stations")]
)
def test_one_is_not_several(count, said):
    assert counted(count, "station") == said
