"""What goes wrong with a part: each defect changes a posed surface before light falls on it.

`strength` is in [0, 1]: 0 is the faintest that a person still finds at 256 px, 1 is plain to see.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from pipeline.synthetic.drawing import RGB, Array, Point
from pipeline.synthetic.scene import Surface

FINE = 4  # strokes are drawn this much finer than the picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The chance in one defect."""

    rng: np.random.Generator
    px: float
    strength: float

    def between(self, faint: float, plain: float) -> float:
        """A value that grows with the strength, with a little chance of its own."""
        return (faint + (plain - faint) * self.strength) * float(self.rng.uniform(0.9, 1.1))


def _ink(size: tuple[int, ...], pen: Callable[[ImageDraw.ImageDraw], None]) -> Array:
    """What a pen leaves on a finer canvas, antialiased: (H, W) in [0, 1]."""
    canvas = Image.new("L", (size[1] * FINE, size[0] * FINE))
    pen(ImageDraw.Draw(canvas))
    return np.asarray(canvas.reduce(FINE), np.float32) * np.float32(1 / 255)


def _stroke(size: tuple[int, ...], points: Sequence[Point], width: float) -> Array:
    scaled = [(x * FINE, y * FINE) for x, y in points]
    return _ink(size, lambda pen: pen.line(scaled, fill=255, width=max(1, round(width * FINE)), joint="curve"))


def _blob(fault: Fault, size: tuple[int, ...], at: Point, radius: float, *, rough: float) -> Array:
    """An irregular round patch."""
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    edge = np.ones_like(angle)
    for k in range(2, 9):
        edge += 1.3 * rough / k**1.5 * fault.rng.normal() * np.cos(k * angle + fault.rng.uniform(0, 2 * np.pi))
    edge = radius * np.maximum(edge, 0.3)
    squeeze, turn = fault.rng.uniform(0.7, 1.0), fault.rng.uniform(0, np.pi)
    x, y = edge * np.cos(angle), edge * np.sin(angle) * squeeze
    points = zip(
        FINE * (at[0] + x * math.cos(turn) - y * math.sin(turn)),
        FINE * (at[1] + x * math.sin(turn) + y * math.cos(turn)),
        strict=True,
    )
    corners = [(float(a), float(b)) for a, b in points]
    return _ink(size, lambda pen: pen.polygon(corners, fill=255))


def _place(fault: Fault, solid: Array, clear: float) -> Point:
    """A point (x, y) on the part with solid ground `clear` pixels to either side, if there is one."""
    rows, columns = np.nonzero(solid > min(0.9, 0.99 * float(solid.max())))  # fine print is faint in a small picture
    best = (float(columns[0]), float(rows[0]))
    for _ in range(40):
        k = int(fault.rng.integers(len(rows)))
        best = (float(columns[k]), float(rows[k]))
        around = [(best[0] + dx * clear, best[1] + dy * clear) for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1))]
        if all(_at(solid, p) > 0.9 for p in around):
            return best
    return best


def _at(field: Array, point: Point) -> float:
    x, y = round(point[0]), round(point[1])
    inside = 0 <= y < field.shape[0] and 0 <= x < field.shape[1]
    return float(field[y, x]) if inside else 0.0


def _rim(fault: Fault, surface: Surface) -> tuple[Point, float]:
    """A point on the part's outline, and the angle that leads outwards there."""
    angle = float(fault.rng.uniform(0, 2 * math.pi))
    steps = np.arange(0, max(surface.alpha.shape) * 0.72, 0.5)
    x, y = surface.centre[0] + steps * math.cos(angle), surface.centre[1] + steps * math.sin(angle)
    on = [k for k in range(len(steps)) if _at(surface.alpha, (float(x[k]), float(y[k]))) > 0.5]
    last = on[-1] if on else 0
    return (float(x[last]), float(y[last])), angle


def _walk(fault: Fault, start: Point, angle: float, length: float, *, step: float, jitter: float) -> list[Point]:
    points = [start]
    for _ in range(max(2, round(length / step))):
        angle += float(fault.rng.normal(0, jitter))
        x, y = points[-1]
        points.append((x + step * math.cos(angle), y + step * math.sin(angle)))
    return points


def _blend(surface: Surface, mask: Array, colour: RGB) -> Array:
    """The albedo with a colour laid over it."""
    return np.asarray(
        surface.albedo + mask * (np.asarray(colour, np.float32)[:, None, None] - surface.albedo), np.float32
    )


def _soft(mask: Array, sigma: float) -> Array:
    return np.asarray(ndimage.gaussian_filter(mask, sigma, truncate=3), np.float32)


