"""Masks of defects: a picture for each, as large as the defect's own, light where the defect is."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.view import View, see

_HALF = 127


def read(path: Path, view: View) -> NDArray[np.bool_]:
    """A mask (H, W) of `view.seen`: positive where lighter than half, after a nearest resize.

    A mask that is black all over is read as such: nobody drew anything.

    Raises:
        ConfigError: it cannot be read, or has values but none of them lighter than half, as masks of 0 and 1 have.
    """
    try:
        with Image.open(path) as opened:
            grey = opened.convert("L")
    except Exception as error:
        raise ConfigError(
            f"the mask {path} cannot be read ({error}): draw it anew, or take it away, "
            "and there are no figures of pixels"
        ) from error
    lightest = int(np.asarray(grey).max())
    if 0 < lightest <= _HALF:
        raise ConfigError(
            f"the mask {path} is {lightest} where it is lightest, of 255, and only what is above {_HALF} is a defect: "
            "write it with 0 and 255"
        )
    return see(grey, view.box((grey.height, grey.width)), view.seen, Image.Resampling.NEAREST) > _HALF
