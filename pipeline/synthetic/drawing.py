"""What a part is drawn with: shapes, and the blank sheet that they are cut, raised and painted on.

Coordinates are (x, y) in [-1, 1], y down; lengths called `_px` are pixels of a picture 256 px wide.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

Array: TypeAlias = NDArray[np.float32]
Picture: TypeAlias = NDArray[np.uint8]
RGB: TypeAlias = tuple[float, float, float]
Point: TypeAlias = tuple[float, float]
Shape: TypeAlias = Callable[[ImageDraw.ImageDraw, float], None]

KEPT = 2  # a sheet has this many pixels per pixel of the picture
DRAWN = 2  # and is drawn this much finer still


@dataclass(frozen=True, slots=True)
class Sheet:
    """A nominal part, `KEPT` times finer than the picture, as images that can be posed.

    Attributes:
        colour: four channels: red, green, blue, alpha.
        finish: four channels: gloss, turned (concentric machining marks), grain, ambient light.
        ink: one channel: where the marking is printed.
        height: float, pixels of a picture 256 px wide.
        ink_colour: RGB in [0, 1].
    """

    colour: Image.Image
    finish: Image.Image
    ink: Image.Image
    height: Image.Image
    ink_colour: RGB


def disc(x: float, y: float, radius: float, fill: int = 255) -> Shape:
    """A filled circle."""
    return ellipse(x, y, radius, radius, fill)


def ellipse(x: float, y: float, rx: float, ry: float, fill: int = 255) -> Shape:
    """A filled ellipse with its axes along x and y."""

    def put(draw: ImageDraw.ImageDraw, half: float) -> None:
        box = ((x - rx + 1) * half, (y - ry + 1) * half, (x + rx + 1) * half, (y + ry + 1) * half)
        draw.ellipse(box, fill=fill)

    return put


def box(x: float, y: float, w: float, h: float, *, corner: float = 0.0, fill: int = 255) -> Shape:
    """A filled rectangle about its centre, its corners rounded."""

    def put(draw: ImageDraw.ImageDraw, half: float) -> None:
        xy = ((x - w / 2 + 1) * half, (y - h / 2 + 1) * half, (x + w / 2 + 1) * half, (y + h / 2 + 1) * half)
        draw.rounded_rectangle(xy, radius=corner * half, fill=fill)

    return put


def polygon(points: Sequence[Point], fill: int = 255) -> Shape:
    """A filled polygon."""

    def put(draw: ImageDraw.ImageDraw, half: float) -> None:
        draw.polygon([((x + 1) * half, (y + 1) * half) for x, y in points], fill=fill)

    return put


def line(points: Sequence[Point], width: float, fill: int = 255) -> Shape:
    """An open line with rounded joints."""

    def put(draw: ImageDraw.ImageDraw, half: float) -> None:
        scaled = [((x + 1) * half, (y + 1) * half) for x, y in points]
        draw.line(scaled, fill=fill, width=max(1, round(width * half)), joint="curve")

    return put


def text(x: float, y: float, words: str, size: float, *, turn_deg: float = 0.0) -> Shape:
    """Lettering about its centre, turned clockwise."""

    def put(draw: ImageDraw.ImageDraw, half: float) -> None:
        font = ImageFont.load_default(size=max(4.0, size * half))
        left, top, right, bottom = font.getbbox(words)
        label = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
        ImageDraw.Draw(label).text((2 - left, 2 - top), words, font=font, fill=255)
        label = label.rotate(-turn_deg, Image.Resampling.BICUBIC, expand=True)
        corner = (round((x + 1) * half - label.width / 2), round((y + 1) * half - label.height / 2))
        draw.bitmap(corner, label, fill=255)

    return put


def around(count: int, radius: float, *, start_deg: float = 0.0) -> list[Point]:
    """Points evenly spaced on a circle about the origin, clockwise from +x."""
    angles = (math.radians(start_deg) + 2 * math.pi * k / count for k in range(count))
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


class Blank:
    """The sheet while it is being worked on."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.n = n = side * KEPT
        self.alpha = np.zeros((n, n), np.float32)
        self.colour = np.zeros((n, n, 3), np.float32)
        self.height = np.zeros((n, n), np.float32)
        self.gloss = np.zeros((n, n), np.float32)
        self.turned = np.zeros((n, n), np.float32)
        self.grain = np.zeros((n, n), np.float32)
        self.ink = np.zeros((n, n), np.float32)
        self.ink_colour: RGB = (0.9, 0.9, 0.88)

    def mask(self, *shapes: Shape) -> Array:
        """Shapes drawn one over the other, antialiased: (n, n) in [0, 1]."""
        fine = Image.new("L", (self.n * DRAWN, self.n * DRAWN))
        pen = ImageDraw.Draw(fine)
        for shape in shapes:
            shape(pen, self.n * DRAWN / 2)
        return np.asarray(fine.reduce(DRAWN), np.float32) * np.float32(1 / 255)

    def radius(self) -> Array:
        """Distance of every pixel from the centre."""
        axis = (np.arange(self.n, dtype=np.float32) + 0.5) * (2 / self.n) - 1
        return np.asarray(np.hypot(axis[None, :], axis[:, None]), np.float32)

    def raised(self, mask: Array, by_px: float, *, bevel_px: float) -> None:
        """Lift (or with a negative height sink) an area, its edge rounded."""
        sigma = bevel_px * KEPT * self.side / 256
        self.height += by_px * ndimage.gaussian_filter(mask, sigma, truncate=3)

    def covered(self, mask: Array, to_px: float, *, bevel_px: float) -> None:
        """Put a flat body over whatever is there, its top at one height."""
        soft = ndimage.gaussian_filter(mask, bevel_px * KEPT * self.side / 256, truncate=3)
        self.height += soft * (to_px - self.height)

    def paint(self, mask: Array, colour: RGB, *, gloss: float, grain: float = 0.4, turned: float = 0.0) -> None:
        """Give an area its colour and finish, all in [0, 1]."""
        self.colour += mask[..., None] * (np.asarray(colour, np.float32) - self.colour)
        self.gloss += mask * (gloss - self.gloss)
        self.grain += mask * (grain - self.grain)
        self.turned += mask * (turned - self.turned)

    def finished(self) -> Sheet:
        """The sheet, with what ambient light the relief lets through."""
        scale = KEPT * self.side / 256
        around_it = ndimage.gaussian_filter(self.height, 3.5 * scale, truncate=2.5)
        ambient = np.clip(1 - 0.16 * np.maximum(around_it - self.height, 0), 0.35, 1)
        colour = [self.colour[..., c] for c in range(3)]
        return Sheet(
            colour=_four(*colour, self.alpha),
            finish=_four(self.gloss, self.turned, self.grain, ambient).filter(ImageFilter.BoxBlur(0.5)),
            ink=_grey(self.ink),
            height=Image.fromarray(self.height),
            ink_colour=self.ink_colour,
        )


def _grey(values: Array) -> Image.Image:
    return Image.fromarray((np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8))


def _four(*channels: Array) -> Image.Image:
    # CMYK is Pillow's four plain channels: RGBA would be multiplied by alpha when it is posed.
    return Image.merge("CMYK", [_grey(c) for c in channels])
