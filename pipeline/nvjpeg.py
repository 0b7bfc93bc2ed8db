"""Pictures decoded and resized on a GPU: nvJPEG, behind torchvision, and torch's filter.

JPEGs of one or three channels that are not turned by EXIF are decoded there; whatever else a picture is, Pillow decodes
it, and it is resized there. Which of both depends on the picture alone, so that a model always sees it alike.

On a CPU the very same code has libjpeg in nvJPEG's place: that is how it is tested, and no model runs so.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.data import Size
from pipeline.devices import wait_for
from pipeline.errors import ConfigError, DecodeError
from pipeline.view import PAINT, View, laid

Box: TypeAlias = tuple[float, float, float, float]
"""(x0, y0, x1, y1), in pixels of the picture."""

_PIXELS_AT_ONCE = 64_000_000  # that are decoded together: 200 MB of a GPU's memory
_START, _SCAN, _END = b"\xff\xd8", b"\xda", b"\xff\xd9"


@dataclass(frozen=True, slots=True)
class Whole:
    """A picture whose header was checked.

    Attributes:
        data: the JPEG; or what Pillow made of anything else, (H, W, 3) uint8, upright.
        size: (H, W).
    """

    data: bytes | NDArray[np.uint8]
    size: Size


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
    """Refuse a device that does not decode.

    Raises:
        ConfigError: it is not a GPU.
    """
    if device.type != "cuda":
        raise ConfigError(
            f"pictures are to be decoded on a GPU, and the model runs on {device.type}: give it a GPU (--device cuda, "
            "[worker] device), or fit one whose pictures the CPU decodes"
        )


def check_end(jpeg: bytes) -> None:
    """Refuse a JPEG whose scans do not end: of those that are truncated nvJPEG makes up the rest.

    Headers, which may hold a small picture with an end of its own, are walked over; in a scan nothing looks like it.

    Raises:
        DecodeError: it is truncated.
    """
    at = len(_START)
    while jpeg[at : at + 1] == b"\xff" and jpeg[at + 1 : at + 2] != _SCAN:
        length = int.from_bytes(jpeg[at + 2 : at + 4], "big")
        at += 2 + max(length, 2)  # it counts itself
    if jpeg.find(_END, at) < 0:
        raise DecodeError(f"not a readable picture ({len(jpeg)} bytes): the JPEG is truncated")


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
        area = 0 if isinstance(picture, DecodeError) else picture.size[0] * picture.size[1]
        if part and area > left:
            yield part
            part, left = [], _PIXELS_AT_ONCE
        part.append(picture)
        left -= area
    yield part


def _of_part(pictures: Sequence[Whole | DecodeError], view: View, device: torch.device) -> list[Seen | DecodeError]:
    jpegs = [each.data for each in pictures if isinstance(each, Whole) and isinstance(each.data, bytes)]
    made = iter(_of_jpegs(jpegs, device))
    seen: list[Seen | DecodeError] = []
    for each in pictures:
        if isinstance(each, DecodeError):
            seen.append(each)
            continue
        pixels = next(made) if isinstance(each.data, bytes) else torch.from_numpy(each.data).permute(2, 0, 1).to(device)
        if isinstance(pixels, Tensor) and tuple(pixels.shape) != (3, *each.size):
            pixels = DecodeError(f"the JPEG's header says {each.size} pixels and it has {tuple(pixels.shape[1:])}")
        seen.append(pixels if isinstance(pixels, DecodeError) else _seen(pixels, view))
    return seen


def _of_jpegs(jpegs: Sequence[bytes], device: torch.device) -> list[Tensor | DecodeError]:
    if not jpegs:
        return []
    # torchvision decodes into memory that this stream may still read, and nvJPEG's engine does not wait for it
    # (github.com/pytorch/vision/pull/9606).
    wait_for(device)
    try:
        return list(_torchvisions()([torch.frombuffer(bytearray(each), dtype=torch.uint8) for each in jpegs], device))
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # no picture's fault
    except RuntimeError as error:
        if len(jpegs) > 1:  # one of them is at fault, and torchvision does not say which
            return [_of_jpegs([each], device)[0] for each in jpegs]
        return [DecodeError(f"not a readable picture ({len(jpegs[0])} bytes): {_plain(error)}")]


def _seen(picture: Tensor, view: View) -> Seen:
    """What a view has of a picture (3, H, W); what is cut out of it is cut at whole pixels."""
    size = int(picture.shape[1]), int(picture.shape[2])
    box = view.box(size)
    inner, (left, top, right, bottom) = laid(box, size, view.seen)
    x0, y0, x1, y1 = (round(each) for each in inner)
    cut = picture[:, y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)].unsqueeze(0).float()
    made = functional.interpolate(cut, size=(bottom - top, right - left), mode="bilinear", antialias=True)
    margins = (left, view.seen[1] - right, top, view.seen[0] - bottom)
    if any(margins):
        made = functional.pad(made, margins, mode="replicate")
    else:
        box = float(x0), float(y0), float(x1), float(y1)
    return Seen(made[0].round_().clamp_(0, 255).to(torch.uint8), box, size)


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
        made: list[Tensor] = decode_jpeg(jpegs, mode=ImageReadMode.RGB, device=device)
        return made

    return decode


def _plain(error: Exception) -> str:
    """The words of an error of torch's, without its place in the source."""
    return str(error).partition("\n")[0].rpartition(", ")[2][:200]
