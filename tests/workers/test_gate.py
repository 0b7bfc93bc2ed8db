"""The gate acts once for each part, by its deadline, whatever happens upstream."""

import itertools
import json
import random
from datetime import datetime

import pytest

from pipeline import settings as line
from tests.gate_messages import DEADLINE_S, LAX, SIDE, START, TOP, Clock, at, counts, frame, result
from workers import wire
from workers.gate import Gate

SETTINGS = line.build({"stations": {TOP: {}, SIDE: {}, LAX: {"on_no_decision": "pass"}}})


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def gate(clock):
    return Gate(SETTINGS, frozenset({TOP, SIDE, LAX}), clock=clock)


@pytest.mark.parametrize("verdict", ["pass", "reject"])
def test_a_verdict_in_time_is_carried_out(gate, clock, verdict):
    gate.see_frame(frame())
    assert gate.waiting == 1
    clock.at += 0.1
    action = gate.see_result(result(verdict=verdict))
    assert (action.action, action.why, action.reason, action.score) == (verdict, "verdict", None, 1.5)
    assert (action.part_id, action.frame_id, action.station) == ("p", "f", TOP)
    assert action.slack_ms == pytest.approx(200, abs=0.01)
    assert datetime.fromisoformat(action.decided_at) == at(0.1)
    clock.at += 10
    assert gate.expire() == []
    assert gate.waiting == 0
    assert counts(gate) == {"parts": 1, "on_time": 1, "passed" if verdict == "pass" else "rejected": 1}


@pytest.mark.parametrize(("station", "default"), [(TOP, "reject"), (LAX, "pass")])
def test_no_decision_in_time_is_the_default(gate, station, default):
    gate.see_frame(frame(station=station))
    action = gate.see_result(result(verdict="no_decision", reason="bad_frame", station=station))
    assert (action.action, action.why, action.reason) == (default, "no_decision", "bad_frame")
    assert counts(gate)["no_decision"] == counts(gate)["on_time"] == 1


@pytest.mark.parametrize(("station", "default"), [(TOP, "reject"), (LAX, "pass")])
def test_nothing_by_the_deadline_is_the_default(gate, clock, station, default):
    gate.see_frame(frame(station=station))
    clock.at += DEADLINE_S
    assert gate.expire() == [], "on the deadline is in time"
    clock.at += 0.01
    (action,) = gate.expire()
    assert (action.action, action.why, action.score) == (default, "no_verdict_in_time", None)
    assert action.slack_ms == pytest.approx(-10, abs=0.01)
    assert gate.expire() == []
    assert counts(gate) == {"parts": 1, "defaulted": 1, f"{default}ed": 1}


def test_a_late_result_never_reverses_and_is_counted_once(gate, clock):
    gate.see_frame(frame())
    clock.at += 1
    assert [a.action for a in gate.expire()] == ["reject"]
    assert gate.see_result(result()) is None
    assert counts(gate) == {"parts": 1, "defaulted": 1, "rejected": 1, "late": 1}
    assert gate.see_result(result()) is None
    assert counts(gate) == {"parts": 1, "defaulted": 1, "rejected": 1, "late": 1, "repeated": 1}


def test_a_result_between_the_deadline_and_the_next_look_at_the_clock_is_late(gate, clock):
    gate.see_frame(frame())
    clock.at += DEADLINE_S + 0.001
    action = gate.see_result(result())
    assert (action.action, action.why, action.score) == ("reject", "no_verdict_in_time", None)
    assert gate.expire() == []
    assert counts(gate) == {"parts": 1, "defaulted": 1, "rejected": 1, "late": 1}


def test_repeats_change_nothing(gate):
    gate.see_frame(frame())
    assert gate.see_result(result(verdict="reject")).action == "reject"
    assert gate.see_result(result(verdict="pass")) is None
    assert gate.see_result(result(verdict="no_decision", reason="late")) is None
    gate.see_frame(frame())
    assert gate.waiting == 0, "a frame redelivered is no new part"
    assert counts(gate) == {"parts": 1, "on_time": 1, "rejected": 1, "repeated": 2}


def test_a_frame_twice_is_one_part(gate, clock):
    gate.see_frame(frame())
    gate.see_frame(frame(deadline_s=5.0))
    clock.at += 1
    assert len(gate.expire()) == 1, "by the first deadline"
    clock.at += 10
    assert gate.expire() == []


def test_a_result_before_its_frame_is_the_parts_action(gate, clock):
    assert gate.see_result(result()).action == "pass"
    gate.see_frame(frame())
    clock.at += 10
    assert gate.expire() == []
    assert counts(gate) == {"parts": 1, "on_time": 1, "passed": 1}


