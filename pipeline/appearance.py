"""Numbers about a picture as the model sees it: what light, lens and camera do to it, whatever the part.

Each is a number per frame, cheap beside scoring (measured in tests/benchmarks/drift.py), for the monitors of `drift`:

exposure  mean grey, 0 to 255
warmth    (R - B) / (R + B) of the channels' means: red against blue
tint      (2G - R - B) / (2G + R + B): green against magenta
sharpness mean squared step between neighbouring pixels over the variance of grey; the lamp's strength cancels out
shift_x, shift_y, turn   where the part lies against a reference, in pixels and degrees

Where the part lies is one Gauss-Newton step of image registration (Lucas and Kanade 1981) on a thumbnail: grey is
modelled as the reference moved by a small shift and turn, times a gain, plus a tilted plane of light. With a fixed
reference this is one product with a precomputed matrix. Beyond some pixels the step falls short of the true shift; a
monitor needs only that it changes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from pipeline.data import Size

SIDE = 64  # of a thumbnail
PICTURE = ("exposure", "warmth", "tint", "sharpness")
ALIGNMENT = ("shift_x", "shift_y", "turn")
_DARK = 1.0  # grey levels that keep ratios finite in the dark


@dataclass(frozen=True, slots=True, kw_only=True)
class Appearance:
    """What is measured of one picture.

    Attributes:
        numbers: by name, `PICTURE`.
        thumbnail: (64, 64) float32, mean grey 0 to 255 of each cell, whatever the picture's aspect.
        size: (H, W) of the picture.
    """

    numbers: dict[str, float]
    thumbnail: NDArray[np.float32]
    size: Size


@torch.no_grad()
def measure(pixels: Tensor) -> list[Appearance]:
    """The numbers of each picture of (B, 3, H, W) uint8."""
    return [_one(picture) for picture in pixels.cpu()]


def _one(picture: Tensor) -> Appearance:
    values = picture.float()
    red, green, blue = (float(v) for v in values.mean(dim=(1, 2)))
    grey = (values[0] + values[1] + values[2]) / 3
    plain = grey.numpy()
    across, down = (np.diff(plain, axis=axis).ravel() for axis in (1, 0))
    steps = float(across @ across) / across.size + float(down @ down) / down.size
    numbers = {
        "exposure": (red + green + blue) / 3,
        "warmth": (red - blue) / (red + blue + _DARK),
        "tint": (2 * green - red - blue) / (2 * green + red + blue + _DARK),
        "sharpness": steps / (float(plain.var()) + _DARK),
    }
    thumbnail = adaptive_avg_pool2d(grey[None], SIDE)[0].numpy()
    return Appearance(numbers=numbers, thumbnail=thumbnail, size=(int(picture.shape[1]), int(picture.shape[2])))


class Registration:
    """Where pictures of one size lie against a reference.

    Args:
        reference: (64, 64), a mean of thumbnails.
        size: (H, W) of the pictures.
    """

    def __init__(self, reference: NDArray[np.floating[Any]], size: Size) -> None:
        step_y, step_x = size[0] / SIDE, size[1] / SIDE  # pixels of the picture in a cell
        down, right = np.gradient(reference.astype(np.float64))
        dx, dy = right / step_x, down / step_y
        y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
        turned = dy * x * step_x - dx * y * step_y
        # The picture is the reference moved along, so grey changes against its slope.
        model = np.stack([-dx, -dy, -turned, reference, np.ones_like(x), x, y], axis=-1).reshape(SIDE**2, -1)
        self._solve = np.linalg.pinv(model, rcond=1e-6)[: len(ALIGNMENT)]
        self._reference = reference.astype(np.float64)

    def locate(self, thumbnail: NDArray[np.float32]) -> dict[str, float]:
        """Shift in the picture's pixels and turn in degrees, by name, `ALIGNMENT`."""
        x, y, turn = self._solve @ (thumbnail - self._reference).ravel()
        return {"shift_x": float(x), "shift_y": float(y), "turn": float(np.degrees(turn))}
