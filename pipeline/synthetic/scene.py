"""The station: a posed part on a belt under a lamp, seen by a camera.

Natural variation lives here: pose, size within tolerance, lamp, white balance, finish, belt, print register.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

from pipeline.data import Size
from pipeline.synthetic.drawing import KEPT, RGB, Array, Picture, Point, Sheet

MARGIN = 96  # how far a texture is larger than the picture
BELTS: dict[str, RGB] = {"gear": (0.17, 0.21, 0.20), "cap": (0.40, 0.40, 0.385), "board": (0.47, 0.48, 0.50)}


@dataclass(frozen=True, slots=True)
class Surface:
    """A posed part, pixel for pixel, before light; a defect is a change of it.

    Attributes:
        albedo: (3, H, W) in [0, 1].
        alpha: (H, W) in [0, 1]: where the part is. So are `gloss`, `turned`, `grain`, `ambient` and `ink`.
        height: (H, W) in pixels of this picture.
        ink_colour: RGB in [0, 1].
        centre: (x, y) of the part.
    """

    albedo: Array
    alpha: Array
    height: Array
    gloss: Array
    turned: Array
    grain: Array
    ambient: Array
    ink: Array
    ink_colour: RGB
    centre: Point


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """All that chance decides about one good part's picture, but the sensor's noise."""

    size: Size
    belt: RGB
    centre: Point
    turn: float
    stretch: float
    register: Point
    lamp: tuple[float, float, float]
    gain: float
    balance: RGB
    slope: Point
    finish_at: Point
    grain_at: tuple[int, int]
    belt_at: tuple[int, int]
    cloud: Array
    lathe: Array


def arrange(part: str, rng: np.random.Generator, size: Size) -> Scene:
    """Place the part, hang the lamp, move the belt."""
    height, width = size
    px = min(size) / 256
    azimuth = math.radians(rng.normal(-125, 3))
    tilt = math.radians(rng.normal(42, 1.2))
    red, blue = rng.normal(1, 0.012, 2)
    return Scene(
        size=size,
        belt=BELTS[part],
        centre=(width / 2 + px * rng.uniform(-1.5, 1.5), height / 2 + px * rng.uniform(-1.5, 1.5)),
        turn=math.radians(rng.uniform(-1.0, 1.0)),
        stretch=float(rng.normal(1, 0.002)),
        register=(float(px * rng.normal(0, 0.35)), float(px * rng.normal(0, 0.35))),
        lamp=(math.sin(tilt) * math.cos(azimuth), math.sin(tilt) * math.sin(azimuth), math.cos(tilt)),
        gain=float(rng.normal(1, 0.02)),
        balance=(float(red), 1.0, float(blue)),
        slope=(float(rng.normal(-0.06, 0.02)), float(rng.normal(-0.05, 0.02))),
        finish_at=(float(rng.normal(0, 1)), float(rng.normal(0, 1))),
        grain_at=(int(rng.integers(MARGIN)), int(rng.integers(MARGIN))),
        belt_at=(int(rng.integers(MARGIN)), int(rng.integers(MARGIN))),
        cloud=rng.normal(0, 1, (7, 7)).astype(np.float32),
        lathe=rng.normal(0, 1, 512).astype(np.float32),
    )


def pose(sheet: Sheet, scene: Scene) -> Surface:
    """Lay a nominal part where the scene says."""
    side = min(scene.size)
    cos, sin = (f(scene.turn) * KEPT / scene.stretch for f in (math.cos, math.sin))

    def laid(image: Image.Image, shift: Point = (0.0, 0.0), *, smooth: bool = True) -> Array:
        x, y = scene.centre[0] + shift[0], scene.centre[1] + shift[1]
        middle = side * KEPT / 2
        matrix = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
        how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
        values = np.asarray(image.transform(scene.size[::-1], Image.Transform.AFFINE, matrix, how))
        if image.mode == "F":
            return np.asarray(values * (side / 256), np.float32)
        planes = np.moveaxis(values, -1, 0) if values.ndim == 3 else values
        return np.asarray(np.multiply(planes, 1 / 255, order="C", dtype=np.float32), np.float32)

    colour, finish = laid(sheet.colour), laid(sheet.finish, smooth=False)
    return Surface(
        albedo=colour[:3],
        alpha=colour[3],
        height=laid(sheet.height),
        gloss=finish[0],
        turned=finish[1],
        grain=finish[2],
        ambient=finish[3],
        ink=laid(sheet.ink, scene.register),
        ink_colour=sheet.ink_colour,
        centre=scene.centre,
    )


@lru_cache(maxsize=4)
def _textures(size: Size) -> tuple[Array, Array]:
    """Fine grain and a woven belt, each `MARGIN` larger than the picture, with mean 0."""
    rng = np.random.default_rng(11)
    shape = (size[0] + MARGIN, size[1] + MARGIN)
    px = min(size) / 256

    def noise(*sigma: float) -> Array:
        field = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), [s * px for s in sigma], mode="wrap")
        return np.asarray(field / field.std(), np.float32)

    grain = 0.55 * noise(0.6, 0.6) + 0.3 * noise(1.6, 1.6) + 0.45 * noise(0.5, 7)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32) / px
    weave = np.sin(2 * np.pi * (x + 0.6 * noise(9, 9)) / 5) * np.sin(2 * np.pi * y / 5)
    belt = 0.5 * weave + 0.7 * noise(0.7, 0.7) + 0.5 * noise(2, 2) + 0.45 * noise(1, 14) + 0.5 * noise(18, 18)
    return grain, np.asarray(belt, np.float32)


def _crop(texture: Array, at: tuple[int, int], size: Size) -> Array:
    return texture[at[0] : at[0] + size[0], at[1] : at[1] + size[1]]


def _cloud(scene: Scene) -> Array:
    """Slow unevenness over the picture, (H, W), about 1 in standard deviation."""
    wide = Image.fromarray(scene.cloud).resize(scene.size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(wide, np.float32)


def _shadow(surface: Surface, scene: Scene) -> Array:
    """The part's soft shadow on the belt, (H, W) in [0, 1]."""
    px = min(scene.size) / 256
    solid = Image.fromarray((surface.alpha * 255).astype(np.uint8)).reduce(2)
    thrown = (1, 0, scene.lamp[0] * 4.5 * px, 0, 1, scene.lamp[1] * 4.5 * px)
    soft = solid.transform(solid.size, Image.Transform.AFFINE, thrown).filter(ImageFilter.GaussianBlur(1.7 * px))
    dark = Image.blend(soft, solid.filter(ImageFilter.GaussianBlur(3 * px)), 0.38)
    return np.asarray(dark.resize(scene.size[::-1], Image.Resampling.BILINEAR), np.float32) * np.float32(0.8 / 255)


