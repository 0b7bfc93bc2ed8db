"""Maps as pictures that can be turned back into maps."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from pipeline.heatmap import encode, encode_picture, overlay


def back(heatmap):
    with Image.open(io.BytesIO(heatmap.png)) as picture:
        assert (picture.format, picture.mode) == ("PNG", "L")
        return heatmap.low + np.asarray(picture) / 255 * (heatmap.high - heatmap.low)


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1e-6, 5), (1e6, -3e5), (1, 1e4)])
def test_a_heatmap_decodes_to_its_map_within_a_255th_of_its_range(scale, offset):
    m = (np.random.default_rng(0).normal(size=(48, 80)) * scale + offset).astype(np.float32)
    heatmap = encode(m)
    assert (heatmap.low, heatmap.high) == (m.min(), m.max())
    assert back(heatmap).shape == (48, 80)
    assert np.abs(back(heatmap) - m).max() <= (heatmap.high - heatmap.low) / 255


@pytest.mark.parametrize("value", [0.0, 3.5, -1e9])
def test_a_constant_map_is_itself(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heatmap = encode(np.full((32, 32), value, np.float32))
    assert heatmap.low == heatmap.high == value
    assert (back(heatmap) == value).all()


def test_an_overlay_leaves_the_picture_alone_below_low():
    picture = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    m = np.full((40, 60), 1.0, np.float32)
    m[10:20, 10:20] = 3.0
    before = picture.copy(), m.copy()
    shown = overlay(picture, m, low=1.0, high=3.0, strength=1.0)
    assert shown.shape == (40, 60, 3)
    assert shown.dtype == np.uint8
    assert (shown[m <= 1.0] == picture[m <= 1.0]).all()
    assert (shown[10:20, 10:20] == (255, 235, 120)).all()  # the top of the scale
    assert (picture == before[0]).all()
    assert (m == before[1]).all()


def test_scores_beyond_the_ends_are_the_ends():
    picture = np.zeros((1, 2, 3), np.uint8)
    ends = overlay(picture, np.array([[0.0, 1.0]], np.float32), low=0, high=1)
    beyond = overlay(picture, np.array([[-9.0, 9.0]], np.float32), low=0, high=1)
    assert (ends == beyond).all()


def test_strength_0_shows_the_picture():
    picture = np.random.default_rng(2).integers(0, 256, (8, 8, 3), np.uint8)
    m = np.random.default_rng(2).random((8, 8)).astype(np.float32)
    assert (overlay(picture, m, low=0, high=1, strength=0) == picture).all()


def test_a_picture_is_kept_exactly():
    picture = np.random.default_rng(3).integers(0, 256, (20, 30, 3), np.uint8)
    with Image.open(io.BytesIO(encode_picture(picture))) as again:
        assert (np.asarray(again) == picture).all()
