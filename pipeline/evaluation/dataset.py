"""Image folders in MVTec AD layout.

`train/good`, `test/good`, `test/<defect>`, and `ground_truth/<defect>/NAME_mask.png`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from pipeline.errors import ConfigError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
GOOD = "good"


@dataclass(frozen=True, slots=True)
class Sample:
    """One test picture.

    Attributes:
        defect: None for a good part.
        mask: where the defect is; None when the part is good or nobody drew it.
    """

    path: Path
    defect: str | None
    mask: Path | None = None


def pictures(folder: Path) -> list[Path]:
    """Every picture below a folder, sorted.

    Raises:
        ConfigError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"no such folder: {folder}")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise ConfigError(f"no pictures in {folder} (looked for {', '.join(sorted(SUFFIXES))})")
    return found


def goods(folder: Path, without: Sequence[str] = ()) -> list[Path]:
    """The good pictures to learn from: `train/good` in MVTec layout, else every picture in the folder.

    Args:
        folder: where they are.
        without: those to leave out: each the path in the folder, or as much of its end as means one picture.

    Raises:
        ConfigError: there are none, the folder looks like a test set, or a name means none of them or several.
    """
    train = folder / "train" / GOOD
    if train.is_dir():
        found = pictures(train)
    elif (folder / "test").is_dir() or (folder / "ground_truth").is_dir():
        raise ConfigError(f"{folder} has a test set but no train/good; name the folder that holds only good pictures")
    else:
        found = pictures(folder)
    left_out = {_meant(name, found, folder) for name in without}
    kept = [path for path in found if path not in left_out]
    if not kept:
        raise ConfigError(f"all {len(found)} pictures in {folder} are left out")
    return kept


def left_out(folder: Path, kept: Sequence[Path]) -> list[str]:
    """Paths in the folder of those good pictures that are not among these."""
    there = set(kept)
    return [str(path.relative_to(folder)) for path in goods(folder) if path not in there]


def _meant(name: str, found: Sequence[Path], folder: Path) -> Path:
    exact, parts = (folder / name).absolute(), Path(name).parts
    meant = [path for path in found if path.absolute() == exact] or [
        path for path in found if parts and path.parts[-len(parts) :] == parts
    ]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise ConfigError(f"{name!r} means {len(meant)} pictures: name the folder as well, as in {meant[0]}")
    ends = {path.name.lower(): path.name for path in found}
    near = get_close_matches(name.replace("\\", "/").rsplit("/", 1)[-1].lower(), ends, n=1)
    hint = "; a comment begins with `# `" if name.lstrip().startswith("#") else ""
    hint = f"; nearest: {ends[near[0]]}" if near else hint
    raise ConfigError(f"no picture {name!r} in {folder} to leave out{hint}")


def tests(folder: Path) -> list[Sample]:
    """The test pictures of a folder in MVTec layout, goods first.

    Raises:
        ConfigError: there is no `test` folder with pictures, or a picture is in no folder of its own kind.
    """
    root = folder / "test"
    found = []
    for path in pictures(root):
        if path.parent == root:
            raise ConfigError(f"{path} lies beside the defects' folders; put it in {root / GOOD} or {root}/<defect>")
        kind = path.relative_to(root).parts[0]
        mask = folder / "ground_truth" / kind / f"{path.stem}_mask.png"
        defect = None if kind == GOOD else kind
        found.append(Sample(path, defect, mask if defect and mask.is_file() else None))
    return sorted(found, key=lambda s: (s.defect is not None, s.path))


def golden(folder: Path) -> tuple[list[Path], list[Path]]:
    """A golden set's goods and defects: `good` and `defect` in the folder, or the test set in MVTec layout.

    Raises:
        ConfigError: there is no such folder, or neither layout in it.
    """
    if (folder / "test").is_dir():
        samples = tests(folder)
        return [s.path for s in samples if s.defect is None], [s.path for s in samples if s.defect is not None]
    kinds = [folder / kind for kind in (GOOD, "defect")]
    if not any(kind.is_dir() for kind in kinds):
        raise ConfigError(f"{folder} is no golden set: it has good/ and defect/, or test/ in MVTec layout")
    goods, defects = ([*pictures(kind)] if kind.is_dir() and any(kind.iterdir()) else [] for kind in kinds)
    return goods, defects
