"""Anomaly maps as pictures: 8-bit PNG for the wire, a colour overlay for people."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Control points of a dark-blue, magenta, yellow scale, light enough at the top to show through an overlay.
_SCALE = np.array(
    [[0, 0, 30], [40, 10, 110], [130, 20, 130], [215, 50, 90], [250, 130, 40], [255, 235, 120]], np.float64
)


@dataclass(frozen=True, slots=True)
class Heatmap:
    """A map as it travels.

    Attributes:
        png: 8-bit grey PNG, (H, W).
        low: the score that became 0.
        high: the score that became 255.
    """

    png: bytes
    low: float
    high: float


def encode(scores: NDArray[np.float32]) -> Heatmap:
    """A map (H, W) as 8-bit PNG, scaled from its own minimum to its own maximum."""
    low, high = float(scores.min()), float(scores.max())
    return Heatmap(_png(Image.fromarray(_to_bytes(scores, low, high))), low, high)


def overlay(
    picture: NDArray[np.uint8], scores: NDArray[np.float32], *, low: float, high: float, strength: float = 0.6
) -> NDArray[np.uint8]:
    """Colour the picture where the map is high.

    Args:
        picture: (H, W, 3) RGB of what the model saw.
        scores: (H, W) map of the same size.
        low: score shown as no colour at all; the pixel threshold's half is a good choice.
        high: score shown in full colour.
        strength: opacity in full colour, 0 to 1.

    Returns:
        (H, W, 3) RGB.
    """
    level = _to_bytes(scores, low, high).astype(np.float64) / 255
    position = level * (len(_SCALE) - 1)
    lower = np.minimum(position.astype(np.int64), len(_SCALE) - 2)
    part = (position - lower)[..., None]
    colour = _SCALE[lower] * (1 - part) + _SCALE[lower + 1] * part
    opacity = strength * np.minimum(level * 2, 1)[..., None]
    mixed: NDArray[np.float64] = picture * (1 - opacity) + colour * opacity
    return mixed.round().astype(np.uint8)


def encode_picture(picture: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) RGB as PNG."""
    return _png(Image.fromarray(picture))


def _to_bytes(scores: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    span = high - low if high > low else 1.0
    scaled: NDArray[np.float64] = (scores.astype(np.float64) - low) / span
    return (np.clip(scaled, 0, 1) * 255).round().astype(np.uint8)


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()
