"""Pictures decoded and resized on a GPU: nvJPEG, behind torchvision, and torch's filter.

JPEGs of one or three channels that are not turned by EXIF are decoded there; whatever else a picture is, Pillow decodes
it, and it is resized there. Which of both depends on the picture alone, so that a model always sees it alike.

On a CPU the very same code has libjpeg in nvJPEG's place: that is how it is tested, and no model runs so.
"""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from pipeline.data import Size
from pipeline.devices import wait_for
from pipeline.errors import ConfigError, DecodeError
from pipeline.view import PAINT, View, laid

Box: TypeAlias = tuple[float, float, float, float]
"""(x0, y0, x1, y1), in pixels of the picture."""

_CHANNELS = 3
_PIXELS_AT_ONCE = 32_000_000  # that are decoded together: 100 MB of a GPU's memory, and six times that to resize them
_FILTER_MAX = 16  # pixels a side that become one in one step: CUDA's filter has no shared memory for many more
_SCAN, _END, _FILL = 0xDA, b"\xff\xd9", 0xFF
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers that say the picture's size
_OF_THE_DEVICE = "156789"  # of nvJPEG's statuses: not initialised, no memory, failed execution and the like
_DECODED = frozenset({0xC0, 0xC1, 0xC2})


@dataclass(frozen=True, slots=True)
class Whole:
    """A picture whose header was checked.

    Attributes:
        data: the JPEG; or what gives anything else as (H, W, 3) uint8, upright, or raises a DecodeError.
        pixels: how many it has.
    """

    data: bytes | Callable[[], NDArray[np.uint8]]
    pixels: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What a view has of a picture.

    Attributes:
        pixels: (3, *view.seen) uint8, on the device.
        box: where they lie in the picture.
        of: (H, W) of the picture.
    """

    pixels: Tensor
    box: Box
    of: Size


def check(device: torch.device) -> None:
    """Refuse a device that does not decode; one that does has decoded a picture afterwards, and is ready.

    Raises:
        ConfigError: it is not a GPU, or torchvision decodes nothing there.
    """
    if device.type != "cuda":
        raise ConfigError(
            f"pictures are to be decoded on a GPU, and the model runs on {device.type}: give it a GPU (--device cuda, "
            "[worker] device), or fit one whose pictures the CPU decodes"
        )
    _tried(device)


@cache
def _tried(device: torch.device) -> None:
    """Raises: ConfigError: it does not decode a picture that is all right."""
    try:
        _of_jpegs([_good()], device)
    except RuntimeError as error:
        if _has_no_memory(error):
            raise
        raise ConfigError(f"this torchvision decodes no JPEG on {device}: {_plain(error)}") from error


@cache
def _good() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "JPEG")
    return out.getvalue()


def decodes(jpeg: bytes) -> bool:
    """Whether nvJPEG decodes this kind: baseline, extended and progressive, with nothing between its segments.

    Of several sizes decoders take the one or the other, and of what is truncated nvJPEG makes up the rest. Headers,
    which may hold a small picture with an end of its own, are walked over; in a scan nothing looks like it.

    Raises:
        DecodeError: it says its size twice, or its scans do not end.
    """
    at = 2
    sizes: list[int] = []
    while jpeg[at : at + 1] == b"\xff" and at + 1 < len(jpeg) and jpeg[at + 1] != _SCAN:
        marker = jpeg[at + 1]
        sizes += [marker] if marker in _FRAMES else []
        if marker == _FILL:
            at += 1
        elif marker in _ALONE:
            at += 2
        else:
            at += 2 + max(2, int.from_bytes(jpeg[at + 2 : at + 4], "big"))  # the length counts itself
    if jpeg[at : at + 1] != b"\xff":
        return False
    if len(sizes) != 1 or jpeg.find(_END, at) < 0:
        why = "the JPEG is truncated" if len(sizes) == 1 else f"the JPEG has {len(sizes)} sizes"
        raise DecodeError(f"not a readable picture ({len(jpeg)} bytes): {why}")
    return sizes[0] in _DECODED


@torch.inference_mode()
def read(pictures: Sequence[Whole | DecodeError], view: View, device: torch.device) -> list[Seen | DecodeError]:
    """What a view has of each picture, but for its light and its region of interest: see `presented`.

    On the current stream, which is waited for. What is an error stays one.
    """
    return [each for part in _in_parts(pictures) for each in _of_part(part, view, device)]


def presented(pixels: Tensor, view: View) -> Tensor:
    """(B, 3, *view.seen) uint8 in even light and painted over outside the region of interest, as a view has it."""
    if view.even_light and len(pixels):  # Pillow's blur, on the host
        shown = [view.present(each) for each in pixels.permute(0, 2, 3, 1).cpu().numpy()]
        return torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).to(pixels.device)
    inside = view.inside()
    if inside is None:
        return pixels
    return pixels.where(torch.from_numpy(inside).to(pixels.device), pixels.new_tensor(PAINT))


def _in_parts(pictures: Sequence[Whole | DecodeError]) -> Iterator[list[Whole | DecodeError]]:
    """As many at a time as may be in memory whole, at least one."""
    part: list[Whole | DecodeError] = []
    left = _PIXELS_AT_ONCE
    for picture in pictures:
        area = 0 if isinstance(picture, DecodeError) else picture.pixels
        if part and area > left:
            yield part
            part, left = [], _PIXELS_AT_ONCE
        part.append(picture)
        left -= area
    yield part


def _of_part(pictures: Sequence[Whole | DecodeError], view: View, device: torch.device) -> list[Seen | DecodeError]:
    jpegs = [each.data for each in pictures if isinstance(each, Whole) and isinstance(each.data, bytes)]
    made = iter(_of_jpegs(jpegs, device))
    seen: dict[int, Seen | DecodeError] = {}
    alike: dict[Size, list[tuple[int, Tensor]]] = {}  # pictures of one size are resized together
    for place, each in enumerate(pictures):
        try:
            pixels = _pixels(each, made, device)
            alike.setdefault((int(pixels.shape[1]), int(pixels.shape[2])), []).append((place, pixels))
        except DecodeError as error:
            seen[place] = error
    for size, placed in alike.items():
        together, box = _seen(torch.stack([pixels for _, pixels in placed]), view)
        seen |= {place: Seen(pixels, box, size) for (place, _), pixels in zip(placed, together, strict=True)}
    return [seen[place] for place in range(len(pictures))]


def _pixels(picture: Whole | DecodeError, made: Iterator[Tensor | DecodeError], device: torch.device) -> Tensor:
    """(3, H, W) on the device; of JPEGs the next that was made."""
    if isinstance(picture, DecodeError):
        raise picture
    if not isinstance(picture.data, bytes):
        return torch.from_numpy(picture.data()).to(device).permute(2, 0, 1)
    pixels = next(made)
    if isinstance(pixels, DecodeError):
        raise pixels
    if pixels.shape[0] != _CHANNELS or pixels[0].numel() != picture.pixels:
        raise DecodeError(f"the JPEG says {picture.pixels} pixels and has {tuple(pixels.shape)}")
    return pixels


def _of_jpegs(jpegs: Sequence[bytes], device: torch.device) -> list[Tensor | DecodeError]:
    if not jpegs:
        return []
    # torchvision decodes into memory that this stream may still read, and nvJPEG's engine does not wait for it
    # (github.com/pytorch/vision/pull/9606).
    wait_for(device)
    try:
        return list(_torchvisions()([torch.frombuffer(bytearray(each), dtype=torch.uint8) for each in jpegs], device))
    except RuntimeError as error:
        if len(jpegs) > 1:  # one of them is at fault, and torchvision does not say which
            half = len(jpegs) // 2
            return _of_jpegs(jpegs[:half], device) + _of_jpegs(jpegs[half:], device)
        if _of_the_device(error, jpegs[0], device):
            raise
        return [DecodeError(f"not a readable picture ({len(jpegs[0])} bytes): {_plain(error)}")]


def _of_the_device(error: RuntimeError, jpeg: bytes, device: torch.device) -> bool:
    """Whether it is no picture's fault."""
    if _has_no_memory(error) or jpeg == _good():
        return True
    _of_jpegs([_good()], device)  # raises where not even that is decoded
    return False