def _turning(scene: Scene) -> Array:
    """Machining marks and the fan of light they throw, (H, W), mean about 0."""
    height, width = scene.size
    x = np.arange(width, dtype=np.float32)[None, :] + 0.5 - scene.centre[0]
    y = np.arange(height, dtype=np.float32)[:, None] + 0.5 - scene.centre[1]
    radius = np.hypot(x, y) + 1e-3
    rings = scene.lathe[(radius * (300 / min(scene.size))).astype(np.int32) % len(scene.lathe)]
    along = (x * scene.lamp[0] + y * scene.lamp[1]) / radius / math.hypot(*scene.lamp[:2])
    fan = np.square(np.square(along))
    return np.asarray(0.55 * (fan - 0.35) + 0.05 * rings * (0.4 + fan), np.float32)


def render(surface: Surface, scene: Scene) -> Array:
    """What the camera would see without noise: (3, H, W) in [0, 1]."""
    height, width = scene.size
    up, down = surface.height[:-2], surface.height[2:]
    dy, dx = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    dy[1:-1] = (down - up) * 0.5
    dx[:, 1:-1] = (surface.height[:, 2:] - surface.height[:, :-2]) * 0.5
    upright = 1 / np.sqrt(1 + dx * dx + dy * dy)
    lx, ly, lz = scene.lamp
    facing = np.maximum((lz - dx * lx - dy * ly) * upright, 0)
    long = math.sqrt(2 + 2 * lz)
    shine = np.maximum(((lz + 1) - dx * lx - dy * ly) * upright / long, 0)
    for _ in range(5):
        shine = np.square(shine)
    grain, belt = (
        _crop(t, at, scene.size) for t, at in zip(_textures(scene.size), (scene.grain_at, scene.belt_at), strict=True)
    )
    cloud = _cloud(scene)
    tone = 1 + surface.grain * (0.045 * grain + 0.03 * cloud)
    if surface.turned.max() > 0:
        tone += surface.turned * _turning(scene)
    light = (0.42 * surface.ambient + 1.0 * facing * (0.35 + 0.65 * surface.ambient)) * tone
    ink = surface.ink * (0.86 + 0.04 * grain)
    part = surface.albedo + ink * (_rgb(surface.ink_colour) - surface.albedo)
    part *= light
    part += surface.gloss * (shine + 0.10 * upright) * (0.8 + 0.2 * tone) * surface.ambient
    ground = (1 - _shadow(surface, scene)) * (1.12 + 0.06 * belt)
    picture = ground * _rgb(scene.belt)
    part -= picture
    part *= surface.alpha
    picture += part
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    lamp = scene.gain * (1 + scene.slope[0] * x + scene.slope[1] * y + 0.012 * cloud - 0.07 * (x * x + y * y))
    picture *= lamp
    picture *= _rgb(scene.balance)
    return _tone(picture)


def _rgb(colour: RGB) -> Array:
    return np.asarray(colour, np.float32)[:, None, None]


def _tone(light: Array) -> Array:
    """The camera's curve: highlights roll off instead of clipping."""
    np.maximum(light, 0, out=light)
    curve = light + np.float32(1.02)
    np.divide(light, curve, out=curve)
    curve *= np.float32(1.72)
    np.minimum(curve, 1, out=curve)
    return curve


def photograph(clean: Array, rng: np.random.Generator) -> Picture:
    """Add the sensor's read and shot noise to (3, H, W): (H, W, 3) uint8."""
    noise = rng.random(clean.shape, np.float32)
    noise += rng.random(clean.shape, np.float32)
    noise -= 1
    # 6: the sum of two uniform numbers has a variance of 1 / 6.
    noise *= np.sqrt(np.float32(6 * 2.5e-5) + np.float32(6 * 1.6e-4) * clean)
    noise += clean
    noise *= 255
    noise += np.float32(0.5)
    return np.ascontiguousarray(np.moveaxis(noise.clip(0, 255).astype(np.uint8), 0, -1))
