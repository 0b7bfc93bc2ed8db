"""`goldline results`."""

import signal
import threading

import click

from pipeline.settings import Settings
from workers.commands import options
from workers.messages import Result


@click.command("results")
@options.config
@click.option("--station", help="Of this station only.")
@click.option("--from-start", is_flag=True, help="From the oldest there is, instead of from now.")
@click.option("--count", type=int, help="Stop after this many.")
@click.option("--until-end", is_flag=True, help="Stop at the newest there is.")
@options.as_json
def command(
    settings: Settings,
    station: str | None,
    from_start: bool,
    count: int | None,
    until_end: bool,
    as_json: bool,
) -> None:
    """Follow the verdicts, as a table, or with --json as the messages are.

    Where two workers raced, the first result of a frame is its verdict: repeats are left out.
    """
    from workers import clients, messages, topics  # noqa: PLC0415

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    client = clients.tail(settings.kafka, topics.name(settings.kafka.prefix, "results"), from_start=from_start)
    ends = client.end_offsets(client.assignment()) if until_end else {}
    seen: set[str] = set()
    shown = 0
    if not as_json:
        click.echo(f"{'decided at':13} {'verdict':11} {'score':>8} {'limit':>8} {'p':>6} {'ms':>6}  station  frame")
    while not stop.is_set() and (count is None or shown < count):
        for record in clients.records(client):
            result = messages.decode_result(record.value)
            if result is None or result.frame_id in seen or (station and result.station != station):
                continue
            seen.add(result.frame_id)
            shown += 1
            click.echo(messages.encode_result(result).decode() if as_json else _row(result))
            if count is not None and shown >= count:
                break
        if until_end and all(client.position(tp) >= end for tp, end in ends.items()):
            break
    client.close()


def _row(result: Result) -> str:
    at = result.decided_at.strftime("%H:%M:%S.%f")[:12]
    score = (
        f"{result.score:8.3f} {result.threshold:8.3f} {result.p_value:6.3f}" if result.score is not None else " " * 24
    )
    why = f" ({result.reason}{': ' + result.detail if result.detail else ''})" if result.reason else ""
    late = " LATE" if result.late else ""
    return (
        f"{at:13} {result.verdict:11} {score} {result.timings_ms.total:6.1f}  {result.station or '-'}  "
        f"{result.frame_id}{why}{late}"
    )
