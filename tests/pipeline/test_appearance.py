"""Numbers about a picture: each follows what it is named for, and is left alone by what it is not."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from pipeline.appearance import ALIGNMENT, PICTURE, SIDE, Registration, measure
from tests.benchmarks.drift import Change, picture


def numbers(change=None, part="board"):
    (seen,) = measure(pixels_of(picture(part, 3, change or Change())))
    return seen.numbers


def pixels_of(*images):
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def test_a_plain_picture_is_what_it_is():
    plain = torch.tensor([40, 80, 20], dtype=torch.uint8)[None, :, None, None].expand(2, 3, 50, 70)
    first, second = measure(plain)
    assert first.numbers == second.numbers
    assert first.numbers.keys() == set(PICTURE)
    assert first.numbers["exposure"] == pytest.approx(140 / 3)
    assert first.numbers["warmth"] == pytest.approx(20 / 61)
    assert first.numbers["tint"] == pytest.approx(100 / 221)
    assert first.numbers["sharpness"] == pytest.approx(0, abs=1e-6)
    assert first.thumbnail.shape == (SIDE, SIDE)
    assert first.thumbnail == pytest.approx(140 / 3, rel=1e-5)
    assert first.size == (50, 70)


def test_sharpness_is_the_steps_over_the_variance():
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    grey = image.astype(float).mean(axis=-1)
    steps = np.square(np.diff(grey, axis=0)).mean() + np.square(np.diff(grey, axis=1)).mean()
    assert measure(pixels_of(image))[0].numbers["sharpness"] == pytest.approx(steps / (grey.var(ddof=0) + 1), rel=1e-4)


def test_a_batch_is_measured_as_its_pictures_alone_and_left_as_it_was():
    pixels = pixels_of(*(picture("cap", seed) for seed in range(3)))
    kept = pixels.clone()
    together = measure(pixels)
    assert torch.equal(pixels, kept)
    for each, alone in zip(together, (measure(pixels[k : k + 1])[0] for k in range(3)), strict=True):
        assert each.numbers == alone.numbers
        assert np.array_equal(each.thumbnail, alone.thumbnail)


def test_the_lamp_moves_exposure_and_hardly_sharpness():
    new, old = numbers(), numbers(Change(lamp=0.8))
    assert old["exposure"] < 0.93 * new["exposure"]
    assert old["sharpness"] == pytest.approx(new["sharpness"], rel=0.1)


def test_a_blur_moves_sharpness_alone():
    sharp, soft = numbers(), numbers(Change(blur_px=0.8))
    assert soft["sharpness"] < 0.8 * sharp["sharpness"]
    assert soft["exposure"] == pytest.approx(sharp["exposure"], rel=0.01)


def test_a_lot_of_another_colour_moves_warmth_or_tint():
    plain = numbers()
    assert numbers(Change(lot=(1.2, 1.0, 1.0)))["warmth"] > plain["warmth"] + 0.005
    assert numbers(Change(lot=(1.0, 1.2, 1.0)))["tint"] > plain["tint"] + 0.005


@pytest.mark.parametrize("part", ["gear", "cap", "board"])
def test_registration_finds_small_shifts_and_turns(part):
    (reference,) = measure(pixels_of(picture(part, 3)))
    registration = Registration(reference.thumbnail, reference.size)

    def located(change):
        (seen,) = measure(pixels_of(picture(part, 3, change)))
        return registration.locate(seen.thumbnail)

    assert located(Change()) == pytest.approx(dict.fromkeys(ALIGNMENT, 0.0), abs=0.05)
    shifted = located(Change(shift_px=2))
    assert shifted["shift_x"] == pytest.approx(2, abs=0.7)
    assert abs(shifted["shift_y"]) < 0.5
    assert located(Change(shift_px=-2))["shift_x"] == pytest.approx(-2, abs=0.7)
    turned = located(Change(turn_deg=1))
    assert turned["turn"] == pytest.approx(1, abs=0.35)
    assert abs(located(Change(lamp=0.85))["shift_x"]) < 0.5


def test_registration_of_a_picture_that_is_not_square_is_in_its_pixels():
    rng = np.random.default_rng(1)
    smooth = ndimage.gaussian_filter(rng.normal(0, 1, (128, 256)), 8, mode="wrap")
    wide = np.clip(128 + 60 * smooth / smooth.std(), 0, 255)

    def seen(shift):
        moved = np.roll(wide, shift, axis=(0, 1)).round().astype(np.uint8)
        return measure(pixels_of(np.repeat(moved[..., None], 3, axis=-1)))[0]

    reference = seen((0, 0))
    located = Registration(reference.thumbnail, reference.size).locate(seen((-2, 3)).thumbnail)
    assert located["shift_x"] == pytest.approx(3, abs=0.5)
    assert located["shift_y"] == pytest.approx(-2, abs=0.5)


def test_a_reference_without_structure_gives_finite_numbers():
    located = Registration(np.full((SIDE, SIDE), 90.0), (224, 224)).locate(np.zeros((SIDE, SIDE), np.float32))
    assert all(math.isfinite(number) for number in located.values())