def _has_no_memory(error: RuntimeError) -> bool:
    """Or is in worse trouble; torchvision's errors say only in words, or by nvJPEG's number, what they come from."""
    told = str(error).partition("\n")[0].strip()
    words = "out of memory" in told or "CUDA error" in told or re.search(rf": [{_OF_THE_DEVICE}]$", told) is not None
    return words or isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError))


def _seen(pictures: Tensor, view: View) -> tuple[Tensor, Box]:
    """What a view has of pictures (N, 3, H, W), and its box; what is cut out of them is cut at whole pixels."""
    size = int(pictures.shape[2]), int(pictures.shape[3])
    box = view.box(size)
    inner, (left, top, right, bottom) = laid(box, size, view.seen)
    x0, y0, x1, y1 = (round(each) for each in inner)
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    made = pictures[..., y0:y1, x0:x1].float()
    for step in _steps((y1 - y0, x1 - x0), (bottom - top, max(right - left, 2))):
        made = functional.interpolate(made, size=step, mode="bilinear", antialias=True)
    if right - left == 1:  # torch's filter on a CPU makes one column of its first value alone
        made = made.mean(dim=3, keepdim=True)
    if made.shape[2:] == view.seen:
        box = float(x0), float(y0), float(x1), float(y1)
    else:
        down, across = (
            (torch.arange(side, device=made.device) - first).clamp_(0, last - first - 1)
            for side, first, last in zip(view.seen, (top, left), (bottom, right), strict=True)
        )
        made = made[..., down.unsqueeze(1), across]
    return made.round_().clamp_(0, 255).to(torch.uint8), box


def _steps(given: Size, wanted: Size) -> list[Size]:
    """Sizes to filter a picture to, one after the other."""
    steps = [wanted]
    while True:
        coarse = min(given[0], _FILTER_MAX * steps[0][0]), min(given[1], _FILTER_MAX * steps[0][1])
        if coarse == given:
            return steps
        steps.insert(0, coarse)


def _torchvisions() -> Callable[[list[Tensor], torch.device], list[Tensor]]:
    """The decoder of torchvision, which says that it will go: where it has gone this says so.

    Raises:
        ConfigError: it has.
    """
    try:
        from torchvision.io import ImageReadMode, decode_jpeg  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("this torchvision decodes no JPEG on a GPU: install an older one, or fit anew") from error

    def decode(jpegs: list[Tensor], device: torch.device) -> list[Tensor]:
        if str(device) == "cuda":  # torchvision makes a decoder for each name of a device
            device = torch.device("cuda", torch.cuda.current_device())
        made: list[Tensor] = decode_jpeg(jpegs, mode=ImageReadMode.RGB, device=device)
        return made

    return decode


def _plain(error: Exception) -> str:
    """The words of an error of torch's, without its place in the source."""
    return str(error).partition("\n")[0].rpartition(", ")[2][:200]
