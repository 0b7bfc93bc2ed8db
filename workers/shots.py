"""Where a camera's pictures come from: a folder, a single picture, a video file, or a camera device."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.evaluation.dataset import pictures

_CONTENT_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".webp": "image/webp",
}
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov", ".m4v"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One picture to send.

    Attributes:
        name: where it comes from.
        stem: its file's name up to the first dot; None where it has no file of its own.
    """

    name: str
    image: bytes
    content_type: str
    stem: str | None = None


def shots(source: str, *, loop: bool = False, shuffle: bool = False, seed: int = 0) -> Iterator[Shot]:
    """The pictures of a folder, a single picture, a video file, or a camera device.

    Args:
        source: folder, picture, video file or `/dev/videoN`.
        loop: start again at the end.
        shuffle: a folder's pictures in random order, another in each round.
        seed: of the order.

    Raises:
        ConfigError: nothing to read there, or reading it needs an extra that is not installed.
    """
    path = Path(source)
    if source.startswith("/dev/video") or path.suffix.lower() in VIDEO_SUFFIXES:
        yield from _video(source, loop=loop)
        return
    found = [path] if path.is_file() else pictures(path)
    order = random.Random(seed)  # noqa: S311 - an order of pictures, not a secret
    while True:
        if shuffle:
            order.shuffle(found)
        for picture in found:
            kind = _CONTENT_TYPES.get(picture.suffix.lower(), "application/octet-stream")
            stem = picture.name.partition(".")[0] or None
            yield Shot(name=str(picture), image=picture.read_bytes(), content_type=kind, stem=stem)
        if not loop:
            return


def _video(source: str, *, loop: bool) -> Iterator[Shot]:
    try:
        import cv2  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise ConfigError(f"reading {source} needs OpenCV: pip install 'goldline[video]'") from error
    number = 0
    while True:
        capture = cv2.VideoCapture(source)
        if not capture.isOpened():
            raise ConfigError(f"cannot open {source} as a video or a camera")
        first = number
        while True:
            ok, picture = capture.read()
            if not ok:
                break
            encoded, image = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
            if encoded:
                yield Shot(name=f"{source}#{number}", image=image.tobytes(), content_type="image/jpeg")
            number += 1
        capture.release()
        if number == first:
            raise ConfigError(f"{source} has no pictures")
        if not loop:
            return
