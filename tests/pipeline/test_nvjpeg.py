"""Pictures that a GPU decodes, by the very same code on a CPU, where libjpeg is in nvJPEG's place."""

import io
import itertools
import random
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from pipeline import nvjpeg
from pipeline.backbone import resolve
from pipeline.commissioning import commission, recalibrate
from pipeline.data import Frame, Reason
from pipeline.decode import Limits, decode, decode_one
from pipeline.devices import CPU
from pipeline.errors import ArtifactError, ConfigError
from pipeline.inspection import Inspector, inspect_together
from pipeline.methods import make_config
from pipeline.refit import Golden, refit
from pipeline.synthetic import draw
from pipeline.view import View
from tests.pipeline.test_decode import TURN, encoded, mutated, scene

LIMITS = Limits()
GPU = View(size=(64, 64), resized_by="gpu")


@pytest.fixture
def as_a_gpu(monkeypatch):
    """Let the CPU decode as a GPU does."""
    monkeypatch.setattr(nvjpeg, "check", lambda device: None)


def view(**more):
    return View(**{"size": (64, 64), "resized_by": "gpu", **more})


def frames_of(*data):
    return [Frame(frame_id=f"f{k}", image=each) for k, each in enumerate(data)]


def seen(data, of=GPU, limits=LIMITS):
    """(H, W, 3), and where it lies."""
    decoded = decode(frames_of(data), of, limits)
    assert not decoded.failures, decoded.failures
    return decoded.images.pixels[0].permute(1, 2, 0).numpy(), decoded.placements[0]


def refused(data, limits=LIMITS):
    (failure,) = decode(frames_of(data), GPU, limits).failures
    assert failure.reason is Reason.BAD_FRAME
    return failure.detail


def noise(size=(128, 128)):
    return Image.effect_noise(size, 60).convert("RGB")


def header_of(jpeg):
    return jpeg[: jpeg.index(b"\xff\xda")]


@pytest.mark.usefixtures("as_a_gpu")
def test_a_jpeg_is_decoded_whole_and_resized_without_aliasing():
    data = encoded(noise((300, 200)), "JPEG", quality=95)
    pixels, placement = seen(data)
    whole = torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1).unsqueeze(0).float()
    truth = interpolate(whole, size=(64, 64), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    assert np.abs(pixels - truth).max() <= 0.5
    assert placement.image_size == (200, 300)
    assert (placement.x0, placement.step_x, placement.y0, placement.step_y) == (0, 300 / 64, 0, 200 / 64)


@pytest.mark.usefixtures("as_a_gpu")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_and_orientation_is_seen_as_the_cpu_sees_it(kind, orientation):
    stored = scene().transpose(TURN[orientation]) if orientation > 1 else scene()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, kind, **({} if kind == "BMP" else {"exif": exif}))
    pixels, placement = seen(data)
    theirs, truth = decode_one(data, View(size=(64, 64)), LIMITS)
    assert placement == truth
    assert np.abs(pixels.astype(int) - theirs).mean() < 3


@pytest.mark.usefixtures("as_a_gpu")
@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("1", "PNG"), ("L", "WEBP")]
)
def test_every_mode_is_seen_as_the_cpu_sees_it(mode, kind):
    data = encoded(scene().convert(mode), kind)
    assert np.abs(seen(data)[0].astype(int) - decode_one(data, View(size=(64, 64)), LIMITS)[0]).mean() < 3


@pytest.mark.usefixtures("as_a_gpu")
def test_progressive_and_subsampled_jpegs_are_jpegs():
    source = noise()
    for options in ({"progressive": True}, {"subsampling": 0}, {"subsampling": 2}, {"restart_marker_blocks": 4}):
        data = encoded(source, "JPEG", quality=95, **options)
        assert np.abs(seen(data)[0].astype(int) - decode_one(data, View(size=(64, 64)), LIMITS)[0]).mean() < 3