def scratch(surface: Surface, fault: Fault) -> Surface:
    """One to three thin, slightly bent grooves, their ground bare and bright."""
    groove = np.zeros_like(surface.alpha)
    start, angle = _place(fault, surface.alpha, 8 * fault.px), float(fault.rng.uniform(0, 2 * math.pi))
    for _ in range(int(fault.rng.integers(1, 3 + round(fault.strength)))):
        length = fault.px * fault.between(26, 75)
        bend = _walk(fault, start, angle, length, step=5 * fault.px, jitter=0.05)
        groove = np.maximum(groove, _stroke(surface.alpha.shape, bend, fault.px * fault.between(0.8, 1.7)))
        start = (start[0] + fault.px * fault.rng.normal(0, 5), start[1] + fault.px * fault.rng.normal(0, 5))
        angle += float(fault.rng.normal(0, 0.1))
    bare = surface.albedo.mean(0) + 0.25
    depth = fault.px * fault.between(1.2, 2.2)
    return replace(
        surface,
        albedo=surface.albedo + groove * np.float32(fault.between(0.6, 0.9)) * (bare - surface.albedo),
        height=surface.height - depth * groove,
        ink=surface.ink * (1 - groove),
    )


def dent(surface: Surface, fault: Fault) -> Surface:
    """A knock: a hollow with a raised lip."""
    radius = fault.px * fault.between(4.5, 10)
    at = _place(fault, surface.alpha, radius)
    hit = _blob(fault, surface.alpha.shape, at, radius, rough=0.25)
    hollow = _soft(hit, radius * 0.35)
    lip = _soft(hit, radius * 0.55)
    depth = fault.px * fault.between(3.2, 7.5)
    height = surface.height - depth * (1.25 * hollow - 0.4 * lip)
    return replace(surface, height=np.asarray(height, np.float32))


