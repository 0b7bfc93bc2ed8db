"""What a pool remembers of defective parts, and its log of what was removed.

ROOT/defects/XX/DIGEST.json     the report of a part: none of its frames comes in any more
ROOT/removals/00000001.json     a line of the log: what was said, and the frames that went
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from model_store.files import Log, create, make_folder, names
from model_store.pool_records import Feedback, Removal
from model_store.records import ModelKey
from model_store.reservoir import digest

KEPT_S = 90 * 86_400.0  # longer than any frame is kept, and than one can be offered again

_feedback = msgspec.json.Decoder(Feedback)
_removals = msgspec.json.Decoder(Removal)


class Reports:
    """Reports of defects by part, and the log. The system's errors are the pool's to translate."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "defects"
        self._log = Log(root / "removals")

    def add(self, feedback: Feedback) -> bool:
        """Keep a report; False if the like was reported before. Old ones beside it go."""
        path = self._path(feedback.part_id, feedback.station, feedback.recipe)
        make_folder(path.parent)
        for name in names(path.parent):
            with suppress(FileNotFoundError):
                if time.time() - (path.parent / name).stat().st_mtime > KEPT_S:
                    (path.parent / name).unlink()
        return create(path, [msgspec.json.encode(feedback)])

    def find(self, part_id: str, keys: Sequence[ModelKey]) -> list[Feedback]:
        """Reports of a part that concern any of these stations and recipes."""
        stations: set[str | None] = {None, *(key.station for key in keys)}
        recipes: set[str | None] = {None, *(key.recipe for key in keys)}
        found = []
        for path in [self._path(part_id, station, recipe) for station in stations for recipe in recipes]:
            with suppress(FileNotFoundError):
                found.append(_feedback.decode(path.read_bytes()))
        return found

    def count(self) -> int:
        """How many reports there are."""
        return sum(len(names(self._folder / shard)) for shard in names(self._folder))

    def log(self, removal: Removal) -> None:
        """Add a line to the log, whoever else adds one."""
        number = max(self._log.numbers(), default=0) + 1
        while not self._log.add(number, msgspec.json.encode(removal)):
            number += 1

    def removals(self) -> list[Removal]:
        """The log, oldest first."""
        return [_removals.decode(self._log.path(number).read_bytes()) for number in self._log.numbers()]

    def _path(self, part_id: str, station: str | None, recipe: str | None) -> Path:
        name = digest(msgspec.json.encode([part_id, station, recipe]).decode())
        return self._folder / name[:2] / f"{name}.json"
