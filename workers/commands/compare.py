"""`goldline models compare`."""

import json
from collections.abc import Iterator
from pathlib import Path

import click

from model_store import ModelKey, ModelStore, Version, open_store, resolve_version, short
from pipeline.data import Frame, Verdict
from pipeline.errors import ConfigError
from workers import comparing
from workers.commands import options
from workers.comparing import Difference, Pair

_BATCH = 8


@click.command("compare")
@click.argument("station")
@click.argument("one")
@click.argument("other", default="current")
@click.option(
    "--frames", "folder", type=click.Path(path_type=Path), help="A folder of pictures to score with both versions."
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Settings of the line: where models are kept, and what both said while one was tried.",
)
@click.option("--examples", default=10, show_default=True, help="Frames to show that they decide differently.")
@options.recipe
@options.store
@options.as_json
def compare(
    station: str,
    one: str,
    other: str,
    folder: Path | None,
    config: Path | None,
    examples: int,
    recipe: str,
    store_url: str,
    as_json: bool,
) -> None:
    """How the verdicts of version ONE of STATION would differ from OTHER's, with examples.

    From the line, where one of them was tried beside the other (`goldline models shadow`), or on a folder of pictures.

    \b
    Examples:
      goldline models compare line-1/top 4f2a91 --config line.toml
      goldline models compare line-1/top 4f2a91 --frames photos/
    """
    store = open_store(store_url)
    key = ModelKey(station, recipe)
    a, b = (resolve_version(store, key, each) for each in (one, other))
    if a == b:
        raise ConfigError(f"{short(a)} is both of them: name two versions")
    settings = options.optional_settings(config)
    if folder is not None:
        pairs = _of_folder(store, key, (a, b), folder, config)
    elif config is not None:
        pairs = comparing.from_trial(settings, key, a, b)
    else:
        raise click.UsageError("say where the frames come from: --config line.toml or --frames FOLDER")
    found = comparing.compare(pairs, a, b, examples=examples)
    if not found.frames:
        raise ConfigError(
            f"no frame that both {short(a)} and {short(b)} decided about: try one beside the other with "
            f"`goldline models shadow {station} VERSION`, or give --frames"
        )
    click.echo(json.dumps(found.body()) if as_json else _page(found))


def _of_folder(
    store: ModelStore, key: ModelKey, versions: tuple[Version, Version], folder: Path, config: Path | None
) -> Iterator[Pair]:
    from pipeline.decode import Limits  # noqa: PLC0415 - torch takes seconds to import
    from pipeline.evaluation.dataset import pictures  # noqa: PLC0415
    from pipeline.inspection import Inspector, inspect_together  # noqa: PLC0415
    from workers.backbones import opener  # noqa: PLC0415

    opened = opener(options.optional_settings(config), "auto")
    inspectors = [Inspector.load(store.get(key, v), open_backbone=opened, limits=Limits()) for v in versions]
    paths = pictures(folder)
    for at in range(0, len(paths), _BATCH):
        frames = [Frame(frame_id=str(path), image=path.read_bytes()) for path in paths[at : at + _BATCH]]
        said: list[dict[str, Verdict]] = []
        for result in inspect_together([(inspector, frames) for inspector in inspectors]):
            if isinstance(result, Exception):
                raise result
            said.append({verdict.frame_id: verdict for verdict in result.verdicts})
        for frame_id in said[0].keys() & said[1].keys():
            a, b = ((v.decision, v.score, v.threshold, v.p_value) for v in (said[0][frame_id], said[1][frame_id]))
            yield Pair(name=frame_id, part_id=None, a=a, b=b)


def _page(found: Difference) -> str:
    a, b = short(found.a), short(found.b)
    rows = [
        f"{found.frames} frames that both decided about",
        f"both pass {found.both_pass}, both reject {found.both_reject}",
        f"{a} alone rejects {found.a_rejects_alone}, {b} alone rejects {found.b_rejects_alone}",
    ]
    if found.rank_correlation is not None:
        rows.append(f"rank correlation of the scores {found.rank_correlation:.3f}")
    for each in found.examples:
        sides = ", ".join(
            f"{name} {each[side]['verdict']} ({each[side]['score']:.4g} / {each[side]['threshold']:.4g})"
            for name, side in ((a, "a"), (b, "b"))
        )
        rows.append(f"  {each['frame']}: {sides}")
    return "\n".join(rows)
