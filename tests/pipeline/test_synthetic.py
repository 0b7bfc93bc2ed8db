"""Drawn parts are ground truth: the same everywhere, and the mask is what changed."""

import hashlib
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline import synthetic
from pipeline.errors import ConfigError
from pipeline.synthetic import DEFECTS, PARTS, Change, defects_of, draw, encode, write_dataset

SPOILT = [(part, defect) for part in PARTS for defect in defects_of(part)]


def digest(part, defect):
    drawn = draw(part, seed=5, defect=defect, size=(96, 96))
    return hashlib.sha256(drawn.image.tobytes() + drawn.mask.tobytes()).hexdigest()


def test_a_seed_draws_the_same_picture_again_and_in_another_process():
    code = (
        "import hashlib; from pipeline.synthetic import PARTS, draw\n"
        "for part in PARTS:\n"
        "    d = draw(part, seed=5, defect='stain', size=(96, 96))\n"
        "    print(hashlib.sha256(d.image.tobytes() + d.mask.tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        other.stdout.split() == [digest(part, "stain") for part in PARTS] == [digest(part, "stain") for part in PARTS]
    )


@pytest.mark.parametrize(("part", "defect"), SPOILT)
def test_the_mask_is_what_changed_and_can_be_seen(part, defect):
    for seed in range(2):
        good, bad = draw(part, seed=seed), draw(part, seed=seed, defect=defect)
        assert (bad.part, bad.defect) == (part, defect)
        change = np.abs(bad.image.astype(int) - good.image.astype(int)).max(axis=-1)
        assert not change[~bad.mask].any(), "a pixel outside the mask changed"
        # The threshold is 10 levels without noise; shot noise grows with light, which moves a level or two.
        assert (change[bad.mask] >= 6).mean() > 0.999
        assert change[bad.mask].mean() > 12
        assert 0.0004 < bad.mask.mean() < 0.12


@pytest.mark.parametrize("part", PARTS)
def test_goods_differ_from_each_other_but_little(part):
    images = [draw(part, seed=seed).image.astype(int) for seed in range(6)]
    assert not any(draw(part, seed=seed).mask.any() for seed in range(2))
    gaps = [np.abs(a - b).mean() for k, a in enumerate(images) for b in images[:k]]
    assert min(gaps) > 2
    assert max(gaps) < 40
    assert all(10 < image.mean() < 200 for image in images)
    assert all((image == 255).mean() < 0.02 for image in images), "overexposed"


def test_seeds_put_a_defect_in_other_places():
    masks = [draw("cap", seed=seed, defect="stain", size=(128, 128)).mask for seed in range(6)]
    assert np.logical_or.reduce(masks).sum() > 1.8 * max(mask.sum() for mask in masks)


@pytest.mark.parametrize("size", [(96, 96), (128, 200), (201, 120), (400, 400)])
def test_any_size(size):
    drawn = draw("gear", seed=1, defect="chip", size=size)
    assert drawn.image.shape == (*size, 3)
    assert drawn.image.dtype == np.uint8
    assert drawn.mask.shape == size
    assert drawn.mask.dtype == np.bool_
    assert drawn.mask.any()


def test_the_names_are_known():
    assert len(PARTS) >= 3
    assert len(DEFECTS) >= 6
    assert set(DEFECTS) == {d for part in PARTS for d in defects_of(part)}


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="gear, cap, board"):
        draw("gaer", seed=0)
    with pytest.raises(ConfigError, match="gear, cap, board"):
        defects_of("gaer")
    with pytest.raises(ConfigError, match="there are scratch, crack"):
        draw("board", seed=0, defect="dent")
    with pytest.raises(ConfigError, match="-1"):
        draw("board", seed=-1)
    with pytest.raises(ConfigError, match="8"):
        draw("board", seed=0, size=(8, 8))


@pytest.mark.parametrize("name", ["PNG", "JPEG"])
def test_an_encoded_picture_decodes(name):
    image = draw("board", seed=0).image
    back = np.asarray(Image.open(io.BytesIO(encode(image, format=name))))
    assert np.abs(back.astype(int) - image).mean() < (0.001 if name == "PNG" else 4)


def test_a_dataset_has_the_layout_of_mvtec(tmp_path):
    write_dataset(tmp_path / "cap", "cap", goods=3, test_goods=2, defects_each=1, seed=4)
    pictures = {p.relative_to(tmp_path / "cap").as_posix() for p in tmp_path.rglob("*.png")}
    wanted = {f"train/good/{k:03d}.png" for k in range(3)} | {f"test/good/{k:03d}.png" for k in range(2)}
    for defect in synthetic.defects_of("cap"):
        wanted |= {f"test/{defect}/000.png", f"ground_truth/{defect}/000_mask.png"}
    assert pictures == wanted
    contents = {p.read_bytes() for p in tmp_path.rglob("*.png")}
    assert len(contents) == len(pictures), "two pictures are the same"
    mask = np.asarray(Image.open(tmp_path / "cap/ground_truth/stain/000_mask.png"))
    assert mask.shape == (256, 256)
    assert set(np.unique(mask)) == {0, 255}


@pytest.mark.parametrize("part", PARTS)
def test_a_small_picture_can_have_every_defect(part):
    for defect in defects_of(part):
        assert draw(part, seed=3, defect=defect, size=(64, 64)).mask.any(), defect


def test_a_station_that_has_changed_shows_the_same_parts_otherwise():
    plain = draw("cap", seed=2, size=(96, 96)).image.astype(int)
    darker, redder, softer, moved = (
        draw("cap", seed=2, size=(96, 96), change=change).image.astype(int)
        for change in (Change(lamp=0.8), Change(lot=(1.2, 1, 1)), Change(blur_px=2), Change(shift_px=7))
    )
    assert darker.mean() < plain.mean() - 5
    assert (redder - plain)[..., 0].mean() > 2 > abs((redder - plain)[..., 1].mean())
    assert np.abs(np.diff(softer, axis=0)).mean() < 0.7 * np.abs(np.diff(plain, axis=0)).mean()
    assert np.abs(moved[:, 3:] - plain[:, :-3]).mean() < 0.8 * np.abs(moved - plain).mean()


def test_a_defect_is_changed_with_its_part():
    change = Change(lamp=0.8, blur_px=1)
    good, bad = (draw("gear", seed=1, defect=d, size=(96, 96), change=change) for d in (None, "stain"))
    away = np.abs(good.image.astype(int) - bad.image.astype(int)).max(axis=-1)
    assert bad.mask.any()
    assert not away[~bad.mask].any()
