"""`goldline camera`."""

import json
import signal
import threading
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import click

from pipeline.settings import Settings
from workers import logs
from workers.commands import options


@click.command("camera")
@click.argument("source")
@options.config
@click.option("--station", required=True, help="Which station this camera is, as in line-1/top.")
@click.option("--recipe", default="default", show_default=True, help="The product being made.")
@click.option("--rate", default=10.0, show_default=True, help="Frames a second; 0 is as fast as it goes.")
@click.option("--count", type=int, help="Stop after this many frames.")
@click.option("--deadline-ms", type=click.IntRange(min=1), help="From capture to gate; the station's unless given.")
@click.option("--loop", is_flag=True, help="Begin again at the end.")
@click.option("--shuffle", is_flag=True, help="A folder's pictures in random order.")
@click.option("--seed", default=0, show_default=True, help="Of the order.")
@click.option(
    "--part-ids",
    type=click.Choice(["number", "filename"]),
    default="number",
    show_default=True,
    help="What a part is called: its number, counted from 0, or its picture's file name up to the first dot.",
)
@click.option("--part-prefix", help="Before the number or name, with a dash. For numbers random unless given.")
@click.option("--manifest", type=click.Path(path_type=Path), help="Append what was sent as which frame, as JSON lines.")
@options.metrics_port
@options.as_json
@click.pass_context
def command(
    ctx: click.Context,
    source: str,
    settings: Settings,
    station: str,
    recipe: str,
    rate: float,
    count: int | None,
    deadline_ms: int | None,
    loop: bool,
    shuffle: bool,
    seed: int,
    part_ids: Literal["number", "filename"],
    part_prefix: str | None,
    manifest: Path | None,
    metrics_port: int | None,
    as_json: bool,
) -> None:
    """Send SOURCE as frames of a station: a folder, a picture, a video file, or /dev/videoN.

    A picture of up to [frames] inline_max_bytes travels in its message. A larger one, up to max_bytes, is written to
    the first of [frames] roots, a shared folder or Redis, and its message refers to it.

    Delivery is confirmed: the count at the end is what the broker accepted. Ctrl-C ends it in order. Video files and
    cameras need the extra `goldline[video]`.

    Cameras that see the same parts must call them the same, for a gate that fuses their verdicts ([gate] fuse): with
    one --part-prefix they do by the order of their pictures, with --part-ids filename by the pictures' names.

    \b
    Examples:
      goldline camera photos/ --station line-1/top --rate 5 --loop --shuffle
      goldline camera top/ --station line-1/top --part-ids filename
    """
    logs.set_up("info", process="camera", station=station)
    from workers import spans  # noqa: PLC0415
    from workers.camera import Camera, PartIds  # noqa: PLC0415
    from workers.health import Health  # noqa: PLC0415
    from workers.metrics import CameraMetrics  # noqa: PLC0415
    from workers.shots import shots  # noqa: PLC0415

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    naming, tracing = PartIds(by=part_ids, prefix=part_prefix), spans.opened(settings, "camera")
    camera = Camera(settings, station, recipe=recipe, deadline_ms=deadline_ms, part_ids=naming, spans=tracing)
    Health(CameraMetrics(settings, station, camera.sent), settings, port=metrics_port).start()
    with manifest.open("a", encoding="utf-8", buffering=1) if manifest else nullcontext() as note:
        camera.play(
            shots(source, loop=loop, shuffle=shuffle, seed=seed),
            rate=rate,
            count=count,
            stopped=stop.is_set,
            on_shot=lambda shot, frame_id: (
                note.write(json.dumps({"frame_id": frame_id, "path": shot.name}) + "\n") if note else None
            ),
        )
    sent = camera.close()
    tracing.close()
    if as_json:
        click.echo(json.dumps(asdict(sent)))
    else:
        click.echo(
            f"{sent.accepted} of {sent.sent} frames accepted by the broker, "
            f"{sent.failed} failed, {sent.too_large} too large"
        )
    ctx.exit(0 if sent.failed == 0 and sent.too_large == 0 else 1)
