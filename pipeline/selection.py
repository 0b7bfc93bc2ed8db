"""How a folder of good pictures was chosen: `selection.json` beside them, and which sets may calibrate a threshold.

Accepted frames are cut off at the threshold that accepted them. They tell quantiles of the scores below it and nothing
about the good parts above: a threshold from them rejects more than it promises, and cannot be corrected, as how many
good parts lie above is what calibration is to find out.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import msgspec

from pipeline.errors import ConfigError

FILE = "selection.json"


class Marked(msgspec.Struct, frozen=True, kw_only=True):
    """One part for a person to look at, whatever its verdict.

    Attributes:
        picture: its file beside the list; None if the picture could not be had.
        captured_at: RFC 3339, UTC.
    """

    part_id: str
    frame_id: str
    picture: str | None
    captured_at: str


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """How a folder of pictures was chosen.

    Attributes:
        chosen_by: `part-id`, by its hash, or `threshold`, by what a model decided.
        of: how many parts these were chosen from.
        drawn_at: RFC 3339, UTC.
        parts: those that were chosen.
    """

    chosen_by: Literal["part-id", "threshold"]
    station: str
    recipe: str = "default"
    of: int = 0
    drawn_at: str = ""
    drawn_by: str = ""
    parts: tuple[Marked, ...] = ()


def write(folder: Path, selection: Selection) -> None:
    """Put the list beside its pictures."""
    (folder / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(selection), indent=1) + b"\n")


def read(folder: Path) -> Selection | None:
    """What a folder says about itself; None where it says nothing.

    Raises:
        ConfigError: it cannot be understood, and so cannot be trusted either.
    """
    path = folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Selection)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path} does not say how these pictures were chosen: {error}") from error


def check(folder: Path, pictures: Collection[Path], *, station: str, recipe: str) -> Selection | None:
    """What a folder says about itself, if its pictures may calibrate a threshold of this station and recipe.

    Raises:
        ConfigError: they may not, and why.
    """
    said = read(folder)
    if said is None:
        return None
    if said.chosen_by == "threshold":
        raise ConfigError(
            f"{folder}: a threshold selected these pictures ({FILE}). Good parts that scored above it are missing, so "
            "that a threshold from these would reject more than it promises, and more with each round. Take parts "
            f"that a person verified whatever their verdict: goldline audit sample --station {station}"
        )
    if (said.station, said.recipe) != (station, recipe):
        raise ConfigError(f"{folder}: drawn at {said.station} ({said.recipe}), not {station} ({recipe})")
    strange = {path.name for path in pictures} - {part.picture for part in said.parts}
    if strange:
        raise ConfigError(
            f"{folder}: {len(strange)} pictures were not drawn with the others ({FILE}), {min(strange)} for one: take "
            "them out, or give them in a folder of their own"
        )
    return said
