"""`goldline score`."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from model_store import ModelKey, ModelStore, Version, open_store, resolve_version
from pipeline.data import Failure, Frame, Verdict
from pipeline.errors import ConfigError, ModelNotFound
from pipeline.evaluation.dataset import pictures
from pipeline.heatmap import encode_picture, overlay
from pipeline.inspection import Inspected, Inspector
from workers.backbones import open_inspector
from workers.commands import options
from workers.words import counted

_BATCH = 8
_NAME_BYTES = 200  # of a picture that is written, which any file system takes; its number is in front


@click.command("score")
@click.argument("model")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--recipe", default="default", show_default=True, help="The product, where MODEL is a station.")
@click.option(
    "--heatmaps",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write an overlay of each picture there.",
)
@options.model_backbone
@options.store
@options.as_json
def command(
    model: str,
    images: tuple[Path, ...],
    recipe: str,
    heatmaps: Path | None,
    weights: Path | None,
    backbone: str | None,
    config: Path | None,
    device: str,
    store_url: str,
    as_json: bool,
) -> None:
    """Verdicts for IMAGES (pictures or folders) by MODEL, without Kafka.

    MODEL is a station (its current model) or a model version. The same code decides as on the line.

    \b
    Examples:
      goldline score line-1/top part.jpg --store file://$PWD/models
      goldline score line-1/top photos/ --heatmaps out/ --json --store file://$PWD/models
    """
    store = open_store(store_url)
    key, version = find(store, model, recipe)
    artifact = store.get(key, version)
    settings = options.optional_settings(config)
    inspector = open_inspector(artifact, settings, backbone=backbone, weights=weights, device=device)
    for path, answer in _inspect(inspector, _paths(images), heatmaps):
        if as_json:
            click.echo(json.dumps(_body(path, answer, artifact.method, version)))
        elif isinstance(answer, Verdict):
            where = f"  {counted(len(answer.regions), 'region')}" if answer.regions else ""
            click.echo(
                f"{answer.decision.upper():11} {answer.score:9.4g} / {answer.threshold:.4g}  "
                f"p {answer.p_value:.3f}  {path}{where}"
            )
        else:
            click.echo(f"NO_DECISION {answer.reason}: {answer.detail}  {path}")


def find(store: ModelStore, model: str, recipe: str) -> tuple[ModelKey, Version]:
    """The key and version that a person means by a station's name or a version's beginning.

    Raises:
        ModelNotFound: nothing there has that name.
    """
    if "/" in model:
        key = ModelKey(model, recipe)
        return key, resolve_version(store, key, "current")
    keys = store.keys()
    for key in keys:
        try:
            return key, resolve_version(store, key, model)
        except ModelNotFound:
            continue
    known = ", ".join(str(key) for key in keys) or "nothing"
    raise ModelNotFound(f"no station and no model version {model!r} in the store (there: {known})")


def _paths(images: tuple[Path, ...]) -> list[Path]:
    found: list[Path] = []
    for path in images:
        if not path.exists():
            raise ConfigError(f"no such picture or folder: {path}")
        found += pictures(path) if path.is_dir() else [path]
    return found


def _inspect(
    inspector: Inspector, paths: list[Path], heatmaps: Path | None
) -> Iterator[tuple[Path, Verdict | Failure]]:
    if heatmaps:
        heatmaps.mkdir(parents=True, exist_ok=True)
    for at in range(0, len(paths), _BATCH):
        batch = {f"{at + i}": path for i, path in enumerate(paths[at : at + _BATCH])}
        frames = {i: Frame(frame_id=i, image=path.read_bytes()) for i, path in batch.items()}
        inspected = inspector.inspect(list(frames.values()))
        answers: dict[str, Verdict | Failure] = {v.frame_id: v for v in inspected.verdicts}
        answers |= {f.frame_id: f for f in inspected.failures}
        for i, path in batch.items():
            if heatmaps and i in inspected.maps:
                picture = overlay_of(inspector, inspected, i)
                name = "-".join(filter(None, (f"{int(i):05d}", path.parent.name, path.stem)))
                name = os.fsencode(name)[:_NAME_BYTES].decode(errors="ignore")  # a name on disk may be no text
                (heatmaps / f"{name}.png").write_bytes(encode_picture(picture))
            yield path, answers[i]


def picture_of(inspected: Inspected, frame_id: str) -> NDArray[np.uint8]:
    """(H, W, 3), as the model saw it."""
    return inspected.pixels[frame_id].permute(1, 2, 0).numpy()


def overlay_of(inspector: Inspector, inspected: Inspected, frame_id: str) -> NDArray[np.uint8]:
    """The picture as the model saw it, coloured where the map nears and passes the pixel threshold."""
    picture, scores = picture_of(inspected, frame_id), inspected.maps[frame_id].numpy()
    line = inspector.threshold.pixel
    return overlay(picture, scores, low=0.6 * line, high=max(1.6 * line, float(np.max(scores)) * 0.8))


def _body(path: Path, answer: Verdict | Failure, method: str, version: str) -> dict[str, Any]:
    model = {"method": method, "version": version}
    if isinstance(answer, Failure):
        return {
            "path": str(path),
            "verdict": "no_decision",
            "reason": answer.reason.value,
            "detail": answer.detail,
            "score": None,
            "threshold": None,
            "p_value": None,
            "regions": [],
            "model": model,
        }
    return {
        "path": str(path),
        "verdict": answer.decision.value,
        "reason": None,
        "score": answer.score,
        "threshold": answer.threshold,
        "p_value": answer.p_value,
        "regions": [{"box": r.box, "peak": r.peak, "area_px": r.area_px} for r in answer.regions],
        "model": model,
    }
