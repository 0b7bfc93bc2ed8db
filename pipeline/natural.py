"""Pictures of no product, to distil a teacher on: photographs, or drawn "dead leaves" where there are none.

Dead leaves are shapes that cover one another, of all sizes, so that their statistics are much like a photograph's (Lee,
Mumford and Huang, "Occlusion models for natural images", IJCV 2001); networks learn useful features from them
(Baradad et al., "Learning to See by Looking at Noise", NeurIPS 2021; not re-read).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, UnidentifiedImageError
from torch import Tensor

from pipeline.data import Size
from pipeline.errors import ConfigError
from pipeline.threads import cores

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
SMALLEST_CROP = 0.5  # of a picture's short side
GREY = 0.15  # share of the crops without colour: many a line's camera has none
_LEAVES = 160
_CANVAS = 320  # px; a crop is taken of it


class NaturalPictures:
    """Endless crops, the n-th always the same."""

    def __init__(self, photos: Sequence[Path], seed: int) -> None:
        """Of these photographs' files; drawn ones if there are none."""
        self._photos = list(photos)
        self._seed = seed

    @classmethod
    def of_folder(cls, folder: str, seed: int) -> "NaturalPictures":
        """Of the pictures in a folder and below it; drawn ones where `folder` is empty text.

        Raises:
            ConfigError: there is no such folder, or no picture in it.
        """
        if not folder:
            return cls([], seed)
        found = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in _SUFFIXES)
        if not found:
            raise ConfigError(f"photos: there is no picture in {folder!r}")
        return cls(found, seed)

    def listing(self) -> list[list[str | int]]:
        """Names and sizes of the photographs, in their order: what a checkpoint knows them by."""
        return [[photo.name, photo.stat().st_size] for photo in self._photos]

    def crop(self, place: int, size: Size) -> NDArray[np.uint8]:
        """The crop number `place`, (3, H, W)."""
        if self._photos:
            return crop_of(self._photos[place % len(self._photos)], size, (self._seed, place))
        return _cut(_dead_leaves(np.random.default_rng((self._seed, place, 1))), size, (self._seed, place))

    def batch(self, places: Sequence[int], size: Size) -> Tensor:
        """Several crops, (B, 3, H, W) uint8."""
        crop = partial(self.crop, size=size)
        if len(places) == 1:
            return torch.from_numpy(crop(places[0])[None])
        with ThreadPoolExecutor(max_workers=cores()) as pool:
            return torch.from_numpy(np.stack(list(pool.map(crop, places))))


def crop_of(photo: Path, size: Size, seed: tuple[int, int]) -> NDArray[np.uint8]:
    """A crop (3, H, W) of at least half the short side; mirrored half the time, sometimes grey.

    Raises:
        ConfigError: the file is no picture.
    """
    try:
        with Image.open(photo) as opened:
            return _cut(opened.convert("RGB"), size, seed)
    except (OSError, UnidentifiedImageError) as error:
        raise ConfigError(f"{photo} is no readable picture: {error}") from error


def _cut(picture: Image.Image, size: Size, seed: tuple[int, int]) -> NDArray[np.uint8]:
    chance = np.random.default_rng(seed)
    side = max(1.0, min(picture.size) * chance.uniform(SMALLEST_CROP, 1.0))
    x0, y0 = (chance.uniform(0, extent - side) for extent in picture.size)
    height, width = size
    resized = picture.resize((width, height), Image.Resampling.BILINEAR, box=(x0, y0, x0 + side, y0 + side))
    if chance.random() < GREY:
        resized = resized.convert("L").convert("RGB")
    pixels = np.asarray(resized).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels[:, :, ::-1] if chance.random() < 0.5 else pixels)


def _dead_leaves(chance: np.random.Generator) -> Image.Image:
    """Shapes with radii r at density r^-3, back to front, each with a gradient's tone; blurred a little, with grain."""
    base = chance.integers(0, 256, 3)
    picture = Image.new("RGB", (_CANVAS, _CANVAS), tuple(int(v) for v in base))
    draw = ImageDraw.Draw(picture)
    smallest, largest = 3.0, _CANVAS / 3
    radii = (smallest**-2 - chance.random(_LEAVES) * (smallest**-2 - largest**-2)) ** -0.5
    for radius in np.sort(radii)[::-1]:
        x, y = chance.uniform(0, _CANVAS, 2)
        colour = tuple(int(v) for v in np.clip(chance.normal(base, 70), 0, 255))
        kind = chance.integers(3)
        if kind == 0:
            flat = radius * chance.uniform(0.4, 1)
            draw.ellipse((x - radius, y - flat, x + radius, y + flat), fill=colour)
        elif kind == 1:
            angles = np.sort(chance.uniform(0, 2 * np.pi, chance.integers(3, 7)))
            draw.polygon([(x + radius * np.cos(a), y + radius * np.sin(a)) for a in angles], fill=colour)
        else:
            angle = chance.uniform(0, np.pi)
            dx, dy = radius * 1.5 * np.cos(angle), radius * 1.5 * np.sin(angle)
            draw.line((x - dx, y - dy, x + dx, y + dy), fill=colour, width=max(1, int(radius / 4)))
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(chance.uniform(0, 1.5))), np.float32)
    coarse = Image.fromarray(chance.normal(128, 40, (_CANVAS // 8, _CANVAS // 8)).clip(0, 255).astype(np.uint8))
    shade = np.asarray(coarse.resize((_CANVAS, _CANVAS), Image.Resampling.BICUBIC), np.float32)[..., None] - 128
    grain = chance.normal(0, chance.uniform(1, 10), soft.shape)
    return Image.fromarray((soft + shade * chance.uniform(0, 0.6) + grain).clip(0, 255).astype(np.uint8))
