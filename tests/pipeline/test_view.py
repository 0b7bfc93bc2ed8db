import io

import msgspec
import numpy as np
import pytest
from PIL import Image

from pipeline.decode import Limits, decode_one
from pipeline.errors import ConfigError
from pipeline.view import View, see


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def mask_of(box, size=(120, 160)):
    """White in (y0, y1, x0, x1)."""
    pixels = np.zeros(size, np.uint8)
    pixels[box[0] : box[1], box[2] : box[3]] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "box", [(30, 90, 40, 120), (0, 120, 0, 80), (0, 60, 0, 160), (60, 120, 80, 160), (0, 120, 0, 160)]
)
def test_a_region_of_interest_survives_as_run_lengths(box):
    view = View(size=(60, 80)).with_roi(mask_of(box))
    expected = np.zeros((60, 80), bool)
    expected[box[0] // 2 : box[1] // 2, box[2] // 2 : box[3] // 2] = True
    assert np.array_equal(view.inside(), expected)
    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(view)), View) == view


def test_outside_the_region_every_picture_is_alike():
    chance = np.random.default_rng(0)
    view = View(size=(60, 80)).with_roi(mask_of((30, 90, 40, 120)))
    inside = view.inside()
    one, other = (
        decode_one(png(chance.integers(0, 256, (120, 160, 3), np.uint8)), view, Limits())[0] for _ in range(2)
    )
    assert (one[~inside] == other[~inside]).all()
    assert (one[inside] != other[inside]).any()


def test_a_region_that_is_empty_or_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="empty: paint white"):
        View().with_roi(mask_of((0, 0, 0, 0)))
    with pytest.raises(ConfigError, match="does not cover"):
        View(size=(60, 80), roi=(5, 5))
    with pytest.raises(ConfigError, match="does not cover"):
        View(size=(60, 80), roi=(-1, 4801))


def test_even_light_undoes_slow_changes():
    chance = np.random.default_rng(0)
    part = 100 + chance.normal(0, 12, (224, 224, 1)).repeat(3, axis=2)
    shades = (np.linspace(0.5, 1.6, 224)[None, :, None], np.linspace(1.2, 0.6, 224)[:, None, None], 0.7)
    view = View(even_light=True)
    seen = [decode_one(png((part * s).clip(0, 255).astype(np.uint8)), view, Limits())[0].astype(float) for s in shades]
    plain = [(part * s).clip(0, 255) for s in shades]
    for a, b, c, d in zip(seen, seen[1:], plain, plain[1:], strict=False):
        assert np.abs(a - b).mean() < 0.15 * np.abs(c - d).mean()


def test_even_light_keeps_a_defect():
    pixels = np.full((224, 224, 3), 120, np.uint8)
    pixels[100:110, 100:110] = 20
    seen = decode_one(png(pixels), View(even_light=True), Limits())[0].astype(float)
    assert seen[100:110, 100:110].mean() < 0.35 * seen[:50].mean()


@pytest.mark.parametrize("tiles", [(), (0,), (2, 1), (1, 1), (17,)])
def test_levels_that_are_none_are_refused(tiles):
    with pytest.raises(ConfigError, match="ascending"):
        View(tiles=tiles)


def test_a_tiled_view_decodes_the_finest_level():
    view = View(size=(64, 64), tiles=(1, 3))
    assert view.seen == (176, 176)
    assert decode_one(png(np.zeros((300, 300, 3), np.uint8)), view, Limits())[0].shape == (176, 176, 3)


@pytest.mark.parametrize("size", [(550, 550), (640, 480), (100, 150), (224, 224), (1, 1)])
def test_a_whole_picture_is_resized_as_pillow_does_to_two_grey_levels(size):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    picture = coarse.resize(size, Image.Resampling.BICUBIC)
    made = see(picture, (0.0, 0.0, *map(float, size)), (224, 224))
    expected = np.asarray(picture.resize((224, 224), Image.Resampling.BILINEAR))
    assert made.dtype == np.uint8
    assert made.shape == expected.shape
    apart = np.abs(made.astype(int) - expected)
    assert apart.max() <= 2
    assert (apart == 0).mean() > 0.97