def crack(surface: Surface, fault: Fault) -> Surface:
    """A jagged dark line running in from the edge, perhaps with a branch."""
    start, outwards = _rim(fault, surface)
    inwards = outwards + math.pi + float(fault.rng.normal(0, 0.4))
    length = fault.px * fault.between(26, 62)
    path = _walk(fault, start, inwards, length, step=3.2 * fault.px, jitter=0.42)
    width = fault.px * fault.between(0.8, 1.5)
    gap = _stroke(surface.alpha.shape, path, width)
    if fault.rng.random() < 0.6:
        fork = path[len(path) // 2]
        turned = inwards + float(fault.rng.choice([-0.8, 0.8]))
        branch = _walk(fault, fork, turned, length * 0.4, step=3 * fault.px, jitter=0.4)
        gap = np.maximum(gap, _stroke(surface.alpha.shape, branch, width * 0.8))
    dark = gap * np.float32(min(1.0, fault.between(0.6, 0.95)))
    return replace(
        surface,
        albedo=surface.albedo * (1 - dark),
        gloss=surface.gloss * (1 - dark),
        ambient=surface.ambient * (1 - 0.5 * dark),
        height=surface.height - fault.px * 1.2 * gap,
        ink=surface.ink * (1 - dark),
    )


def stain(surface: Surface, fault: Fault) -> Surface:
    """Oil, flux or rust: an uneven film with a darker rim."""
    shape = surface.alpha.shape
    radius = fault.px * fault.between(8, 19)
    at = _place(fault, surface.alpha, radius * 0.6)
    patch = _blob(fault, shape, at, radius, rough=0.55)
    for _ in range(int(fault.rng.integers(0, 4))):
        away = (at[0] + radius * fault.rng.normal(0, 0.9), at[1] + radius * fault.rng.normal(0, 0.9))
        patch = np.maximum(patch, _blob(fault, shape, away, radius * float(fault.rng.uniform(0.12, 0.35)), rough=0.3))
    film = _soft(patch, 1.0 * fault.px)
    rim = film - _soft(patch, 3.0 * fault.px)
    mottle = _soft(fault.rng.standard_normal(shape, np.float32), 2.5 * fault.px)
    mottle /= mottle.std() + 1e-6
    amount = film * (1 + 0.16 * mottle + 1.2 * np.maximum(rim, 0)) * np.float32(fault.between(0.34, 0.72))
    tints: tuple[RGB, ...] = ((0.17, 0.11, 0.05), (0.07, 0.07, 0.08), (0.30, 0.15, 0.06), (0.62, 0.60, 0.54))
    tint = tints[int(fault.rng.integers(len(tints)))]
    film = np.clip(amount, 0, 1)
    return replace(
        surface,
        albedo=_blend(surface, film, tint),
        gloss=surface.gloss + film * (0.10 - surface.gloss),
        ink=surface.ink * (1 - film),
    )


def contamination(surface: Surface, fault: Fault) -> Surface:
    """Something lying on the part: a fibre, a curl of swarf, a crumb."""
    shape, kind = surface.alpha.shape, int(fault.rng.integers(3))
    at = _place(fault, surface.alpha, 6 * fault.px)
    angle = float(fault.rng.uniform(0, 2 * math.pi))
    colour: RGB
    if kind == 0:
        path = _walk(fault, at, angle, fault.px * fault.between(24, 60), step=3 * fault.px, jitter=0.28)
        body, thick, gloss = _stroke(shape, path, fault.px * fault.between(0.9, 1.6)), 1.5, 0.1
        colour = ((0.80, 0.79, 0.74), (0.10, 0.10, 0.12), (0.55, 0.12, 0.10))[int(fault.rng.integers(3))]
    elif kind == 1:
        bend = float(fault.rng.choice([-1, 1])) * 0.45
        path = [at]
        for k in range(round(fault.between(7, 15))):
            reach = 2.4 * fault.px
            path.append(
                (
                    path[-1][0] + reach * math.cos(angle + bend * k),
                    path[-1][1] + reach * math.sin(angle + bend * k),
                )
            )
        body, thick, gloss, colour = (
            _stroke(shape, path, fault.px * fault.between(1.6, 2.8)),
            2.5,
            0.8,
            (0.55, 0.53, 0.50),
        )
    else:
        body = _blob(fault, shape, at, fault.px * fault.between(3, 6.5), rough=0.5)
        thick, gloss = 4.0, 0.15
        colour = ((0.36, 0.24, 0.13), (0.70, 0.68, 0.62), (0.09, 0.09, 0.10))[int(fault.rng.integers(3))]
    drop = round(1.6 * fault.px)
    shade = np.roll(_soft(body, 1.3 * fault.px), (drop, drop), (0, 1)) * (1 - body)
    return replace(
        surface,
        albedo=_blend(surface, body, colour),
        alpha=np.maximum(surface.alpha, body),
        height=surface.height + fault.px * thick * _soft(body, 0.7 * fault.px),
        gloss=surface.gloss + body * (np.float32(gloss) - surface.gloss),
        turned=surface.turned * (1 - body),
        ambient=(surface.ambient + body * (1 - surface.ambient)) * (1 - 0.45 * shade),
        ink=surface.ink * (1 - body),
    )


def misprint(surface: Surface, fault: Fault) -> Surface:
    """The marking smeared, doubled or partly left out."""
    way = int(fault.rng.integers(3))
    reach = fault.px * fault.between(3.5, 8)
    angle = float(fault.rng.uniform(0, 2 * math.pi))
    dx, dy = reach * math.cos(angle), reach * math.sin(angle)
    if way == 0:
        copies = [ndimage.shift(surface.ink, (dy * k / 6, dx * k / 6), order=1) for k in range(1, 7)]
        smear = np.asarray(np.max(copies, axis=0), np.float32) * np.float32(fault.between(0.45, 0.8))
        ink = np.maximum(surface.ink * 0.9, smear)
    elif way == 1:
        ghost = ndimage.shift(surface.ink, (dy, dx), order=1) * np.float32(min(1.0, fault.between(0.6, 1)))
        ink = np.maximum(surface.ink, ghost)
    else:
        at = _place(fault, surface.ink, 0)
        patch = _soft(_blob(fault, surface.ink.shape, at, fault.px * fault.between(16, 42), rough=0.4), fault.px)
        ink = surface.ink * (1 - patch * np.float32(min(1.0, fault.between(0.75, 1))))
    return replace(surface, ink=np.asarray(ink * (surface.alpha > 0.5), np.float32))


def chip(surface: Surface, fault: Fault) -> Surface:
    """A piece broken out of the edge, the break rough and pale."""
    rim, outwards = _rim(fault, surface)
    radius = fault.px * fault.between(5, 11)
    inset = radius * 0.15
    at = (rim[0] - inset * math.cos(outwards), rim[1] - inset * math.sin(outwards))
    gone = _blob(fault, surface.alpha.shape, at, radius, rough=0.45)
    face = np.clip(_soft(gone, 1.6 * fault.px) * 2.2, 0, 1) * (1 - gone)
    rough = fault.rng.standard_normal(gone.shape, np.float32) * 0.35 + 1
    pale = surface.albedo.mean(0) * 0.6 + 0.22
    return replace(
        surface,
        albedo=surface.albedo + 0.6 * face * (pale * rough - surface.albedo),
        alpha=surface.alpha * (1 - gone),
        height=surface.height - fault.px * 3.0 * _soft(gone, 1.2 * fault.px),
        gloss=surface.gloss * (1 - face),
        ink=surface.ink * (1 - np.maximum(gone, face)),
    )


Spoil: TypeAlias = Callable[[Surface, Fault], Surface]

SPOILS: dict[str, Spoil] = {
    "scratch": scratch,
    "dent": dent,
    "crack": crack,
    "stain": stain,
    "contamination": contamination,
    "misprint": misprint,
    "chip": chip,
}
