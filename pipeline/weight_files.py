"""Where weights of backbones are looked for, and how they get there without a network: one order, no surprises.

A file on a stick is enough: safetensors, with its origin and the digest of its tensors in its own metadata. Only
`import_file` ever reads a `.pth`, with `weights_only=True`, in a process of its own.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
import torchvision.models
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from pipeline import goldline_s as own
from pipeline.backbone_spec import Preprocessing
from pipeline.errors import ConfigError
from pipeline.networks import state_sha256

_META = "goldline"
_IMPORT_S = 600.0
_UNPACK = """
import sys, torch
from safetensors.torch import save_file
state = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
for name in ("state_dict", "model", "model_state_dict"):
    if isinstance(state, dict) and isinstance(state.get(name), dict):
        state = state[name]
if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
    sys.exit("it holds no state dict of tensors")
save_file({k.removeprefix("module."): t.contiguous().clone() for k, t in state.items()}, sys.argv[2])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One place where a backbone's weights may be.

    Attributes:
        kind: which step of the order this is.
        path: the file; None for a download.
        there: it can be used now.
        note: what has to be known about it.
    """

    kind: str
    path: Path | None
    there: bool
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where this machine keeps weights.

    Attributes:
        named: files that settings name, by backbone.
        folder: NAME.safetensors of each imported backbone lies there.
        download: torchvision's weights may be fetched.
    """

    named: Mapping[str, Path | None]
    folder: Path
    download: bool = False

    def places(self, name: str, given: Path | None = None) -> list[Place]:
        """Every place in the order in which it is looked at."""
        named = self.named.get(name)
        imported = self.folder / f"{file_stem(name)}.safetensors"
        found = [
            Place(kind="--weights", path=given, there=given is not None and given.is_file()),
            Place(kind="settings", path=named, there=named is not None and named.is_file()),
            Place(kind="folder", path=imported, there=imported.is_file(), note="GOLDLINE_WEIGHTS, [weights] folder"),
        ]
        if name == own.NAME:
            found.append(Place(kind="shipped", path=own.SHIPPED, there=own.SHIPPED.is_file()))
        if url := _torchvision_url(name):
            cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
            note = "converted into the folder when it is first used"
            found.append(Place(kind="torchvision's cache", path=cached, there=cached.is_file(), note=note))
            note = url if self.download else f"{url}; not allowed: [weights] download = false"
            found.append(Place(kind="download", path=None, there=self.download, note=note))
        return [place for place in found if place.path or place.kind == "download"]

    def find(self, name: str, given: Path | None = None) -> Path | None:
        """The first place's file; what torchvision has is converted into the folder first.

        Raises:
            ConfigError: a file that was named is not there, or the conversion failed.
        """
        for place in self.places(name, given):
            if place.kind in {"--weights", "settings"} and not place.there:
                raise ConfigError(f"weights {place.path} ({place.kind}): no such file")
            if not place.there:
                continue
            if place.kind == "torchvision's cache":
                assert place.path is not None  # noqa: S101 - for the type checker: only a download has none
                return import_file(place.path, name, self.folder, origin=_torchvision_url(name))
            if place.kind == "download":
                return self._download(name)
            return place.path
        return None

    def _download(self, name: str) -> Path:
        url = _torchvision_url(name)
        fetched = self.folder / url.rpartition("/")[2]
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            prefix = fetched.stem.rpartition("-")[2]
            torch.hub.download_url_to_file(url, str(fetched), hash_prefix=prefix, progress=sys.stderr.isatty())
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"weights of {name} cannot be fetched from {url}: {error}") from error
        try:
            return import_file(fetched, name, self.folder, origin=url)
        finally:
            fetched.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a weights file says of itself, and whether it is so.

    Attributes:
        sha256: of the tensors that are there.
        stated: the digest in its metadata; empty where it has none.
    """

    sha256: str
    stated: str
    tensors: int
    bytes: int
    origin: str

    @property
    def intact(self) -> bool:
        """The tensors are those that were written; a file without a digest cannot say."""
        return self.stated in {"", self.sha256}


def import_file(
    source: Path,
    name: str,
    folder: Path,
    *,
    origin: str = "",
    preprocessing: Preprocessing = Preprocessing(),  # noqa: B008 - frozen
) -> Path:
    """Put weights where every command finds them.

    Args:
        source: `.safetensors`, or a state dict saved by torch (`.pth`, `.pt`).
        name: of the backbone that they are for.
        folder: where to put them.
        origin: where they come from, for people.
        preprocessing: what the network wants of its pixels.

    Returns:
        The new file.

    Raises:
        ConfigError: it cannot be read, or holds anything but tensors.
    """
    if not source.is_file():
        raise ConfigError(f"weights {source}: no such file")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{file_stem(name)}.safetensors"
    part = target.with_suffix(".part")
    try:
        if source.suffix == ".safetensors":
            state = _load(source)
        else:
            _unpack(source, part)
            state = _load(part)
        said = {
            "name": name,
            "origin": origin or source.name,
            "sha256": state_sha256(state),
            "preprocessing": asdict(preprocessing),
        }
        save_file(state, part, {_META: json.dumps(said, sort_keys=True)})
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def verify(path: Path) -> Checked:
    """Digest a file's tensors and compare with what it says.

    Raises:
        ConfigError: it cannot be read.
    """
    state, said = _load(path), metadata(path)
    return Checked(
        sha256=state_sha256(state),
        stated=str(said.get("sha256", "")),
        tensors=len(state),
        bytes=path.stat().st_size,
        origin=str(said.get("origin", "")),
    )


def preprocessing_of(path: Path) -> Preprocessing:
    """What the file says its network wants of pixels; ImageNet's usual, where it says nothing.

    Raises:
        ConfigError: it says something that cannot be.
    """
    try:
        wanted = msgspec.convert(metadata(path).get("preprocessing", {}), Preprocessing)
    except msgspec.ValidationError as error:
        raise ConfigError(f"weights {path.name}: preprocessing: {error}") from error
    return check_preprocessing(wanted)


def check_preprocessing(wanted: Preprocessing) -> Preprocessing:
    """The same, if it can be.

    Raises:
        ConfigError: a value is not finite, or a deviation is not positive.
    """
    if not torch.tensor([wanted.mean, wanted.std]).isfinite().all() or min(wanted.std) <= 0:
        raise ConfigError(f"preprocessing: mean must be finite and std positive, not {wanted.mean} {wanted.std}")
    return wanted


def metadata(path: Path) -> dict[str, Any]:
    """What we wrote into a weights file beside its tensors; empty where somebody else wrote it."""
    try:
        with safe_open(path, "pt") as file:
            said = json.loads((file.metadata() or {}).get(_META, "{}"))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"weights {path.name} cannot be read: {error}") from error
    return said if isinstance(said, dict) else {}


def file_stem(name: str) -> str:
    """A backbone's name as a file's: `timm:vit.dino` becomes `timm_vit.dino`.

    Raises:
        ConfigError: it would leave the folder.
    """
    stem = name.replace(":", "_")
    if not stem or stem.startswith(".") or not all(c.isalnum() or c in "_-." for c in stem):
        raise ConfigError(f"{name!r} is no name of a backbone")
    return stem


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        state: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"weights {path.name} cannot be read: {error}") from error
    return state


def _unpack(source: Path, target: Path) -> None:
    """A `.pth` as safetensors, in a process of its own: whatever its bytes do, they do it there."""
    argv = [sys.executable, "-I", "-c", _UNPACK, str(source.resolve()), str(target.resolve())]
    try:
        ran = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_IMPORT_S)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"weights {source.name}: reading took over {_IMPORT_S:.0f} s") from error
    if ran.returncode != 0:
        words = ran.stderr.strip().splitlines()
        raise ConfigError(f"weights {source.name} cannot be read: {words[-1] if words else ran.returncode}")


def _torchvision_url(name: str) -> str:
    """Of the V1 weights, which the papers used; empty where torchvision has none."""
    try:
        return str(torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url)
    except (ValueError, KeyError):
        return ""