def test_a_result_alone_and_late_is_the_default(gate, clock):
    clock.at += 1
    assert gate.see_result(result()).action == "reject"
    assert counts(gate) == {"parts": 1, "defaulted": 1, "rejected": 1, "late": 1}


def test_a_result_cannot_put_off_a_deadline_that_is_known(gate, clock):
    gate.see_frame(frame())
    clock.at += 1
    assert gate.see_result(result(deadline_s=3600.0)).action == "reject"


@pytest.mark.parametrize("station", ["line-2/top", None, ""])
def test_other_stations_are_not_this_gates(clock, station):
    gate = Gate(SETTINGS, frozenset({TOP}), clock=clock)
    gate.see_frame(frame(station=station or "nonsense"))
    gate.see_frame(frame(station=SIDE))
    assert trigger(gate, "p", station=SIDE) is None
    assert gate.see_result(result(station=station)) is None
    clock.at += 10
    assert gate.expire() == []
    assert counts(gate) == {}


def test_two_stations_may_use_the_same_frame_ids(gate, clock):
    """Cameras of other makers count from 1: the parts are two all the same."""
    gate.see_frame(frame("000001", station=TOP, part_id="a"))
    gate.see_frame(frame("000001", station=SIDE, part_id="b"))
    assert gate.waiting == 2
    assert gate.see_result(result("000001", "pass", station=TOP, part_id="a")).part_id == "a"
    action = gate.see_result(result("000001", "reject", station=SIDE, part_id="b"))
    assert (action.station, action.action) == (SIDE, "reject")
    assert counts(gate)["parts"] == 2


def test_defaults_come_in_the_order_of_deadlines(gate, clock):
    for name, deadline_s in (("c", 0.3), ("a", 0.1), ("b", 0.2)):
        gate.see_frame(frame(name, deadline_s=deadline_s))
    clock.at += 0.25
    assert [a.frame_id for a in gate.expire()] == ["a", "b"]
    clock.at += 0.25
    assert [a.frame_id for a in gate.expire()] == ["c"]


def test_the_gate_knows_when_to_look_again(gate, clock):
    assert gate.until_next_s(0.5) == 0.5
    gate.see_frame(frame(deadline_s=0.3))
    assert gate.until_next_s(0.5) == pytest.approx(0.3, abs=1e-4)
    assert gate.until_next_s(0.02) == 0.02
    clock.at += 5
    assert gate.until_next_s(0.5) == 0.0
    gate.expire()
    assert gate.until_next_s(0.5) == 0.5


def test_what_does_not_pass_is_counted_in_a_row(gate, clock):
    seen = []
    for i, verdict in enumerate(["reject", "no_decision", None, "pass", "reject"]):
        gate.see_frame(frame(str(i), deadline_s=0.1))
        if verdict:
            seen.append(gate.see_result(result(str(i), verdict, reason="error" if verdict == "no_decision" else None)))
        else:
            clock.at += 0.2
            seen += gate.expire()
            clock.at -= 0.2
    assert [a.in_a_row for a in seen] == [1, 2, 3, 0, 1]


def test_a_pass_by_default_does_not_end_the_row(gate, clock):
    gate.see_result(result("a", "reject", station=LAX))
    assert gate.see_result(result("b", "no_decision", reason="late", station=LAX)).action == "pass"
    assert gate.in_a_row == 2


def test_a_frame_that_cannot_be_inspected_is_a_part_all_the_same(gate, clock):
    broken = frame()
    empty = wire.read_frame(
        wire.Record(
            topic="goldline.frames",
            partition=0,
            offset=9,
            timestamp_ms=round(START * 1000),
            key=TOP.encode(),
            value=None,
            headers=broken.record.headers,
        ),
        SETTINGS,
    )
    assert empty.problem
    gate.see_frame(empty)
    clock.at += 1
    assert len(gate.expire()) == 1


# With a trigger, which knows parts and no frames


@pytest.fixture
def barrier(clock):
    return Gate(SETTINGS, frozenset({TOP, SIDE}), by_part=True, clock=clock)


def trigger(gate, part_id, *, station=TOP, after_s=0.0):
    return gate.see_trigger(part_id, station, START + after_s)


def test_a_trigger_and_a_result_meet_by_part(barrier):
    trigger(barrier, "p-1")
    action = barrier.see_result(result("any-frame", part_id="p-1"))
    assert (action.action, action.part_id, action.frame_id) == ("pass", "p-1", "any-frame")
    assert barrier.waiting == 0


def test_a_part_that_no_camera_saw_is_defaulted(barrier, clock):
    trigger(barrier, "unseen")
    clock.at += 1
    (action,) = barrier.expire()
    assert (action.action, action.part_id, action.why) == ("reject", "unseen", "no_verdict_in_time")


