"""Frames as cameras send them, drawn: JPEG, about as large as asked for."""

from functools import cache

from pipeline import synthetic

PART = "cap"
_SIDES_PX = range(200, 2400, 50)


@cache
def side_of(size_bytes: int) -> int:
    """Of the smallest pictures that are as large; in pixels."""
    return next((side for side in _SIDES_PX if len(drawn(0, side)) >= size_bytes), _SIDES_PX[-1])


def drawn(seed: int, side: int, defect: str | None = None) -> bytes:
    """One part, good unless a defect is named."""
    return synthetic.encode(synthetic.draw(PART, seed=seed, defect=defect, size=(side, side)).image)
