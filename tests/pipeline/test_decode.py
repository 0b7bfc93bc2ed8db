"""Any bytes at all: a picture upright and placed, or one frame's failure."""

import io
import random
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.data import Frame, Reason
from pipeline.decode import Limits, decode, decode_one
from pipeline.errors import ConfigError, DecodeError
from pipeline.view import View

WHOLE = View(size=(64, 64))
LIMITS = Limits()
TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def scene(width=160, height=96):
    """Four colours in four corners: it looks different each way up."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (220, 30, 30)
    pixels[: height // 2, width // 2 :] = (30, 200, 30)
    pixels[height // 2 :, : width // 2] = (30, 30, 220)
    pixels[height // 2 :, width // 2 :] = (230, 230, 230)
    return Image.fromarray(pixels)


def encoded(picture, kind, **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def read(data, view=WHOLE, limits=LIMITS):
    return decode_one(data, view, limits)


def refused(data, limits=LIMITS):
    with pytest.raises(DecodeError) as caught:
        decode_one(data, WHOLE, limits)
    assert " at 0x" not in str(caught.value), "an object's address would differ at each repeat"
    return str(caught.value)


def png(*chunks):
    out = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        out += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return out


def close(a, b, within=6):
    return float(np.abs(a.astype(float) - b.astype(float)).mean()) < within


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_each_format_is_read(kind):
    pixels, placement = read(encoded(scene(), kind))
    assert pixels.shape == (64, 64, 3)
    assert pixels.dtype == np.uint8
    assert placement.image_size == (96, 160)
    assert close(pixels, np.asarray(scene().resize((64, 64), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "PNG"), ("L", "JPEG"), ("RGBA", "PNG"), ("LA", "PNG"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("P", "PNG")],
)
def test_each_mode_becomes_rgb(mode, kind):
    source = scene().convert(mode)
    pixels, _ = read(encoded(source, kind))
    assert close(pixels, np.asarray(source.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)), within=10)


def test_a_palette_with_transparency_is_read_without_a_warning():
    source = scene().convert("P", palette=Image.Palette.ADAPTIVE)
    pixels, _ = read(encoded(source, "PNG", transparency=bytes([0, 100, 255])))
    assert close(pixels, np.asarray(source.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_upper_8(kind):
    pixels, _ = read(encoded(Image.fromarray(np.full((64, 64), 0xAB12, np.uint16)), kind))
    assert (pixels == 0xAB).all()


def test_1_bit_is_black_and_white():
    pixels, _ = read(encoded(Image.fromarray(np.eye(64) > 0), "PNG"))
    assert (pixels == (np.eye(64) * 255)[..., None]).all()


def test_floating_point_and_32_bit_values_are_refused():
    assert "floating-point" in refused(encoded(Image.fromarray(np.zeros((64, 64), np.float32)), "TIFF"))
    assert "70000" in refused(encoded(Image.fromarray(np.full((64, 64), 70_000, np.int32)), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_ends_upright_in_the_size_a_person_sees(kind, orientation):
    stored = scene().transpose(TURN[orientation]) if orientation > 1 else scene()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, kind, exif=exif)
    with Image.open(io.BytesIO(data)) as picture:  # the picture is what we think it is
        assert ImageOps.exif_transpose(picture).size == (160, 96)
    pixels, placement = read(data)
    assert placement.image_size == (96, 160)
    assert (placement.step_x, placement.step_y) == (160 / 64, 96 / 64)
    assert close(pixels, np.asarray(scene().resize((64, 64), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"not a picture", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM"])
def test_what_is_no_picture_is_refused(data):
    assert str(len(data)) in refused(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_truncated_picture_is_refused(kind, share):
    data = encoded(Image.effect_noise((128, 128), 60).convert("RGB"), kind)
    refused(data[: int(len(data) * share)])


def test_a_format_not_listed_is_refused():
    refused(encoded(scene(), "GIF"))
    refused(encoded(scene(), "PNG"), Limits(formats=("JPEG",)))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_pictures_in_one_frame_are_refused(kind):
    other = ImageOps.mirror(scene())
    data = encoded(scene(), kind, save_all=True, append_images=[other])
    assert kind == "GIF" or "several pictures" in refused(data)
    refused(data)


def test_a_tiff_of_very_many_pages_is_refused_at_once():
    first = encoded(Image.new("L", (8, 8)), "TIFF")
    (at,) = struct.unpack_from("<I", first, 4)
    (entries,) = struct.unpack_from("<H", first, at)
    directory = first[at : at + 2 + 12 * entries]
    data = bytearray(first)
    data[at + len(directory) : at + len(directory) + 4] = struct.pack("<I", len(data))
    for _ in range(20_000):
        data += directory + struct.pack("<I", len(data) + len(directory) + 4)
    started = time.perf_counter()
    assert "several pictures" in refused(bytes(data))
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("bits", [8, 16])
def test_a_header_that_claims_too_much_is_refused_before_a_pixel_is_allocated(bits):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, bits, 2, 0, 0, 0)
    data = png((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    tracemalloc.start()
    try:
        assert "60000x60000" in refused(data)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_max_pixels_is_a_setting_and_inclusive():
    data = encoded(scene(), "JPEG")
    read(data, limits=Limits(max_pixels=160 * 96))
    assert "at most 15359" in refused(data, Limits(max_pixels=160 * 96 - 1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("size", [(600, 400), (400, 600), (101, 97), (64, 64), (40, 50)])
def test_a_marker_is_found_where_it_was_painted(kind, crop, size):
    width, height = size
    x, y, r = round(width * 0.4), round(height * 0.6), max(2, min(size) // 20)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y - r : y + r, x - r : x + r] = 255
    seen, p = read(
        encoded(Image.fromarray(pixels), kind, **({"quality": 95} if kind == "JPEG" else {})),
        View(size=(96, 64), crop=crop),
    )
    weight = seen[..., 0] * (seen[..., 0] > 60.0)
    rows, columns = np.indices(weight.shape)
    found_x = p.x0 + (np.average(columns, weights=weight) + 0.5) * p.step_x
    found_y = p.y0 + (np.average(rows, weights=weight) + 0.5) * p.step_y
    assert abs(found_x - x) < max(1, p.step_x / 2)
    assert abs(found_y - y) < max(1, p.step_y / 2)


def test_a_crop_sees_the_papers_centre_and_keeps_the_aspect():
    _, whole = read(encoded(scene(512, 256), "PNG"), View(size=(224, 224)))
    assert (whole.x0, whole.y0, whole.step_x, whole.step_y) == (0, 0, 512 / 224, 256 / 224)
    _, crop = read(encoded(scene(512, 256), "PNG"), View(size=(224, 224), crop=True))
    assert crop.step_x == pytest.approx(1.0)  # the short side is 256 already
    assert (crop.x0, crop.y0, crop.step_y) == pytest.approx((144, 16, 1.0))


def test_a_12_megapixel_jpeg_is_drafted_and_still_placed_by_its_own_size():
    big = scene(500, 375).resize((4000, 3000), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(big, "JPEG", exif=exif, quality=80)
    tracemalloc.start()
    pixels, placement = read(data, View(size=(64, 64)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000
    assert placement.image_size == (4000, 3000)
    assert (placement.step_x, placement.step_y) == (3000 / 64, 4000 / 64)
    upright = scene(500, 375).transpose(Image.Transpose.ROTATE_270).resize((64, 64), Image.Resampling.BILINEAR)
    assert close(pixels, np.asarray(upright))


def test_order_is_kept_with_bad_frames_among_them():
    data = [encoded(Image.new("RGB", (40, 40), (40 * k, 0, 0)), "PNG") for k in range(6)]
    data[1], data[4] = b"", data[4][:30]
    decoded = decode([Frame(frame_id=f"f{k}", image=d) for k, d in enumerate(data)], WHOLE, LIMITS)
    assert decoded.frame_ids == ("f0", "f2", "f3", "f5")
    assert decoded.images.pixels[:, 0, 0, 0].tolist() == [0, 80, 120, 200]
    assert len(decoded.placements) == 4
    assert [(f.frame_id, f.reason) for f in decoded.failures] == [("f1", Reason.BAD_FRAME), ("f4", Reason.BAD_FRAME)]


def test_no_readable_frame_is_an_empty_batch():
    for frames in ([], [Frame(frame_id="a", image=b"x")]):
        decoded = decode(frames, View(size=(48, 32)), LIMITS)
        assert decoded.images.pixels.shape == (0, 3, 48, 32)
        assert len(decoded.failures) == len(frames)


@pytest.mark.parametrize("size", [(31, 64), (64, 4097), (0, 64)])
def test_a_view_has_a_sensible_size(size):
    with pytest.raises(ConfigError, match="32 to 4096"):
        View(size=size)


def mutated(good, count, rng):
    """The same bytes, some of them others, some cut off, some with bytes between."""
    for seed in range(count):
        data = bytearray(good)
        for _ in range(1 + seed % 8):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if seed % 5 == 0:
            del data[rng.randrange(len(data)) :]
        if seed % 7 == 0:
            at = rng.randrange(len(data) + 1)
            data[at:at] = rng.randbytes(rng.randrange(40))
        yield bytes(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
# Pillow warns of some damage; here, as in a worker, that must be neither an error nor a crash.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_300_mutated_pictures_raise_nothing_but_decode_errors(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    good = encoded(scene(), kind, exif=exif)
    read_at_all = 0
    for data in mutated(good, 300, random.Random(kind)):
        try:
            pixels, _ = read(data, limits=Limits(max_pixels=1_000_000))
        except DecodeError:
            continue
        assert pixels.shape == (64, 64, 3)
        read_at_all += 1
    assert read_at_all < 300


@pytest.mark.parametrize("size", [(60, 120), (120, 60), (90, 90), (1, 200)])
def test_a_frame_that_keeps_its_aspect_is_seen_whole_and_unstretched(size):
    height, width = size
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, :, 0] = np.linspace(40, 200, width).astype(np.uint8)
    picture[:, :, 1] = np.linspace(40, 200, height).astype(np.uint8)[:, None]
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    view = View(size=(96, 96), keep_aspect=True)
    seen, placement = decode_one(out.getvalue(), view, Limits())
    assert seen.shape == (96, 96, 3)
    assert placement.step_x == placement.step_y == max(size) / 96
    rows, columns = (round(side / max(size) * 96) for side in size)
    top, left = (96 - max(rows, 1)) // 2, (96 - columns) // 2
    if rows < 96:
        assert np.array_equal(seen[: max(top - 1, 0)], np.repeat(seen[:1], max(top - 1, 0), axis=0)), "the edge repeats"
    if columns < 96:
        assert np.array_equal(seen[:, : left - 1], np.repeat(seen[:, :1], left - 1, axis=1))
    # A pixel of the model lies where its placement says.
    y, x = 48, 48
    there_y, there_x = (
        int(placement.y0 + (y + 0.5) * placement.step_y),
        int(placement.x0 + (x + 0.5) * placement.step_x),
    )
    there = picture[min(there_y, height - 1), min(there_x, width - 1)].astype(int)
    assert abs(seen[y, x].astype(int) - there).max() <= 8


def test_a_crop_cannot_keep_the_aspect_as_well():
    with pytest.raises(ConfigError, match="exclude each other"):
        View(crop=True, keep_aspect=True)
