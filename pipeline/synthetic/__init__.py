"""Procedurally drawn industrial parts with known defects and exact masks, for the demo and the tests.

`draw` lays a part on a belt, perhaps spoils it, lights it and photographs it. One (part, seed) is always the
same part in the same pose and light, good or defective. The mask is what the defect visibly changed.
"""

import io
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pipeline.data import Size
from pipeline.errors import ConfigError
from pipeline.synthetic import parts, scene
from pipeline.synthetic.change import NONE, Change
from pipeline.synthetic.defects import SPOILS, Fault
from pipeline.synthetic.drawing import Array, Picture

MISSING = "missing"
PARTS: tuple[str, ...] = tuple(parts.PARTS)
DEFECTS: tuple[str, ...] = (*SPOILS, MISSING)

VISIBLE = 10 / 255  # of full scale, in any one colour: below this nobody sees a change
SPECK_PX = 4  # smaller islands of change are dropped, in pixels of a picture 256 px wide
SMALLEST = 28  # a defect that shows less area than this is drawn again, stronger
TRIES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One picture of one part.

    Attributes:
        image: (H, W, 3) RGB.
        mask: (H, W), true where the defect visibly changed the picture; nowhere, if the part is good.
        defect: None if the part is good.
    """

    image: Picture
    mask: NDArray[np.bool_]
    part: str
    defect: str | None


def defects_of(part: str) -> tuple[str, ...]:
    """The defects that a part can have.

    Raises:
        ConfigError: there is no such part.
    """
    if part not in PARTS:
        raise ConfigError(f"no part {part!r}; there are {', '.join(PARTS)}")
    # A laminate does not dent.
    return tuple(d for d in DEFECTS if (part, d) != ("board", "dent"))


def draw(part: str, *, seed: int, defect: str | None = None, size: Size = (256, 256), change: Change = NONE) -> Drawn:
    """Draw a part.

    Args:
        part: one of `PARTS`.
        seed: which part, pose and light, 0 or more; the defect's place and size follow from it, too.
        defect: one of `defects_of(part)`, or None for a good part.
        size: (H, W); the part fills the shorter side.
        change: what the station has become since it was set up.

    Raises:
        ConfigError: the part or the defect is unknown, the seed is negative or the picture too small.
    """
    known = defects_of(part)
    if defect is not None and defect not in known:
        raise ConfigError(f"no defect {defect!r} of {part!r}; there are {', '.join(known)}")
    if seed < 0 or min(size) < 32:
        raise ConfigError(f"a drawing needs a seed of at least 0 and a size of at least 32, not {seed} and {size}")
    setting = change.scene(scene.arrange(part, _chance(part, "scene", seed), size))
    surface = change.surface(scene.pose(parts.sheet(part, min(size)), setting))
    clean = change.lens(scene.render(surface, setting))
    mask = np.zeros(size, np.bool_)
    if defect is not None:
        clean, mask = _spoil(part, defect, seed, surface, clean, setting, change)
    image = scene.photograph(clean, _chance(part, "sensor", seed))
    return Drawn(image=image, mask=mask, part=part, defect=defect)


def _chance(*key: str | int) -> np.random.Generator:
    """Random numbers that follow from the words and numbers alone, in every process and on every machine."""
    return np.random.default_rng(
        np.random.SeedSequence([zlib.crc32(k.encode()) if isinstance(k, str) else k for k in key])
    )


def _spoil(
    part: str,
    defect: str,
    seed: int,
    surface: scene.Surface,
    good: Array,
    setting: scene.Scene,
    change: Change,
) -> tuple[Array, NDArray[np.bool_]]:
    """The noiseless picture with the defect, (3, H, W), and where it differs from the good one, (H, W)."""
    px = min(setting.size) / 256
    best = good, np.zeros(setting.size, np.bool_)
    for attempt in range(TRIES):
        rng = _chance(part, defect, seed, attempt)
        strength = min(1.0, float(rng.uniform(0.1, 1)) + attempt * 0.15)
        if defect == MISSING:
            without = parts.sheet(part, min(setting.size), int(rng.integers(parts.PARTS[part][1])))
            spoilt = change.surface(scene.pose(without, setting))
        else:
            spoilt = SPOILS[defect](surface, Fault(rng=rng, px=px, strength=strength))
        bad = change.lens(scene.render(spoilt, setting))
        mask = _without_specks(np.abs(bad - good).max(axis=0) > VISIBLE, SPECK_PX * px * px)
        if mask.sum() > best[1].sum():
            best = np.where(mask, bad, good), mask
        if mask.sum() >= SMALLEST * px * px:
            break
    return best


def _without_specks(mask: NDArray[np.bool_], least: float) -> NDArray[np.bool_]:
    islands, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = np.bincount(islands.ravel())
    areas[0] = 0
    return np.asarray(areas[islands] >= max(1.0, least), np.bool_) & mask


def encode(image: Picture, *, format: str = "JPEG", quality: int = 92) -> bytes:  # noqa: A002 - Pillow's word
    """A picture as a camera sends it; `quality` is JPEG's."""
    out = io.BytesIO()
    options = {"quality": quality} if format.upper() in ("JPEG", "WEBP") else {}
    Image.fromarray(image).save(out, format=format, **options)
    return out.getvalue()


def write_dataset(folder: Path, part: str, *, goods: int, test_goods: int, defects_each: int, seed: int) -> None:
    """Write PNGs in MVTec AD layout; no part appears twice.

    Args:
        folder: the part's own folder, made if needed.
        part: one of `PARTS`.
        goods: pictures to learn from.
        test_goods: good pictures to test with.
        defects_each: pictures of every defect the part can have.
        seed: which parts are drawn; two seeds share none.

    Raises:
        ConfigError: there is no such part.
    """
    serial = seed * 1_000_000
    plan: list[tuple[str, str | None, int]] = [("train/good", None, goods), ("test/good", None, test_goods)]
    plan += [(f"test/{defect}", defect, defects_each) for defect in defects_of(part)]
    for where, defect, count in plan:
        (folder / where).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            drawn = draw(part, seed=serial, defect=defect)
            (folder / where / f"{k:03d}.png").write_bytes(encode(drawn.image, format="PNG"))
            if defect is not None:
                truth = folder / "ground_truth" / defect / f"{k:03d}_mask.png"
                truth.parent.mkdir(parents=True, exist_ok=True)
                truth.write_bytes(encode(drawn.mask.astype(np.uint8) * 255, format="PNG"))
            serial += 1


__all__ = ["DEFECTS", "PARTS", "Change", "Drawn", "defects_of", "draw", "encode", "write_dataset"]