def test_the_triggers_deadline_counts(barrier, clock):
    trigger(barrier, "p-1")
    clock.at += 0.4
    assert barrier.see_result(result(part_id="p-1", deadline_s=9.0)).action == "reject"
    assert counts(barrier)["late"] == 1


def test_a_part_at_two_stations_is_acted_on_at_each(barrier):
    trigger(barrier, "p-1", station=TOP)
    trigger(barrier, "p-1", station=SIDE)
    assert barrier.see_result(result("a", "pass", part_id="p-1", station=TOP)).station == TOP
    assert barrier.see_result(result("b", "reject", part_id="p-1", station=SIDE)).station == SIDE


def test_a_result_without_a_part_is_none_of_a_triggers_parts(barrier, clock):
    trigger(barrier, "p-1")
    assert barrier.see_result(result("p-1", "pass", part_id=None)).part_id is None
    clock.at += 1
    assert [a.part_id for a in barrier.expire()] == ["p-1"]
    assert counts(barrier)["parts"] == 2


def test_an_action_is_json(gate):
    action = gate.see_result(result('"; rm -rf / #', part_id="<b>"))
    assert json.loads(json.dumps(action.body()))["part_id"] == "<b>"
    assert set(action.body()) == {
        *("part_id", "frame_id", "station", "action", "why", "reason", "score", "decided_at", "slack_ms", "in_a_row"),
        *("stations", "traceparent"),
    }


def test_whatever_the_order_each_part_is_acted_on_once_and_the_counts_add_up(clock):
    chance = random.Random(7)
    for round_ in range(20):
        clock.at = START
        gate = Gate(SETTINGS, frozenset({TOP, LAX}), clock=clock)
        moments = []
        for i in range(100):
            deadline_s = chance.uniform(0.05, 0.5)
            station = chance.choice([TOP, LAX, SIDE])
            same = {"station": station, "part_id": f"p{i}", "deadline_s": deadline_s}
            verdict = chance.choice(["pass", "reject", "no_decision"])
            reason = "error" if verdict == "no_decision" else None
            what = [("frame", frame(str(i), **same))] * chance.randint(0, 2)
            what += [("result", result(str(i), verdict, reason=reason, **same))] * chance.randint(0, 3)
            moments += [(chance.uniform(0, 0.6), *each) for each in what]
        known = {m[2].frame.frame_id if m[1] == "frame" else m[2].frame_id for m in moments if station_of(m) != SIDE}
        actions = []
        for moment, kind, what in sorted(moments, key=lambda m: m[0]):
            clock.at = START + moment
            if kind == "frame":
                gate.see_frame(what)
            elif action := gate.see_result(what):
                actions.append(action)
            if chance.random() < 0.3:
                actions += gate.expire()
        clock.at = START + 10
        actions += gate.expire()
        assert sorted(a.frame_id for a in actions) == sorted(known), round_
        assert gate.waiting == 0
        assert counts(gate)["parts"] == len(actions)
        assert all(a.slack_ms >= 0 for a in actions if a.why != "no_verdict_in_time")
        assert all(a.action == "reject" for a in actions if a.why != "verdict" and a.station == TOP)
        results = sum(1 for m in moments if m[1] == "result" and station_of(m) != SIDE)
        c = gate.counts
        assert c.on_time + c.late + c.repeated == results, "every result is counted exactly once"


def station_of(moment):
    return moment[2].frame.station if moment[1] == "frame" else moment[2].station


def test_what_was_decided_long_ago_is_forgotten_in_order(clock, monkeypatch):
    monkeypatch.setattr("workers.gate._REMEMBERED", 3)
    gate = Gate(SETTINGS, frozenset({TOP}), clock=clock)
    for i in itertools.islice(itertools.count(), 5):
        gate.see_result(result(str(i)))
    assert gate.see_result(result("4")) is None
    assert gate.see_result(result("0")) is not None


def test_a_verdict_before_its_part_waits_for_the_part(barrier, clock):
    assert barrier.see_result(result("f-1", part_id="p-1")) is None
    assert barrier.counts.parts == 0
    action = trigger(barrier, "p-1")
    assert (action.action, action.frame_id, action.why) == ("pass", "f-1", "verdict")
    clock.at += 10
    assert barrier.expire() == []


def test_of_two_early_verdicts_the_first_stands(barrier):
    barrier.see_result(result("f-1", "reject", part_id="p-1"))
    barrier.see_result(result("f-1", "pass", part_id="p-1"))
    assert trigger(barrier, "p-1").action == "reject"
