"""Feeds a `Gate` from Kafka and from a trigger, and carries its actions out."""

import json
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, TypeAlias

from kafka import KafkaConsumer

from pipeline.errors import ConfigError
from pipeline.settings import Settings
from workers import clients, logs, messages, pauses, topics, wire
from workers.gate import Action, Counts, Gate
from workers.health import Heart
from workers.hooks import Hooks
from workers.metrics import GateMetrics
from workers.spans import Spans
from workers.trigger import lines
from workers.wire import Arrival, Record

log = logs.get(__name__)

Events: TypeAlias = SimpleQueue[Callable[[], Action | None]]

_LOOK_S = 0.2  # so often `stopped` and the silence are looked at; deadlines and events wake the loop themselves
# A fetch waits at the broker until there is something, so that a long wait costs no latency: short ones cost an idle
# gate a tenth of a core.
_FETCH_WAIT_MS = 500
_AT_ONCE = 500
_TRACES = 20_000


def run(
    settings: Settings,
    stations: frozenset[str],
    *,
    write: Callable[[Action], None],
    stopped: Callable[[], bool],
    trigger: int | None = None,
    metrics: GateMetrics | None = None,
    heart: Heart | None = None,
    spans: Spans | None = None,
) -> Counts:
    """Stand at the gate until `stopped`.

    Args:
        settings: of the line.
        stations: those this gate stands behind.
        write: told of each action.
        stopped: asked many times a second.
        trigger: instead of the frames' messages, a descriptor of lines of JSON, {"part_id", "station"?}, one for each
            part as it passes the barrier; its deadline runs from the line's arrival.
        metrics: told of what the gate does.
        heart: beats while it does.
        spans: told of each action too.

    Raises:
        ConfigError: no broker answers, or `[gate] fuse` does not fit these stations.
    """
    metrics, heart, spans = metrics or GateMetrics(settings), heart or Heart(), spans or Spans(None, process="gate")
    gate, hooks = Gate(settings, stations, by_part=trigger is not None), Hooks(settings.gate, metrics)
    events, traces = Events(), Traces(stations)
    metrics.watch(gate)
    results = _tail(settings, "results")
    if trigger is not None:
        _beside(_triggers, settings, gate, stations, trigger, events, stopped)
    else:
        frames = _tail(settings, "frames", fetch_max_bytes=2 * topics.frame_max_bytes(settings))
        _beside(_frames, settings, gate, traces, frames, events, stopped)
    threading.Thread(target=_results, args=(gate, traces, results, events, stopped), daemon=True).start()
    pauses.settle()
    log.info("gate started", stations=sorted(stations), trigger=trigger is not None)
    heard = time.monotonic()
    try:
        while not stopped():
            heart.beat()
            actions = []
            for event in _waited_for(events, within_s=gate.until_next_s(_LOOK_S)):
                heard = time.monotonic()
                metrics.heard()
                at_once = event()
                actions += [at_once] if at_once else []
            actions += gate.expire()
            for action in map(traces.mark, actions):
                metrics.acted(action)
                write(action)
                hooks.call(action)
                spans.decided(action, heard=traces.heard(action.frame_id))
            if time.monotonic() - heard > settings.gate.silence_s:
                log.warning("silence: no frame and no result", seconds=settings.gate.silence_s)
                heard = time.monotonic()
    finally:
        hooks.close()
    return gate.counts


class Traces:
    """The trace of each frame that the gate was told of lately, so that its log leads back to camera and worker.

    Args:
        stations: whose frames count.
    """

    def __init__(self, stations: frozenset[str]) -> None:
        self._stations = stations
        self._of: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def note(self, station: str | None, frame_id: str, traceparent: str | None) -> None:
        """A message of this frame had this trace."""
        if traceparent is not None and station in self._stations:
            self._of[frame_id] = traceparent, self.heard(frame_id) or time.time()
            if len(self._of) > _TRACES:
                self._of.popitem(last=False)

    def mark(self, action: Action) -> Action:
        """The action with the trace of the frame that decided."""
        return replace(action, traceparent=self._of.get(action.frame_id, (None,))[0])

    def heard(self, frame_id: str) -> float | None:
        """When the gate was first told of this frame, in seconds of the epoch."""
        return self._of[frame_id][1] if frame_id in self._of else None


def _tail(settings: Settings, kind: str, *, fetch_max_bytes: int = 1_048_576) -> KafkaConsumer:
    topic = topics.name(settings.kafka.prefix, kind)
    return clients.tail(settings.kafka, topic, fetch_max_bytes=fetch_max_bytes, fetch_wait_ms=_FETCH_WAIT_MS)


def _waited_for(events: Events, *, within_s: float) -> Iterator[Callable[[], Action | None]]:
    """What comes within that time, and all that is there with it; of a flood as much as lets deadlines be kept."""
    try:
        yield events.get(timeout=within_s)
        for _ in range(_AT_ONCE - 1):
            yield events.get_nowait()
    except Empty:
        return


def _beside(target: Callable[..., None], *arguments: object) -> None:
    def run_and_tell() -> None:
        try:
            target(*arguments)
        except Exception:
            log.exception("parts are no longer announced: only verdicts tell of them")

    threading.Thread(target=run_and_tell, daemon=True).start()


def _results(gate: Gate, traces: Traces, client: KafkaConsumer, events: Events, stopped: Callable[[], bool]) -> None:
    """Results as workers publish them; without them there is no gate, so that an error ends it."""
    try:
        while not stopped():
            for record in clients.records(client, timeout_ms=_FETCH_WAIT_MS):
                events.put(partial(_see_result, gate, traces, record))
        client.close()
    except Exception as error:  # noqa: BLE001 - raised where the gate runs
        events.put(partial(_raise, error))


def _see_result(gate: Gate, traces: Traces, record: Record) -> Action | None:
    result = messages.decode_result(record.value)
    if result is None:
        return None
    traces.note(result.station, result.frame_id, wire.traceparent_of(wire.header(record.headers, "traceparent")))
    return gate.see_result(result)


def _raise(error: Exception) -> None:
    raise error


def _see_frame(gate: Gate, traces: Traces, arrival: Arrival) -> None:
    traces.note(arrival.frame.station, arrival.frame.frame_id, arrival.traceparent)
    gate.see_frame(arrival)


def _frames(
    settings: Settings,
    gate: Gate,
    traces: Traces,
    client: KafkaConsumer,
    events: Events,
    stopped: Callable[[], bool],
) -> None:
    """Parts as the cameras announce them. The pictures come along: Kafka has no way to read headers alone."""
    while not stopped():
        for record in clients.records(client, timeout_ms=_FETCH_WAIT_MS):
            events.put(partial(_see_frame, gate, traces, wire.read_frame(record, settings)))
    client.close()


def _triggers(
    settings: Settings,
    gate: Gate,
    stations: frozenset[str],
    source: int,
    events: Events,
    stopped: Callable[[], bool],
) -> None:
    """Parts as a light barrier or a PLC announces them, one JSON object a line."""
    one_decision = len(stations) == 1 or settings.gate.fuse != "none"
    any_station = next(iter(stations)) if one_decision else None
    for line in lines(source, stopped):
        try:
            said = json.loads(line)
            part_id, station = str(said["part_id"]), str(said.get("station") or any_station or "")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            log.error("a trigger line is not JSON with a part_id", line=line[:200])
            continue
        if station not in stations:
            log.error("a trigger names no station of this gate", station=station)
            continue
        events.put(partial(gate.see_trigger, part_id, station, time.time()))
    if not stopped():
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
