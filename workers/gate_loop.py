"""Feeds a `Gate` from Kafka and from a trigger, and carries its actions out."""

import json
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

from kafka import KafkaConsumer

from pipeline.errors import ConfigError
from pipeline.settings import Settings
from workers import clients, logs, messages, pauses, topics, wire
from workers.gate import Action, Counts, Gate
from workers.health import Heart
from workers.hooks import Hooks
from workers.metrics import GateMetrics

log = logs.get(__name__)

_POLL_S = 0.02
_TRACES = 20_000


def run(
    settings: Settings,
    stations: frozenset[str],
    *,
    write: Callable[[Action], None],
    stopped: Callable[[], bool],
    trigger: IO[str] | None = None,
    metrics: GateMetrics | None = None,
    heart: Heart | None = None,
) -> Counts:
    """Stand at the gate until `stopped`.

    Args:
        settings: of the line.
        stations: those this gate stands behind.
        write: told of each action.
        stopped: asked many times a second.
        trigger: instead of the frames' messages, lines of JSON, {"part_id", "station"?}, one for each part as it
            passes the barrier; its deadline runs from the line's arrival.
        metrics: told of what the gate does.
        heart: beats while it does.

    Raises:
        ConfigError: no broker answers, or `[gate] fuse` does not fit these stations.
    """
    metrics, heart = metrics or GateMetrics(settings), heart or Heart()
    gate, hooks, traces = Gate(settings, stations, by_part=trigger is not None), Hooks(settings.gate, metrics), Traces()
    metrics.watch(gate)
    results = clients.tail(settings.kafka, topics.name(settings.kafka.prefix, "results"))
    sightings: deque[Callable[[], Action | None]] = deque()
    if trigger:
        _beside(_triggers, settings, gate, stations, trigger, sightings)
    else:
        frames = clients.tail(
            settings.kafka,
            topics.name(settings.kafka.prefix, "frames"),
            fetch_max_bytes=2 * topics.frame_max_bytes(settings),
        )
        _beside(_frames, settings, gate, frames, sightings, stopped, traces)
    pauses.settle()
    log.info("gate started", stations=sorted(stations), trigger=trigger is not None)
    heard = time.monotonic()
    try:
        while not stopped():
            heart.beat()
            actions = []
            for record in clients.records(results, timeout_ms=round(gate.until_next_s(_POLL_S) * 1000)):
                heard = time.monotonic()
                metrics.heard()
                result = messages.decode_result(record.value)
                if result and result.station in stations:
                    traces.note(result.frame_id, wire.header(record.headers, "traceparent"))
                action = gate.see_result(result) if result else None
                if action:
                    actions.append(action)
            while sightings:
                heard = time.monotonic()
                metrics.heard()
                at_once = sightings.popleft()()
                actions += [at_once] if at_once else []
            actions += gate.expire()
            for action in map(traces.mark, actions):
                metrics.acted(action)
                write(action)
                hooks.call(action)
            if time.monotonic() - heard > settings.gate.silence_s:
                log.warning("silence: no frame and no result", seconds=settings.gate.silence_s)
                heard = time.monotonic()
    finally:
        hooks.close()
        results.close()
    return gate.counts


class Traces:
    """The trace of each frame that the gate was told of lately, so that its log leads back to camera and worker."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, str] = OrderedDict()

    def note(self, frame_id: str, traceparent: str | None) -> None:
        """A message of this frame had this header; from any thread."""
        found = wire.traceparent_of(traceparent)
        if found is not None:
            self._of[frame_id] = found
            if len(self._of) > _TRACES:
                self._of.popitem(last=False)

    def mark(self, action: Action) -> Action:
        """The action with the trace of the frame that decided."""
        return replace(action, traceparent=self._of.get(action.frame_id))


def _beside(target: Callable[..., None], *arguments: object) -> None:
    def run_and_tell() -> None:
        try:
            target(*arguments)
        except Exception:
            log.exception("parts are no longer announced: only verdicts tell of them")

    threading.Thread(target=run_and_tell, daemon=True).start()


def _frames(
    settings: Settings,
    gate: Gate,
    client: KafkaConsumer,
    sightings: deque[Callable[[], Action | None]],
    stopped: Callable[[], bool],
    traces: "Traces",
) -> None:
    """Parts as the cameras announce them. The pictures come along: Kafka has no way to read headers alone."""
    while not stopped():
        for record in clients.records(client):
            arrival = wire.read_frame(record, settings)
            traces.note(arrival.frame.frame_id, arrival.traceparent)
            sightings.append(lambda arrival=arrival: gate.see_frame(arrival))  # type: ignore[misc]
    client.close()


def _triggers(
    settings: Settings,
    gate: Gate,
    stations: frozenset[str],
    lines: IO[str],
    sightings: deque[Callable[[], Action | None]],
) -> None:
    """Parts as a light barrier or a PLC announces them, one JSON object a line."""
    one_decision = len(stations) == 1 or settings.gate.fuse != "none"
    any_station = next(iter(stations)) if one_decision else None
    for line in lines:
        try:
            said = json.loads(line)
            part_id, station = str(said["part_id"]), str(said.get("station") or any_station or "")
        except (ValueError, KeyError, TypeError, AttributeError):
            log.error("a trigger line is not JSON with a part_id", line=line[:200])
            continue
        if station not in stations:
            log.error("a trigger names no station of this gate", station=station)
            continue
        now = time.time()
        sightings.append(lambda p=part_id, s=station, at=now: gate.see_trigger(p, s, at))  # type: ignore[misc]
    log.error("the trigger ended: no further part is known, and the actuator stays at rest")


def writer(output: Path | None, *, as_json: bool) -> Callable[[Action], None]:
    """Where actions go: JSON lines to a file, or to standard output, or plain lines for people.

    Raises:
        ConfigError: the file cannot be written.
    """
    if output:
        try:
            file = output.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise ConfigError(f"cannot write {output}: {error.strerror}") from error
        return lambda action: _line(file, json.dumps(action.body()))
    if as_json:
        return lambda action: _line(sys.stdout, json.dumps(action.body()))
    return lambda a: _line(
        sys.stdout,
        f"{a.action.upper():6} {a.station}  part {a.part_id or '-'}  {a.why}"
        + (f" ({a.reason})" if a.reason else "")
        + f"  {a.slack_ms:.0f} ms to spare"
        + "".join(f"  [{name}: {f.action or '-'}]" for name, f in a.stations.items() if len(a.stations) > 1),
    )


def _line(file: IO[str], text: str) -> None:
    file.write(text + "\n")
    file.flush()
