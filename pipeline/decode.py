"""The walk's first step: encoded frames to one batch of pixels. What cannot be read becomes a `Failure`.

Bytes from a camera topic are not trusted: the format is on a list, the size is read from the header and checked
before a pixel is decoded, and whatever a decoder raises is that one frame's failure.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline import nvjpeg
from pipeline.data import Failure, Frame, Images, Reason, Size
from pipeline.devices import CPU, beside, sent, staging
from pipeline.errors import DecodeError
from pipeline.view import View, see

# Our own limit is checked on each header, before decoding, and is a setting; Pillow's would only warn.
Image.MAX_IMAGE_PIXELS = None

Made = TypeVar("Made")

_ORIENTATION = 0x0112  # EXIF tag
_TURNED = {5, 6, 7, 8}  # orientations that swap width and height
_UPRIGHT = {None, 1}
_SAMPLINGS = {((1, 1),), *((luma, (1, 1), (1, 1)) for luma in ((1, 1), (2, 1), (2, 2), (1, 2), (4, 1), (4, 2)))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a picture may be. `max_pixels` counts width x height of the encoded picture."""

    max_pixels: int = 50_000_000
    formats: tuple[str, ...] = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model's pixels lie in the picture: x_image = x0 + (x + 0.5) * step_x, likewise y."""

    image_size: Size
    x0: float
    y0: float
    step_x: float
    step_y: float

    @classmethod
    def of(cls, image_size: Size, box: nvjpeg.Box, seen: Size) -> "Placement":
        """Of pixels (H, W) that a box of the picture became."""
        x0, y0, x1, y1 = box
        return cls(image_size, x0, y0, (x1 - x0) / seen[1], (y1 - y0) / seen[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What `decode` made of a batch.

    Attributes:
        images: (B, 3, H, W) of the readable frames, in their order, where the model runs; B may be 0.
        frame_ids: (B) their ids.
        placements: (B) where their pixels lie in the pictures.
        failures: the unreadable ones.
        shown: the same pictures on the host, where they are there already.
    """

    images: Images
    frame_ids: tuple[str, ...]
    placements: tuple[Placement, ...]
    failures: tuple[Failure, ...]
    shown: torch.Tensor | None = None


def decode(frames: Sequence[Frame], view: View, limits: Limits, device: torch.device = CPU) -> Decoded:
    """Decode a batch, keeping the order of what is readable.

    Args:
        frames: as they came.
        view: what is seen of them, and whether a GPU decodes them.
        limits: what is accepted as a picture.
        device: where the pixels go; to a GPU through memory that it reads by itself, beside what it does already.

    Raises:
        ConfigError: the view wants a GPU, and this is none.
    """
    if view.resized_by == "gpu":
        return _by_gpu(frames, view, limits, device)
    read = [_tried(lambda frame: decode_one(frame.image, view, limits), frame) for frame in frames]
    pixels = [each[0] for each in read if not isinstance(each, DecodeError)]
    batch = staging((len(pixels), *view.seen, 3), device)
    if pixels:
        np.stack(pixels, out=batch.numpy())
    shown = batch.permute(0, 3, 1, 2)
    answers = [each if isinstance(each, DecodeError) else each[1] for each in read]
    return _decoded(frames, answers, sent(shown, device), shown)


def _by_gpu(frames: Sequence[Frame], view: View, limits: Limits, device: torch.device) -> Decoded:
    nvjpeg.check(device)
    wholes = [_tried(lambda frame: _whole(frame.image, limits), frame) for frame in frames]
    with beside(device) as hand:
        read = nvjpeg.read(wholes, view, device)
        pixels = [each.pixels for each in read if not isinstance(each, DecodeError)]
        batch = torch.stack(pixels) if pixels else torch.empty((0, 3, *view.seen), dtype=torch.uint8, device=device)
        images = hand(nvjpeg.presented(batch, view))
    answers = [each if isinstance(each, DecodeError) else Placement.of(each.of, each.box, view.seen) for each in read]
    return _decoded(frames, answers, images)


def _decoded(
    frames: Sequence[Frame],
    answers: Sequence[Placement | DecodeError],
    images: torch.Tensor,
    shown: torch.Tensor | None = None,
) -> Decoded:
    """What became of each frame, and the pixels of those that have a placement."""
    ids, placements, failures = [], [], []
    for frame, answer in zip(frames, answers, strict=True):
        if isinstance(answer, DecodeError):
            failures.append(Failure(frame_id=frame.frame_id, reason=Reason.BAD_FRAME, detail=str(answer)))
        else:
            ids.append(frame.frame_id)
            placements.append(answer)
    return Decoded(
        images=Images(images),
        frame_ids=tuple(ids),
        placements=tuple(placements),
        failures=tuple(failures),
        shown=shown,
    )


def _tried(read: Callable[[Frame], Made], frame: Frame) -> Made | DecodeError:
    try:
        return read(frame)
    except DecodeError as error:
        return error


def decode_one(image: bytes, view: View, limits: Limits) -> tuple[NDArray[np.uint8], Placement]:
    """One encoded picture as (H, W, 3) uint8 of `view.seen`, upright.

    Raises:
        DecodeError: it is empty, truncated, of a format not listed, too large, or several pictures in one.
    """
    with _opened(image, limits) as picture:
        return _read(picture, view)


def _whole(image: bytes, limits: Limits) -> nvjpeg.Whole:
    """One encoded picture for a GPU, its header checked.

    Raises:
        DecodeError: as of `decode_one`.
    """
    with _opened(image, limits) as picture:
        pixels = picture.width * picture.height
        upright = picture.mode in {"RGB", "L"} and _orientation(picture) in _UPRIGHT
        if picture.format == "JPEG" and nvjpeg.decodes(image) and upright and _samplings(picture) in _SAMPLINGS:
            return nvjpeg.Whole(image, pixels)
        return nvjpeg.Whole(partial(_upright, image, limits), pixels)


def _samplings(jpeg: Image.Image) -> tuple[tuple[int, int], ...]:
    """How often each of its colours is sampled, across and down."""
    return tuple((each[1], each[2]) for each in getattr(jpeg, "layer", ()))


def _upright(image: bytes, limits: Limits) -> NDArray[np.uint8]:
    """(H, W, 3) of all of it."""
    with _opened(image, limits) as picture:
        ImageOps.exif_transpose(picture, in_place=True)
        return np.array(_to_rgb(picture))


@contextmanager
def _opened(image: bytes, limits: Limits) -> Iterator[Image.Image]:
    """An encoded picture, its header checked; whatever is raised inside is its own fault."""
    if not image:
        raise DecodeError("the frame is empty: 0 bytes where a picture is needed")
    try:
        with Image.open(io.BytesIO(image), formats=limits.formats) as picture:
            _check_header(picture, limits)
            yield picture
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(f"not a readable picture ({len(image)} bytes): {_plain(error)}") from error


def _check_header(picture: Image.Image, limits: Limits) -> None:
    width, height = picture.size
    if width * height > limits.max_pixels:
        raise DecodeError(f"the picture is {width}x{height} pixels; at most {limits.max_pixels} are allowed")
    # Not n_frames: Pillow counts a TIFF's directories in quadratic time, 10 s for a hostile 3 MB.
    if getattr(picture, "is_animated", False):
        raise DecodeError("the frame holds several pictures (animated or multi-page); 1 is needed")


def _read(picture: Image.Image, view: View) -> tuple[NDArray[np.uint8], Placement]:
    long_side = 2 * max(view.seen)
    turned = _orientation(picture) in _TURNED
    header: Size = picture.size if turned else (picture.height, picture.width)
    # JPEG only: the inverse DCT at a smaller scale, never below this.
    drafted = picture.draft(None, (long_side, long_side)) is not None
    ImageOps.exif_transpose(picture, in_place=True)
    # What is not drafted says its size itself, now that it is upright; a TIFF's header already gave it turned.
    image_size: Size = header if drafted else (picture.height, picture.width)
    colour = _to_rgb(picture)
    box = x0, y0, x1, y1 = view.box(image_size)
    shrink_x, shrink_y = colour.width / image_size[1], colour.height / image_size[0]
    pixels = see(colour, (x0 * shrink_x, y0 * shrink_y, x1 * shrink_x, y1 * shrink_y), view.seen)
    return view.present(pixels), Placement.of(image_size, box, view.seen)


def _orientation(picture: Image.Image) -> object:
    """What EXIF says of it, whatever that is."""
    return picture.getexif().get(_ORIENTATION)


def _to_rgb(picture: Image.Image) -> Image.Image:
    """RGB of any mode. 16 bits keep their upper 8; transparency is dropped, as a camera's has no meaning."""
    if picture.mode in {"I;16", "I;16L", "I;16B", "I;16N", "I"}:
        values = np.asarray(picture).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise DecodeError(f"32-bit picture with values up to {values.max()}; at most 16 bits are understood")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise DecodeError("floating-point picture: it has no agreed range; send 8 or 16 bits")
    picture.info.pop("transparency", None)  # a palette's makes Pillow warn
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _plain(error: Exception) -> str:
    """An error's words without addresses of objects, which would differ at each repeat."""
    return str(error).partition(" <_io.")[0][:200] or type(error).__name__
