"""Options that say what a model sees of a frame."""

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import click
from PIL import Image

from pipeline.errors import ConfigError, DecodeError
from pipeline.view import View


def view(command: Callable[..., None]) -> Callable[..., None]:
    """`--size` and the options that follow it, as a command's `view`, `roi` and `rotations`."""

    @wraps(command)
    def with_view(
        *,
        size: int,
        tiles: str,
        roi: Path | None,
        crop: bool,
        keep_aspect: bool,
        even_light: bool,
        decode_on: str,
        **others: Any,
    ) -> None:
        seen = _view_of(
            size, tiles, roi, crop=crop, keep_aspect=keep_aspect, even_light=even_light, decode_on=decode_on
        )
        command(view=seen, roi=roi, **others)

    for option in (
        click.option(
            "--rotations",
            type=click.IntRange(1, 360),
            default=1,
            show_default=True,
            help="Show each picture to the fit in so many poses: for few pictures of a part that may lie as it likes.",
        ),
        click.option(
            "--roi",
            type=click.Path(path_type=Path, dir_okay=False),
            help="A picture as large as the frames, white where to inspect (region of interest).",
        ),
        click.option(
            "--even-light", is_flag=True, help="Divide by slow changes of the light, over a frame and in time."
        ),
        click.option(
            "--tiles",
            default="1",
            show_default=True,
            help="Levels of tiles: 2 cuts frames in 2x2, each as large as SIZE; 1,2 looks at both scales.",
        ),
        click.option(
            "--keep-aspect", is_flag=True, help="See the whole frame unstretched, its edge repeated around it."
        ),
        click.option("--crop", is_flag=True, help="See the papers' centre crop. What lies outside is not inspected."),
        click.option("--size", default=224, show_default=True, help="Side of the square the model sees, in pixels."),
        click.option(
            "--decode-on",
            type=click.Choice(["cpu", "gpu"]),
            default="cpu",
            show_default=True,
            help="What decodes and resizes pictures, here and in service: a GPU makes other pixels than a CPU.",
        ),
    ):
        with_view = option(with_view)
    return with_view


def _view_of(
    size: int, tiles: str, roi: Path | None, *, crop: bool, keep_aspect: bool, even_light: bool, decode_on: str
) -> View:
    """The view that the options ask for.

    Raises:
        ConfigError: they do not go together, or the region of interest cannot be read.
    """
    try:
        levels = tuple(int(n) for n in tiles.split(","))
    except ValueError as error:
        raise ConfigError(f"--tiles takes levels, as in 2 or 1,2, not {tiles!r}") from error
    chosen = View(
        size=(size, size),
        crop=crop,
        keep_aspect=keep_aspect,
        even_light=even_light,
        tiles=levels,
        resized_by="gpu" if decode_on == "gpu" else "torch",
    )
    if roi is None:
        return chosen
    try:
        with Image.open(roi) as mask:
            return chosen.with_roi(mask)
    except OSError as error:
        raise ConfigError(f"--roi {roi}: {error}") from error


def check_roi(roi: Path | None, frames: Sequence[Path]) -> None:
    """Refuse a region of interest that was painted on other frames: stretched over these, it lies elsewhere.

    Raises:
        ConfigError: its sides are in another proportion than those of the first readable frame.
    """
    from pipeline.decode import Limits, decode_one  # noqa: PLC0415 - torch takes seconds to import

    if roi is None:
        return
    with Image.open(roi) as mask:
        width, height = mask.size
    for frame in frames:
        try:
            _, placement = decode_one(frame.read_bytes(), View(), Limits())
        except DecodeError:
            continue
        high, wide = placement.image_size
        if abs(width * high - wide * height) > max(width, height, wide, high):  # a pixel of rounding is none
            raise ConfigError(
                f"--roi {roi} is {width}x{height} px and the frames ({frame.name}) are {wide}x{high}: paint it on one "
                "of them"
            )
        return
