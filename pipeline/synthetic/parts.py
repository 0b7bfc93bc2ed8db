"""The three parts as their drawings say they are, before any light falls on them.

Coordinates are (x, y) in [-1, 1], y down; lengths called `_px` are pixels of a picture 256 px wide.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from pipeline.synthetic.drawing import RGB, Blank, Point, Shape, Sheet, around, box, disc, line, polygon, text

BOLTS = 5
TEETH = 22


def _gear(blank: Blank, missing: int | None) -> None:
    """A machined steel gear: teeth, turned face, sunk web, hub with keyway, bolt holes, etched number."""
    outline: list[Point] = []
    pitch = 2 * math.pi / TEETH
    for k in range(TEETH):
        profile = [
            (-0.5, 0.68),
            (-0.37, 0.685),
            (-0.25, 0.76),
            (-0.17, 0.80),
            (0.17, 0.80),
            (0.25, 0.76),
            (0.37, 0.685),
        ]
        if k == missing:
            profile = [(-0.5, 0.68), (-0.36, 0.68), (-0.1, 0.695), (0.12, 0.69), (0.36, 0.68)]
        outline += [(r * math.cos((k + a) * pitch), r * math.sin((k + a) * pitch)) for a, r in profile]
    bolts = [p for k, p in enumerate(around(BOLTS, 0.45, start_deg=-90)) if missing != TEETH + k]
    holes = [disc(x, y, 0.062, 0) for x, y in bolts]
    bore = [disc(0, 0, 0.135, 0), box(0, -0.14, 0.07, 0.07, fill=0)]
    blank.alpha = blank.mask(polygon(outline), *holes, *bore)
    blank.paint(blank.mask(disc(0, 0, 1)), (0.50, 0.51, 0.53), gloss=0.42, grain=0.9, turned=0.75)
    blank.raised(blank.alpha, 5.0, bevel_px=1.5)
    web = blank.mask(disc(0, 0, 0.58), disc(0, 0, 0.29, 0))
    blank.paint(web, (0.42, 0.43, 0.45), gloss=0.25, grain=1.0, turned=0.45)
    blank.raised(web, -3.2, bevel_px=1.6)
    blank.raised(blank.mask(*[disc(x, y, 0.085) for x, y in bolts]), -1.2, bevel_px=1.0)
    blank.raised(blank.mask(disc(0, 0, 0.265), disc(0, 0, 0.245, 0)), -1.0, bevel_px=0.7)
    blank.raised(blank.mask(disc(0, 0, 0.625), disc(0, 0, 0.612, 0)), -0.8, bevel_px=0.6)
    letters = zip("GL-2407", range(-3, 4), strict=True)
    spots = ((c, 90 - 7.4 * k) for c, k in letters)
    blank.ink = blank.mask(
        *[
            text(0.44 * math.cos(math.radians(a)), 0.44 * math.sin(math.radians(a)), c, 0.088, turn_deg=a - 90)
            for c, a in spots
        ]
    )
    blank.ink_colour = (0.13, 0.12, 0.13)


def _cap(blank: Blank, missing: int | None) -> None:
    """A moulded bottle cap: gripping ridges, rim, rings, an embossed star, a printed ring of lettering."""
    radius, ridges = blank.radius(), 60
    blank.alpha = blank.mask(disc(0, 0, 0.82))
    blank.paint(blank.mask(disc(0, 0, 1)), (0.10, 0.29, 0.52), gloss=0.34, grain=0.35)
    blank.height += np.clip((0.83 - radius) / 0.13, 0, 1) * 9
    flat = range(0) if missing is None or missing >= 10 else range(missing * 6, missing * 6 + 4)
    ends = zip(around(ridges, 0.705), around(ridges, 0.815), strict=True)
    strips = [line([a, b], 0.034) for k, (a, b) in enumerate(ends) if k not in flat]
    blank.raised(blank.mask(*strips), 2.2, bevel_px=0.8)
    rim = [disc(0, 0, 0.67), disc(0, 0, 0.61, 0)]
    if missing is not None and missing >= 10:
        turn = math.radians((missing - 10) * 60 + 20)
        wedge = [(math.cos(turn + d) * 0.8, math.sin(turn + d) * 0.8) for d in (-0.16, 0.0, 0.16)]
        rim.append(polygon([(0.0, 0.0), *wedge], 0))
    blank.raised(blank.mask(*rim), 2.4, bevel_px=1.4)
    blank.raised(blank.mask(disc(0, 0, 0.53), disc(0, 0, 0.50, 0)), -1.3, bevel_px=0.8)
    blank.raised(blank.mask(disc(0, 0, 0.31), disc(0, 0, 0.285, 0)), 1.3, bevel_px=0.8)
    tips, dips = around(6, 0.21, start_deg=-90), around(6, 0.105, start_deg=-60)
    star = [p for pair in zip(tips, dips, strict=True) for p in pair]
    blank.raised(blank.mask(polygon(star)), 2.2, bevel_px=0.9)
    blank.raised(blank.mask(disc(0, 0, 0.03)), -1.6, bevel_px=0.8)
    words = "FRESH PRESS * 500 ML * "
    places = zip(words, around(len(words), 0.41, start_deg=-150), strict=True)
    blank.ink = blank.mask(
        *[text(x, y, c, 0.115, turn_deg=math.degrees(math.atan2(y, x)) + 90) for c, (x, y) in places if c != " "]
    )
    blank.ink_colour = (0.86, 0.87, 0.84)


# Components: what, x, y, width, height. The order is the order of `missing`.
BODIES: tuple[tuple[str, float, float, float, float], ...] = (
    ("chip", -0.12, -0.02, 0.36, 0.36),
    ("chip", 0.46, -0.30, 0.20, 0.30),
    ("can", 0.52, 0.26, 0.24, 0.24),
    ("resistor", -0.58, 0.02, 0.13, 0.065),
    ("resistor", -0.58, 0.16, 0.13, 0.065),
    ("resistor", -0.58, 0.30, 0.13, 0.065),
    ("capacitor", -0.40, -0.42, 0.13, 0.075),
    ("capacitor", -0.20, -0.42, 0.13, 0.075),
    ("resistor", 0.20, 0.36, 0.13, 0.065),
    ("capacitor", 0.20, 0.48, 0.13, 0.075),
    ("resistor", 0.20, -0.42, 0.13, 0.065),
    ("capacitor", 0.26, 0.10, 0.075, 0.13),
)
LOOKS: dict[str, tuple[RGB, float, float]] = {  # colour, gloss, height
    "chip": ((0.085, 0.085, 0.09), 0.16, 4.5),
    "can": ((0.62, 0.63, 0.64), 0.40, 7.0),
    "resistor": ((0.07, 0.07, 0.075), 0.30, 2.2),
    "capacitor": ((0.52, 0.41, 0.28), 0.22, 3.0),
}


def _pins(kind: str, x: float, y: float, w: float, h: float) -> list[Shape]:
    """The solder pads a component stands on."""
    if kind == "can":
        return [box(x - w / 2 - 0.01, y, 0.08, 0.09), box(x + w / 2 + 0.01, y, 0.08, 0.09)]
    if kind != "chip":
        across, along = (w / 2, 0.0), (0.055, h + 0.015)
        if h > w:
            across, along = (0.0, h / 2), (w + 0.015, 0.055)
        return [box(x + s * across[0], y + s * across[1], *along) for s in (-1, 1)]
    steps = np.arange(-h / 2 + 0.04, h / 2 - 0.02, 0.05)
    pins = [box(x + s * (w / 2 + 0.025), y + float(d), 0.07, 0.026) for s in (-1, 1) for d in steps]
    if w == h:
        pins += [box(x + float(d), y + s * (h / 2 + 0.025), 0.026, 0.07) for s in (-1, 1) for d in steps]
    return pins


def _traces() -> tuple[list[Shape], list[Point]]:
    """Copper runs with 45 degree bends between fixed places, and the vias where they end."""
    rng = np.random.default_rng(7)
    runs, vias = [], []
    for k in range(34):
        x, y = float(rng.uniform(-0.72, 0.72)), float(rng.uniform(-0.56, 0.56))
        reach, bend, sign = float(rng.uniform(0.1, 0.3)), float(rng.uniform(0.04, 0.16)), (-1) ** k
        points = [
            (x, y),
            (x + reach * sign, y),
            (x + (reach + bend) * sign, y + bend),
            (x + (reach + bend) * sign, y + 2 * bend),
        ]
        if k % 2:
            points = [(x + (py - y), y + (px - x)) for px, py in points]
        if all(abs(px) < 0.76 and abs(py) < 0.6 for px, py in points):
            runs.append(line(points, 0.016 if k % 3 else 0.03))
            vias += [points[0], points[-1]]
    return runs, vias


def _board(blank: Blank, missing: int | None) -> None:
    """A small circuit board: mask, copper, vias, tinned pads, a dozen components, silkscreen."""
    mounts = [(sx * 0.73, sy * 0.57) for sx in (-1, 1) for sy in (-1, 1)]
    edge = box(0, 0, 1.64, 1.32, corner=0.05)
    blank.alpha = blank.mask(edge, *[disc(x, y, 0.045, 0) for x, y in mounts])
    blank.paint(blank.mask(disc(0, 0, 1.5)), (0.045, 0.23, 0.13), gloss=0.20, grain=0.35)
    blank.raised(blank.alpha, 3.0, bevel_px=0.8)
    runs, vias = _traces()
    copper = blank.mask(*runs, *[disc(x, y, 0.024) for x, y in vias])
    blank.paint(copper * 0.9, (0.085, 0.34, 0.19), gloss=0.25)
    blank.raised(copper, 0.5, bevel_px=0.5)
    gold = blank.mask(*[disc(x, y, 0.075) for x, y in mounts], *[disc(x, y, 0.014) for x, y in vias])
    blank.paint(gold * blank.alpha, (0.66, 0.53, 0.24), gloss=0.35, grain=0.5)
    header = [(-0.36 + 0.1 * k, 0.54) for k in range(5)]
    pads = [shape for body in BODIES for shape in _pins(*body)] + [disc(x, y, 0.036) for x, y in header]
    tin = blank.mask(*pads)
    blank.paint(tin, (0.60, 0.61, 0.61), gloss=0.45, grain=0.7)
    blank.raised(tin, 1.3, bevel_px=0.9)
    for kind, (colour, gloss, height) in LOOKS.items():
        bodies = [b[1:] for k, b in enumerate(BODIES) if b[0] == kind and k != missing]
        round_ = kind == "can"
        mask = blank.mask(*[disc(x, y, w / 2) if round_ else box(x, y, w, h, corner=0.012) for x, y, w, h in bodies])
        if kind in ("resistor", "capacitor"):
            caps = blank.mask(*[box(x, y, w, h) for x, y, w, h in bodies])
            blank.paint(caps, (0.62, 0.62, 0.61), gloss=0.4)
            mask = mask * blank.mask(*[box(x, y, w - 0.05 * (w > h), h - 0.05 * (h > w)) for x, y, w, h in bodies])
            blank.covered(caps, 3 + height, bevel_px=0.7)
        else:
            blank.covered(mask, 3 + height, bevel_px=0.9)
        blank.paint(mask, colour, gloss=gloss, grain=0.5, turned=0.3 * round_)
    dots = [
        disc(x - w / 2 + 0.05, y - h / 2 + 0.05, 0.018) for k, (_, x, y, w, h) in enumerate(BODIES[:2]) if k != missing
    ]
    blank.raised(blank.mask(*dots), -1.2, bevel_px=0.5)
    labels = [
        (0.08, 0.245, "U1"),
        (0.69, -0.30, "U2"),
        (0.72, 0.40, "C9"),
        (-0.74, 0.02, "R1"),
        (-0.74, 0.16, "R2"),
    ]
    labels += [
        (-0.74, 0.30, "R3"),
        (-0.40, -0.54, "C1"),
        (-0.20, -0.54, "C2"),
        (0.34, 0.36, "R4"),
        (0.34, 0.48, "C3"),
    ]
    labels += [(-0.5, 0.545, "J1"), (0.20, -0.53, "R5"), (-0.56, -0.25, "GL-7A")]
    frame = [box(-0.16, 0.54, 0.56, 0.13), box(-0.16, 0.54, 0.54, 0.11, fill=0)]
    blank.ink = blank.mask(*frame, *[text(x, y, w, 0.13 if len(w) > 2 else 0.088) for x, y, w in labels])
    blank.ink_colour = (0.80, 0.82, 0.78)


PARTS: dict[str, tuple[Callable[[Blank, int | None], None], int]] = {  # drawing, how many features can be missing
    "gear": (_gear, TEETH + BOLTS),
    "cap": (_cap, 16),
    "board": (_board, len(BODIES)),
}


@lru_cache(maxsize=16)
def sheet(part: str, side: int, missing: int | None = None) -> Sheet:
    """The nominal part for pictures whose shorter side is `side`, perhaps without one of its features."""
    blank = Blank(side)
    PARTS[part][0](blank, missing)
    return blank.finished()
