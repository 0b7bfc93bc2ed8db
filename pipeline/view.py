"""Which part of a frame a model sees, how large, in what light, and in how many tiles."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipeline.data import Size
from pipeline.errors import ConfigError

SHORT_SIDE_RATIO = 256 / 224  # the papers resize the short side to 256 and crop the centre 224
MOST_TILES = 16  # along a side
PAINT = 118  # grey of what is not inspected
_EVEN_GREY = 118.0  # of evened frames, on average
_DARK = 4.0  # grey levels added to the light: noise in the dark is not blown up without bound


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Which part of a picture a model sees, and how large.

    Attributes:
        size: (H, W) of what is given to the model.
        crop: the papers' centre crop, instead of the whole frame. What lies outside the crop is not inspected.
        keep_aspect: the whole frame without stretching it; what is left over repeats the frame's edge.
        even_light: divide by the light's slow changes over the frame and from frame to frame.
        tiles: levels of a pyramid; at level n the model sees n x n overlapping tiles, each of `size` (`tiling`).
        roi: region of interest as run lengths over the rows of `seen`, outside and inside by turns, outside first;
            nothing for the whole. What lies outside is painted over.
        resized_by: `torch`, on a CPU, what Pillow decodes; or `gpu`, where it is decoded, too (`nvjpeg`). Each makes
            other pixels, by a few grey levels: a model whose view says nothing of it was calibrated with yet other
            ones, and is refused.
    """

    size: Size = (224, 224)
    crop: bool = False
    keep_aspect: bool = False
    even_light: bool = False
    tiles: tuple[int, ...] = (1,)
    roi: tuple[int, ...] = ()
    resized_by: Literal["torch", "gpu"] = "torch"

    def __post_init__(self) -> None:
        if self.crop and self.keep_aspect:
            raise ConfigError("crop and keep_aspect exclude each other: a crop keeps the aspect by itself")
        if not all(32 <= side <= 4096 for side in self.size):
            raise ConfigError(f"a view is 32 to 4096 pixels a side, not {self.size[0]}x{self.size[1]}")

        if not are_tiles(self.tiles):
            raise ConfigError(f"tiles are levels from 1 to {MOST_TILES}, ascending, not {self.tiles}")
        if self.roi and (min(self.roi) < 0 or sum(self.roi) != self.seen[0] * self.seen[1]):
            raise ConfigError(f"the region of interest does not cover a view of {self.seen[0]}x{self.seen[1]} pixels")

    @property
    def seen(self) -> Size:
        """(H, W) of a decoded frame: `size` unless there are tiles."""
        return seen_size(self.size, self.tiles)

    def with_roi(self, mask: Image.Image) -> "View":
        """The same, limited to where a mask as large as the frames is lighter than half.

        Raises:
            ConfigError: the mask is all dark.
        """
        inside = see(mask.convert("L"), self.box((mask.height, mask.width)), self.seen, Image.Resampling.NEAREST) > 127
        if not inside.any():
            raise ConfigError("the region of interest is empty: paint white what is to be inspected")
        flat = np.concatenate([[False], inside.ravel(), [not inside.ravel()[-1]]])
        changes = np.flatnonzero(flat[1:] != flat[:-1])
        return replace(self, roi=tuple(int(n) for n in np.diff(changes, prepend=0)))

    def inside(self) -> NDArray[np.bool_] | None:
        """The region of interest (H, W), or None for the whole."""
        if not self.roi:
            return None
        runs = np.arange(len(self.roi)) % 2 == 1
        return np.repeat(runs, self.roi).reshape(self.seen)

    def box(self, size: Size) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) of what is seen of a picture of (H, W) pixels; beyond the picture with `keep_aspect`."""
        height, width = size
        if not (self.crop or self.keep_aspect):
            return 0.0, 0.0, float(width), float(height)
        if self.crop:
            scale = min(height / self.size[0], width / self.size[1]) / SHORT_SIDE_RATIO
        else:
            scale = max(height / self.size[0], width / self.size[1])
        seen_h, seen_w = self.size[0] * scale, self.size[1] * scale
        x0, y0 = (width - seen_w) / 2, (height - seen_h) / 2
        return x0, y0, x0 + seen_w, y0 + seen_h

    def present(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A frame's pixels (*seen, 3) in even light, and painted over outside the region of interest, as set."""
        shown = _evened(pixels) if self.even_light else pixels
        inside = self.inside()
        return shown if inside is None else np.where(inside[..., None], shown, np.uint8(PAINT))