@pytest.mark.usefixtures("as_a_gpu")
@pytest.mark.parametrize(
    "more", [{"crop": True}, {"keep_aspect": True}, {"tiles": (1, 2)}, {"size": (96, 64)}], ids=str
)
@pytest.mark.parametrize("size", [(600, 400), (400, 600), (101, 97), (64, 64), (40, 50), (33, 80)])
def test_a_marker_is_found_where_it_was_painted(more, size):
    width, height = size
    x, y, r = round(width * 0.45), round(height * 0.55), max(2, min(size) // 20)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y - r : y + r, x - r : x + r] = 255
    made, p = seen(encoded(Image.fromarray(pixels), "JPEG", quality=95), view(**more))
    assert made.shape[:2] == view(**more).seen
    weight = made[..., 0] * (made[..., 0] > 60.0)
    rows, columns = np.indices(weight.shape)
    assert abs(p.x0 + (np.average(columns, weights=weight) + 0.5) * p.step_x - x) < max(1, p.step_x / 2)
    assert abs(p.y0 + (np.average(rows, weights=weight) + 0.5) * p.step_y - y) < max(1, p.step_y / 2)


@pytest.mark.usefixtures("as_a_gpu")
def test_the_whole_frame_unstretched_has_its_edges_repeated():
    pixels, _ = seen(encoded(noise((120, 60)), "PNG"), view(keep_aspect=True))
    theirs, _ = decode_one(encoded(noise((120, 60)), "PNG"), View(size=(64, 64), keep_aspect=True), LIMITS)
    assert pixels.shape == theirs.shape
    assert (pixels[:15] == pixels[16]).all()
    assert (pixels[49:] == pixels[47]).all()
    assert not (pixels[17] == pixels[16]).all()


@pytest.mark.usefixtures("as_a_gpu")
@pytest.mark.parametrize("even_light", [False, True])
def test_light_is_evened_and_what_is_outside_the_region_is_painted(even_light):
    mask = np.zeros((96, 160), np.uint8)
    mask[20:60, 30:90] = 255
    of = view(even_light=even_light).with_roi(Image.fromarray(mask))
    there = View(size=(64, 64), even_light=even_light).with_roi(Image.fromarray(mask))
    frames = frames_of(*(encoded(scene().rotate(angle), "JPEG", quality=95) for angle in (0, 90, 180)))
    ours, theirs = (decode(frames, each, LIMITS).images.pixels for each in (of, there))
    inside = torch.from_numpy(of.inside())
    assert ours.shape == (3, 3, 64, 64)
    assert (ours[..., ~inside] == 118).all()
    assert float((ours.float() - theirs.float()).abs().mean()) < 3
    assert ours[..., inside].float().std() > 20


@pytest.mark.usefixtures("as_a_gpu")
def test_no_readable_frame_is_an_empty_batch():
    for frames in ([], frames_of(b"x")):
        decoded = decode(frames, view(size=(48, 32), even_light=not frames), LIMITS)
        assert decoded.images.pixels.shape == (0, 3, 48, 32)
        assert len(decoded.failures) == len(frames)


@pytest.mark.usefixtures("as_a_gpu")
@pytest.mark.parametrize(
    ("at_once", "together"),
    [(1, [1, 1, 1]), (40 * 40 * 3, [2, 1]), (40 * 40 * 4, [2, 1]), (nvjpeg._PIXELS_AT_ONCE, [3])],
)
def test_order_is_kept_with_bad_frames_among_them_however_many_are_decoded_together(monkeypatch, at_once, together):
    monkeypatch.setattr(nvjpeg, "_PIXELS_AT_ONCE", at_once)
    parts = []
    real = nvjpeg._of_jpegs
    monkeypatch.setattr(nvjpeg, "_of_jpegs", lambda jpegs, device: parts.append(len(jpegs)) or real(jpegs, device))
    data = [encoded(Image.new("RGB", (40, 40), (30 * k, 0, 0)), ("JPEG", "PNG")[k % 2]) for k in range(8)]
    data[1], data[4] = b"", data[4][:-20]
    decoded = decode(frames_of(*data), GPU, LIMITS)
    assert decoded.frame_ids == ("f0", "f2", "f3", "f5", "f6", "f7")
    reds = decoded.images.pixels[:, 0, 0, 0]
    assert torch.allclose(reds.float(), torch.tensor([0.0, 60, 90, 150, 180, 210]), atol=2)
    assert len(decoded.placements) == 6
    assert [(f.frame_id, f.reason) for f in decoded.failures] == [("f1", Reason.BAD_FRAME), ("f4", Reason.BAD_FRAME)]
    assert [each for each in parts if each] == together


@pytest.mark.usefixtures("as_a_gpu")
def test_of_jpegs_decoded_together_the_damaged_one_alone_fails():
    good = encoded(noise(), "JPEG")
    at = good.index(b"\xff\xda")
    damaged = good[: at + 4] + b"\x07" + good[at + 5 :]  # as many components in the scan
    Image.open(io.BytesIO(damaged)).close()  # its header is fine
    decoded = decode(frames_of(good, damaged, good), GPU, LIMITS)
    assert decoded.frame_ids == ("f0", "f2")
    (failure,) = decoded.failures
    assert "not a readable picture" in failure.detail
    assert ".cpp" not in failure.detail
    assert len(failure.detail.rpartition(": ")[2]) > 5, "with why"


@pytest.mark.usefixtures("as_a_gpu")
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_jpeg_is_refused_whatever_the_decoder_makes_of_it(share, monkeypatch):
    data = encoded(noise(), "JPEG")
    monkeypatch.setattr(
        nvjpeg, "_of_jpegs", lambda jpegs, device: [torch.zeros(3, 128, 128, dtype=torch.uint8)] * len(jpegs)
    )
    assert not decode(frames_of(data), GPU, LIMITS).failures
    refused(data[: int(len(data) * share)])


@pytest.mark.usefixtures("as_a_gpu")
def test_the_end_of_a_thumbnail_is_not_the_end_of_its_picture(monkeypatch):
    monkeypatch.setattr(
        nvjpeg, "_of_jpegs", lambda jpegs, device: [torch.zeros(3, 128, 128, dtype=torch.uint8)] * len(jpegs)
    )
    thumbnail = encoded(noise((32, 32)), "JPEG")
    exif = b"Exif\x00\x00" + thumbnail
    data = encoded(noise(), "JPEG", comment=thumbnail)
    data = data[:2] + b"\xff\xe5" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    assert data.count(b"\xff\xd9") == 3
    seen(data)
    assert "the JPEG is truncated" in refused(data[:-2])
    assert "the JPEG is truncated" in refused(data[: len(data) // 2 + len(exif)])
    seen(data + b"\x00" * 100)  # cameras fill up their buffers


@pytest.mark.usefixtures("as_a_gpu")
def test_fill_bytes_and_markers_without_a_length_are_walked_over():
    data = encoded(noise(), "JPEG")
    truth = seen(data)[0]
    at = data.index(b"\xff\xdb")
    assert (seen(data[:at] + b"\xff" * 5 + data[at:])[0] == truth).all()
    assert nvjpeg.decodes(data[:at] + b"\xff\x01" + data[at:])
    assert "truncated" in refused((data[:at] + b"\xff" * 5 + data[at:])[:-2])


@pytest.mark.usefixtures("as_a_gpu")
def test_a_status_of_nvjpegs_that_is_a_pictures_fault_is_told_so(monkeypatch):
    real = nvjpeg._torchvisions()

    def failing(jpegs, device):
        if any(len(each) > 1000 for each in jpegs):
            raise RuntimeError("Error while decoding JPEG images: Failed to get image info: 3")
        return real(jpegs, device)

    monkeypatch.setattr(nvjpeg, "_torchvisions", lambda: failing)
    assert refused(encoded(noise(), "JPEG")).endswith("Failed to get image info: 3")


@pytest.mark.usefixtures("as_a_gpu")
def test_what_lies_between_segments_is_left_to_pillow(monkeypatch):
    asked = []
    real = nvjpeg._of_jpegs
    monkeypatch.setattr(nvjpeg, "_of_jpegs", lambda jpegs, device: asked.append(len(jpegs)) or real(jpegs, device))
    data = encoded(noise(), "JPEG")
    for marker in (b"\xff\xdb", b"\xff\xc0", b"\xff\xc4"):
        at = data.index(marker)
        junk = data[:at] + b"\x00\x17" + data[at:]
        assert not nvjpeg.decodes(junk)
        assert (seen(junk)[0] == seen(data)[0]).all()
        assert asked[-2:] == [0, 1]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [((1, 50_000_000), (64, 64)), ((50_000_000, 1), (1, 2)), ((7000, 7000), (32, 32)), ((9, 9), (9, 9))],
)
def test_no_step_of_the_filter_makes_one_of_more_than_sixteen(given, wanted):
    steps = nvjpeg._steps(given, wanted)
    assert steps[-1] == wanted
    for before, after in itertools.pairwise([given, *steps]):
        assert all(b <= 16 * a for b, a in zip(before, after, strict=True))
    assert len(steps) <= 7


@pytest.mark.usefixtures("as_a_gpu")
def test_a_jpeg_that_says_its_size_twice_is_refused(monkeypatch):
    monkeypatch.setattr(nvjpeg, "_of_jpegs", lambda jpegs, device: pytest.fail("decoded") if jpegs else [])
    data = encoded(scene(), "JPEG")
    at = data.index(b"\xff\xc0")
    length = int.from_bytes(data[at + 2 : at + 4], "big")
    second = data[at : at + 2 + length]
    huge = second[:5] + (65_000).to_bytes(2, "big") * 2 + second[9:]
    assert "2 sizes" in refused(data[:at] + huge + data[at:])


@pytest.mark.usefixtures("as_a_gpu")
@pytest.mark.parametrize("more", [{}, {"crop": True}, {"keep_aspect": True}], ids=str)
@pytest.mark.parametrize("size", [(1, 200), (200, 1), (1, 1), (2, 3000), (3000, 2)])
def test_very_thin_pictures_are_seen_where_they_are(more, size):
    ramp = np.linspace(20, 230, size[0] * size[1]).reshape(size[1], size[0])
    data = encoded(Image.fromarray(np.repeat(ramp[..., None], 3, axis=2).astype(np.uint8)), "PNG")
    pixels, placement = seen(data, view(**more))
    theirs, truth = decode_one(data, View(size=(64, 64), **more), LIMITS)
    assert placement.step_x > 0
    assert placement.step_y > 0
    assert placement.image_size == truth.image_size
    assert np.abs(pixels.astype(int) - theirs).mean() < (40 if "crop" in more else 3)


@pytest.mark.usefixtures("as_a_gpu")
def test_a_very_large_picture_is_filtered_in_steps_that_a_gpu_has_memory_for(monkeypatch):
    asked = []
    real = nvjpeg.functional.interpolate

    def interpolate(values, size, **more):
        asked.append((tuple(values.shape[2:]), tuple(size)))
        return real(values, size=size, **more)

    monkeypatch.setattr(nvjpeg.functional, "interpolate", interpolate)
    for shape in ((3000, 6400), (40, 42000), (64, 64), (1024, 1024)):
        data = encoded(scene().resize(shape[::-1]), "PNG")
        pixels, _ = seen(data)
        steps = len(asked)
        assert np.abs(pixels.astype(int) - decode_one(data, View(size=(64, 64)), LIMITS)[0]).mean() < 3
        del asked[steps:]  # the CPU's own
    for (h, w), (to_h, to_w) in asked:  # torch's own sum for a block of 32 x 1 threads, at most 12,288 floats
        assert 32 * (2 * -(-w // to_w) + 1) + 33 * (2 * -(-h // to_h) + 1) <= 12_288
    assert len(asked) == 7


@pytest.mark.usefixtures("as_a_gpu")
def test_of_pictures_that_are_no_jpegs_few_are_in_memory_at_a_time(monkeypatch):
    monkeypatch.setattr(nvjpeg, "_PIXELS_AT_ONCE", 2 * 1500 * 1500)
    data = encoded(Image.new("RGB", (1500, 1500)), "PNG")
    tracemalloc.start()
    assert len(decode(frames_of(*[data] * 9), GPU, LIMITS).frame_ids) == 9
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4.5 * 1500 * 1500 * 3


@pytest.mark.usefixtures("as_a_gpu")
def test_pictures_of_one_size_are_resized_together_each_to_what_it_is_alone(monkeypatch):
    together = []
    real = nvjpeg._seen
    monkeypatch.setattr(nvjpeg, "_seen", lambda pictures, of: together.append(len(pictures)) or real(pictures, of))
    sizes = [(160, 96), (96, 160), (160, 96), (50, 50), (160, 96)]
    data = [encoded(noise(size), "JPEG") for size in sizes]
    made = decode(frames_of(*data), GPU, LIMITS)
    assert sorted(together) == [1, 1, 3]
    for k, each in enumerate(data):
        alone, placement = seen(each)
        assert (made.images.pixels[k].permute(1, 2, 0).numpy() == alone).all()
        assert made.placements[k] == placement
        assert placement.image_size == sizes[k][::-1]


@pytest.mark.usefixtures("as_a_gpu")
def test_what_nvjpeg_does_not_decode_pillow_does(monkeypatch):
    asked = []
    real = nvjpeg._of_jpegs
    monkeypatch.setattr(nvjpeg, "_of_jpegs", lambda jpegs, device: asked.append(len(jpegs)) or real(jpegs, device))
    exif = Image.Exif()
    for orientation, whose in ((1, 1), (6, 0)):
        exif[0x0112] = orientation
        seen(encoded(scene(), "JPEG", exif=exif))
        assert asked.pop() == whose
    seen(encoded(scene().convert("CMYK"), "JPEG"))
    assert asked.pop() == 0
    seen(encoded(scene().convert("L"), "JPEG"))
    assert asked.pop() == 1
    plain = encoded(scene(), "JPEG")
    at = plain.index(b"\xff\xc0")
    assert not nvjpeg.decodes(plain[: at + 1] + b"\xc9" + plain[at + 2 :]), "arithmetic coding"
    odd = bytearray(plain)
    odd[at + 11] = 0x33  # the first colour's samples: three by three
    decode(frames_of(bytes(odd)), GPU, LIMITS)
    assert asked.pop() == 0


@pytest.mark.usefixtures("as_a_gpu")
@pytest.mark.parametrize("size", [(101, 97), (450, 333)])
def test_a_crop_is_of_whole_pixels(size):
    data = encoded(noise(size), "JPEG", quality=95)
    pixels, placement = seen(data, view(crop=True))
    x0, y0, x1, y1 = (round(each) for each in View(size=(64, 64), crop=True).box(size[::-1]))
    assert (placement.x0, placement.y0) == (x0, y0)
    assert (placement.step_x, placement.step_y) == ((x1 - x0) / 64, (y1 - y0) / 64)
    whole = torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1)
    cut = whole[:, y0:y1, x0:x1].unsqueeze(0).float()
    truth = interpolate(cut, size=(64, 64), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    assert np.abs(pixels - truth).max() <= 0.5


@pytest.mark.usefixtures("as_a_gpu")
def test_headers_of_any_length_end_the_walk_over_them():
    start = header_of(encoded(noise(), "JPEG"))
    for tail in (b"", b"\xff", b"\xff\xe1", b"\xff\xe1\x00", b"\xff\xe1\x00\x00" * 5, b"\xff\xe1\xff\xff", b"\xff" * 9):
        assert "picture" in refused(start + tail)


@pytest.mark.usefixtures("as_a_gpu")
def test_limits_are_checked_before_a_pixel_is_decoded(monkeypatch):
    monkeypatch.setattr(nvjpeg, "_of_jpegs", lambda jpegs, device: pytest.fail("decoded") if jpegs else [])
    assert "at most 15359" in refused(encoded(scene(), "JPEG"), Limits(max_pixels=160 * 96 - 1))
    assert "not a readable picture" in refused(encoded(scene(), "JPEG"), Limits(formats=("PNG",)))


@pytest.mark.usefixtures("as_a_gpu")
def test_a_picture_that_is_not_as_large_as_its_header_says_is_refused(monkeypatch):
    monkeypatch.setattr(nvjpeg, "_of_jpegs", lambda jpegs, device: [torch.zeros(3, 9, 9, dtype=torch.uint8)])
    assert "(3, 9, 9)" in refused(encoded(scene(), "JPEG"))


@pytest.mark.usefixtures("as_a_gpu")
@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_a_gpu_without_memory_is_no_pictures_fault(monkeypatch, kind):
    def full(jpegs, device):
        raise kind("for some reason")

    monkeypatch.setattr(nvjpeg, "_torchvisions", lambda: full)
    with pytest.raises(kind):
        decode(frames_of(encoded(scene(), "JPEG")), GPU, LIMITS)


@pytest.mark.usefixtures("as_a_gpu")
@pytest.mark.parametrize(
    "words",
    [
        "Error while decoding JPEG images: CUDA out of memory. Tried to allocate",
        "CUDA error: an illegal address",
        "Failed to initialize nvjpeg: 1",
        "Error while decoding JPEG images: Failed to get image info: 5",
    ],
)
def test_nor_where_torchvision_hides_it_in_its_own_words(monkeypatch, words):
    def failing(jpegs, device):
        raise RuntimeError(words)

    monkeypatch.setattr(nvjpeg, "_torchvisions", lambda: failing)
    with pytest.raises(RuntimeError, match=words[:20]):
        decode(frames_of(encoded(scene(), "JPEG"), encoded(scene(), "JPEG")), GPU, LIMITS)


def test_where_not_even_a_good_picture_is_decoded_the_device_is_at_fault(monkeypatch):
    def failing(jpegs, device):
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support")

    nvjpeg._tried.cache_clear()
    nvjpeg._tried(CPU)
    nvjpeg._tried.cache_clear()
    monkeypatch.setattr(nvjpeg, "_torchvisions", lambda: failing)
    with pytest.raises(ConfigError, match=r"decodes no JPEG on cpu: .*nvJPEG"):
        nvjpeg._tried(CPU)


@pytest.mark.usefixtures("as_a_gpu")
def test_a_model_whose_pictures_cannot_be_decoded_now_does_not_harm_its_neighbours(monkeypatch):
    net = resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())
    config = make_config("patchcore", {"coreset": 0.05})
    given = {"method": "patchcore", "config": config, "backbone": net, "limits": LIMITS, "rate": 0.1}
    one, other = (
        Inspector.load(commission(goods(12), view=of, **given).inspector.save(), open_backbone=same(net), limits=LIMITS)
        for of in (GPU, View(size=(64, 64)))
    )

    def full(jpegs, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(nvjpeg, "_torchvisions", lambda: full)
    first, second = inspect_together([(one, goods(2, first=50)), (other, goods(2, first=50))])
    assert isinstance(first, torch.OutOfMemoryError)
    assert len(second.verdicts) == 2


@pytest.mark.usefixtures("as_a_gpu")
def test_what_is_under_way_is_waited_for_before_each_decoding(monkeypatch):
    """Torchvision writes into memory that this stream may still read."""
    told = []
    real = nvjpeg._torchvisions()
    monkeypatch.setattr(nvjpeg, "wait_for", lambda device: told.append("waited"))
    monkeypatch.setattr(nvjpeg, "_torchvisions", lambda: lambda *given: told.append("decoded") or real(*given))
    monkeypatch.setattr(nvjpeg, "_PIXELS_AT_ONCE", 1)
    decode(frames_of(*[encoded(scene(), "JPEG")] * 3), GPU, LIMITS)
    assert told == ["waited", "decoded"] * 3


@pytest.mark.usefixtures("as_a_gpu")
def test_a_torchvision_that_decodes_no_more_says_what_to_do(monkeypatch):
    monkeypatch.delattr("torchvision.io.decode_jpeg")
    with pytest.raises(ConfigError, match="install an older one"):
        decode(frames_of(encoded(scene(), "JPEG")), GPU, LIMITS)


@pytest.mark.usefixtures("as_a_gpu")
# Pillow warns of some damage; here, as in a worker, that must be neither an error nor a crash.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_300_mutated_jpegs_raise_nothing_and_leave_their_neighbours_alone():
    good = encoded(noise((160, 96)), "JPEG")
    truth = seen(good)[0]
    failed = 0
    for data in mutated(good, 300, random.Random(0)):
        decoded = decode(frames_of(good, data, good), GPU, Limits(max_pixels=1_000_000))
        failed += len(decoded.failures)
        assert {"f0", "f2"} <= set(decoded.frame_ids)
        assert (decoded.images.pixels[[0, -1]].permute(0, 2, 3, 1).numpy() == truth).all()
    assert 0 < failed < 300


def test_a_cpu_decodes_nothing_for_a_model_that_wants_a_gpu():
    with pytest.raises(ConfigError, match="give it a GPU"):
        decode(frames_of(encoded(scene(), "JPEG")), GPU, LIMITS)


def goods(count, first=0):
    drawn = [draw("cap", seed=first + k, size=(96, 96)).image for k in range(count)]
    return [
        Frame(frame_id=str(first + k), image=encoded(Image.fromarray(image), "JPEG", quality=95))
        for k, image in enumerate(drawn)
    ]


def same(net):
    return lambda spec: net.on(spec.engine, spec.cuts)


def test_a_model_is_fitted_saved_refitted_and_calibrated_with_the_pixels_that_it_decides_about(monkeypatch):
    net = resolve("goldline-s", ("layer2", "layer3"), weights=None, factories=())
    config = make_config("patchcore", {"coreset": 0.05})
    given = {"method": "patchcore", "config": config, "view": GPU, "backbone": net, "limits": LIMITS, "rate": 0.1}
    with pytest.raises(ConfigError, match="give it a GPU"):
        commission(goods(12), **given)
    with monkeypatch.context() as patched:
        patched.setattr(nvjpeg, "check", lambda device: None)
        made = commission(goods(12), **given).inspector
        frames = [*goods(3, first=100), Frame(frame_id="bad", image=b"x")]
        ours = made.inspect(frames)
        assert [each.frame_id for each in ours.failures] == ["bad"]
        again = Inspector.load(made.save(), open_backbone=same(net), limits=LIMITS)
        assert again.view == GPU
        assert again.inspect(frames).verdicts == ours.verdicts
        (first, second) = inspect_together([(made, frames), (again, frames)])
        assert first.verdicts == second.verdicts == ours.verdicts
        for frame in frames[:3]:
            assert torch.equal(ours.pixels[frame.frame_id], decode([frame], GPU, LIMITS).images.pixels[0])
        assert len(recalibrate(made, goods(8, first=200), rate=0.1).calibrated_on) == 8
        grown = refit(made, goods(40, first=300), Golden(goods=tuple(goods(20, first=400)), defects=()), backbone=net)
        assert not grown.unreadable
        stored = made.save()
    with pytest.raises(ArtifactError, match="give it a GPU"):
        Inspector.load(stored, open_backbone=same(net), limits=LIMITS)
    with pytest.raises(ConfigError, match="give it a GPU"):
        made.inspect(frames)
