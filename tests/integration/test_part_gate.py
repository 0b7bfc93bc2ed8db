"""Parts that two stations see come through a real broker to one action each, by `goldline gate` as a process."""

import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kafka.errors import IllegalStateError

from workers import clients, gate_loop, messages, topics, wire
from workers.gate import Gate
from workers.rig import Process, Rig

pytestmark = pytest.mark.kafka

TOP, SIDE = "line-1/top", "line-1/side"
LONG_MS, SHORT_MS = 60_000, 1_500


class Line:
    """Publishes what cameras and workers would, with a gate that reads it."""

    def __init__(self, rig: Rig, *arguments: str) -> None:
        self.rig = rig
        self.output = rig.directory / "actions.jsonl"
        gate = ("gate", "--config", str(rig.config), "--station", TOP, "--station", SIDE)
        self.gate: Process = rig.run("gate", *gate, "--output", str(self.output), *arguments)
        self.producer = clients.producer(rig.settings.kafka)
        self._captured: dict[str, datetime] = {}

    def frame(self, part_id: str, station: str, *, number: int = 1, captured_ago_s: float = 0.0) -> None:
        frame_id = f"{part_id}-{station}-{number}"
        captured_at = self._captured.setdefault(frame_id, wire.now() - timedelta(seconds=captured_ago_s))
        headers = wire.frame_headers(
            frame_id=frame_id, part_id=part_id, source="test", captured_at=captured_at, content_type="image/jpeg"
        )
        self._send("frames", station, b"no picture: nobody looks", headers)

    def result(self, part_id: str, station: str, verdict: str, *, number: int = 1) -> None:
        frame_id = f"{part_id}-{station}-{number}"
        now = wire.now()
        captured_at = self._captured.setdefault(frame_id, now)
        body: dict[str, Any] = {"verdict": verdict, "reason": "error" if verdict == "no_decision" else None}
        result = messages.Result(
            result_id=messages.result_id(frame_id, None),
            frame_id=frame_id,
            part_id=part_id,
            station=station,
            recipe="default",
            captured_at=captured_at,
            deadline_at=captured_at + timedelta(milliseconds=self.rig.settings.deadline_ms(station)),
            decided_at=now,
            **body,
        )
        self._send("results", station, messages.encode_result(result), [])

    def _send(self, kind: str, station: str, value: bytes, headers: wire.Headers) -> None:
        self.producer.send(
            topics.name(self.rig.prefix, kind),
            key=station.encode(),
            value=value,
            headers=headers,
            partition=self.rig.settings.partitions()[station],
        ).get(timeout=30)

    def actions(self, count: int) -> list[dict[str, Any]]:
        """Waits until the gate has taken so many actions; all that it has taken by then."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            lines = self.output.read_text().splitlines() if self.output.exists() else []
            if len(lines) >= count:
                return [json.loads(line) for line in lines]
            self.gate.check()
            time.sleep(0.05)
        pytest.fail(f"not {count} actions: {self.gate.last_words()}")

    def end(self) -> dict[str, Any]:
        """What the gate counted, once it ended well."""
        self.producer.close()
        assert self.gate.end() == 0, self.gate.last_words()
        ended: dict[str, Any] = json.loads(self.gate.last_words(5_000).splitlines()[-1])
        return ended


@pytest.fixture
def make_rig(tmp_path: Path, broker: str) -> Iterator[Callable[..., Rig]]:
    opened: list[Rig] = []

    def make(*, part_deadline_ms: int, **gate: Any) -> Rig:
        tree = {
            "gate": {"fuse": "any-reject", "part_deadline_ms": part_deadline_ms, **gate},
            "stations": {station: {"deadline_ms": part_deadline_ms} for station in (TOP, SIDE)},
        }
        opened.append(Rig(tmp_path / f"line-{len(opened)}", tree, address=broker))
        return opened[-1].__enter__()

    yield make
    for rig in opened:
        rig.close()


def test_each_part_of_two_stations_has_one_action(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(part_deadline_ms=LONG_MS)
    line = Line(rig)
    rig.wait_for(line.gate, "gate started")
    for part_id in ("good", "bad", "twice"):
        line.frame(part_id, TOP)
        line.result(part_id, TOP, "pass")
    for part_id, verdict in (("twice", "pass"), ("bad", "reject"), ("good", "pass")):
        line.result(part_id, SIDE, verdict)
        line.frame(part_id, SIDE)
    line.result("early", TOP, "reject")
    line.frame("early", SIDE)
    line.result("early", SIDE, "pass")
    line.result("twice", SIDE, "reject")
    # Its camera took it so long ago that the line has had all of its time.
    line.frame("missing", TOP, captured_ago_s=LONG_MS / 1000 + 1)
    line.result("missing", TOP, "pass")
    line.actions(5)
    # Each station's results come in order: with these two, all that came before them was read.
    for station in (TOP, SIDE):
        line.result("last", station, "pass")
    actions = line.actions(6)
    ended = line.end()
    acted = {a["part_id"]: a for a in actions}
    assert len(acted) == len(actions) == len(line.output.read_text().splitlines()) == 6
    assert {part_id: (a["action"], a["why"]) for part_id, a in acted.items()} == {
        "good": ("pass", "verdict"),
        "bad": ("reject", "verdict"),
        "twice": ("pass", "verdict"),
        "early": ("reject", "verdict"),
        "missing": ("reject", "no_verdict_in_time"),
        "last": ("pass", "verdict"),
    }
    assert {name: s["action"] for name, s in acted["bad"]["stations"].items()} == {TOP: "pass", SIDE: "reject"}
    assert acted["bad"]["frame_id"] == f"bad-{SIDE}-1"
    wanted = {"parts": 6, "on_time": 5, "defaulted": 1, "passed": 3, "rejected": 3, "late": 1, "repeated": 2}
    assert {name: ended[name] for name in wanted} == wanted


def test_a_trigger_tells_of_parts_that_no_camera_saw(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(part_deadline_ms=SHORT_MS, fuse="weighted", reject_at=2.0)
    fifo = rig.directory / "barrier.fifo"
    os.mkfifo(fifo)
    line = Line(rig, "--trigger", str(fifo))
    with fifo.open("w", buffering=1) as barrier:
        rig.wait_for(line.gate, "gate started")
        line.result("light", TOP, "reject")
        line.result("heavy", TOP, "reject")
        line.result("heavy", SIDE, "reject")
        line.result("heavy", SIDE, "pass", number=2)
        for part_id in ("unseen", "heavy", "heavy"):
            barrier.write(json.dumps({"part_id": part_id}) + "\n")
        barrier.write("nonsense\n")
        actions = {a["part_id"]: a for a in line.actions(2)}
        ended = line.end()  # while somebody could still write
    assert len(line.output.read_text().splitlines()) == 2, "light was never announced"
    assert (actions["unseen"]["action"], actions["unseen"]["why"]) == ("reject", "no_verdict_in_time")
    assert (actions["heavy"]["action"], actions["heavy"]["part_id"]) == ("reject", "heavy")
    assert ended["parts"] == 2


def test_without_results_a_gate_ends_instead_of_standing_there_deaf(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(part_deadline_ms=SHORT_MS)
    client = clients.tail(rig.settings.kafka, topics.name(rig.prefix, "results"))
    client.close()
    gate = Gate(rig.settings, frozenset({TOP, SIDE}))
    events = gate_loop.Events()
    gate_loop._results(gate, gate_loop.Traces(frozenset({TOP, SIDE})), client, events, lambda: False)
    with pytest.raises(IllegalStateError):
        events.get_nowait()()