def see(
    picture: Image.Image,
    box: tuple[float, float, float, float],
    size: Size,
    resampling: Image.Resampling = Image.Resampling.BILINEAR,
) -> NDArray[np.uint8]:
    """What lies in a box (x0, y0, x1, y1), as (H, W) or (H, W, C); beyond the picture its edge is repeated."""
    height, width = size
    inner, (left, top, right, bottom) = laid(box, (picture.height, picture.width), size)
    whole = inner == (0.0, 0.0, float(picture.width), float(picture.height))
    if whole and picture.mode == "RGB" and resampling is Image.Resampling.BILINEAR:
        resized = _resized(picture, (bottom - top, right - left))
    else:
        resized = np.array(picture.resize((right - left, bottom - top), resampling, box=inner), dtype=np.uint8)
    if resized.shape[:2] == size:
        return resized
    margins = [(top, height - bottom), (left, width - right)] + [(0, 0)] * (resized.ndim - 2)
    return np.pad(resized, margins, mode="edge")


def laid(
    box: tuple[float, float, float, float], picture: Size, size: Size
) -> tuple[tuple[float, float, float, float], tuple[int, int, int, int]]:
    """What a picture (H, W) has of a box, and where that lies in the box made as large as `size`: (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = box
    inner = max(x0, 0.0), max(y0, 0.0), min(x1, float(picture[1])), min(y1, float(picture[0]))
    left, right = (round((x - x0) / (x1 - x0) * size[1]) for x in (inner[0], inner[2]))
    top, bottom = (round((y - y0) / (y1 - y0) * size[0]) for y in (inner[1], inner[3]))
    return inner, (left, top, max(right, left + 1), max(bottom, top + 1))


def _resized(picture: Image.Image, size: Size) -> NDArray[np.uint8]:
    """A whole RGB picture as (H, W, 3), by torch: Pillow's filter, but for a grey level here and there, in a fourth."""
    # Here, not above: cameras and gates know views too, and start at once without torch.
    import torch  # noqa: PLC0415
    from torch.nn.functional import interpolate  # noqa: PLC0415

    # With a batch's stride torch knows that channels lie innermost, and what it makes lies likewise: as it is wanted.
    pixels = torch.from_numpy(np.array(picture)).unsqueeze(0).permute(0, 3, 1, 2)
    resized = interpolate(pixels, size=size, mode="bilinear", antialias=True)
    made: NDArray[np.uint8] = np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
    return made


def seen_size(size: Size, tiles: tuple[int, ...]) -> Size:
    """(H, W) of a frame whose finest level has tiles of `size`: they overlap by an eighth."""
    n = tiles[-1]
    height, width = (n * side - (n - 1) * (side // 8) for side in size)
    return height, width


def are_tiles(tiles: object) -> bool:
    """Whether these are levels of a pyramid: whole numbers from 1 to MOST_TILES, ascending."""
    if not isinstance(tiles, list | tuple) or not all(type(n) is int and 1 <= n <= MOST_TILES for n in tiles):
        return False
    return bool(tiles) and list(tiles) == sorted(set(tiles))


def _evened(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) divided by its own wide blur, so that light counts no more; the blur is taken at an eighth the size."""
    grey = Image.fromarray(pixels).convert("L")
    small = grey.resize((max(1, grey.width // 8), max(1, grey.height // 8)), Image.Resampling.BOX)
    radius = max(small.size) / 9
    light = small.filter(ImageFilter.GaussianBlur(radius)).resize(grey.size, Image.Resampling.BILINEAR)
    gain = _EVEN_GREY / (np.asarray(light, np.float32) + _DARK)
    return (pixels * gain[..., None]).clip(0, 255).astype(np.uint8)
