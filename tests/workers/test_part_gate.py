"""A part that several stations see is decided once, by what all of them say."""

import itertools
import json

import pytest

from pipeline import settings as line
from pipeline.errors import ConfigError
from tests.gate_messages import BACK, PART_S, SIDE, START, STEP_S, TOP, Clock, announced, counts, fused, sees
from workers.gate import Gate


def expired(gate, clock, *, after_s=PART_S):
    clock.at = START + after_s + STEP_S
    return gate.expire()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def gate(clock):
    return fused(clock)


# What decides


def test_a_part_passes_when_every_station_has_passed_it(gate, clock):
    assert sees(gate, TOP, "pass") is None
    action = sees(gate, SIDE, "pass")
    assert (action.part_id, action.action, action.why, action.reason) == ("p", "pass", "verdict", None)
    assert {name: (f.action, f.why) for name, f in action.stations.items()} == {
        TOP: ("pass", "verdict"),
        SIDE: ("pass", "verdict"),
    }
    assert expired(gate, clock) == []
    assert counts(gate) == {"parts": 1, "on_time": 1, "passed": 1}


@pytest.mark.parametrize("rejecting", [TOP, SIDE])
def test_a_reject_at_any_station_rejects_the_part_at_once(gate, clock, rejecting):
    action = sees(gate, rejecting, "reject")
    assert (action.action, action.why, action.station, action.score) == ("reject", "verdict", rejecting, 1.5)
    assert action.frame_id == f"{rejecting} p"
    other = SIDE if rejecting == TOP else TOP
    assert (action.stations[other].action, action.stations[other].why) == (None, "not_awaited")
    assert sees(gate, other, "pass") is None
    announced(gate, other)
    assert expired(gate, clock) == []
    assert counts(gate) == {"parts": 1, "on_time": 1, "rejected": 1, "repeated": 1}


def test_a_pass_before_a_reject_does_not_save_the_part(gate):
    sees(gate, TOP, "pass")
    assert sees(gate, SIDE, "reject").action == "reject"


@pytest.mark.parametrize(("default", "counted"), [("reject", "rejected"), ("pass", "passed")])
def test_a_station_that_never_saw_the_part_counts_as_its_default(clock, default, counted):
    gate = fused(clock, {TOP: {}, SIDE: {"on_no_decision": default}})
    announced(gate, TOP)
    sees(gate, TOP, "pass")
    (action,) = expired(gate, clock)
    assert (action.action, action.why, action.station, action.frame_id) == (default, "no_verdict_in_time", SIDE, "")
    assert (action.stations[SIDE].action, action.stations[SIDE].frames) == (default, 0)
    assert action.stations[TOP].why == "verdict"
    assert counts(gate) == {"parts": 1, "defaulted": 1, counted: 1}


def test_a_frame_without_a_verdict_counts_as_its_stations_default_and_is_named(gate, clock):
    sees(gate, TOP, "pass", deadline_s=5)
    announced(gate, SIDE, deadline_s=5)
    (action,) = expired(gate, clock)
    assert (action.action, action.why, action.frame_id) == ("reject", "no_verdict_in_time", f"{SIDE} p")


@pytest.mark.parametrize("default", ["reject", "pass"])
def test_an_explicit_no_decision_counts_as_its_stations_default(clock, default):
    gate = fused(clock, {TOP: {"on_no_decision": default}, SIDE: {}})
    action = sees(gate, TOP, "no_decision")
    action = sees(gate, SIDE, "pass") or action
    assert (action.action, action.why, action.reason, action.station) == (default, "no_decision", "error", TOP)
    assert counts(gate)["no_decision"] == counts(gate)["on_time"] == 1
    assert gate.in_a_row == 1


def test_a_default_of_pass_never_outweighs_a_reject(clock):
    gate = fused(clock, {TOP: {"on_no_decision": "pass"}, SIDE: {}})
    assert sees(gate, TOP, "no_decision") is None
    action = sees(gate, SIDE, "reject")
    assert (action.action, action.why, action.station) == ("reject", "verdict", SIDE)


def test_a_part_seen_twice_at_a_station_is_rejected_by_either_frame(clock):
    gate = fused(clock, {TOP: {"frames_per_part": 2}, SIDE: {}})
    sees(gate, TOP, "pass", frame_id="1")
    assert sees(gate, SIDE, "pass") is None, "the second frame is still to come"
    action = sees(gate, TOP, "reject", frame_id="2")
    assert (action.action, action.frame_id, action.stations[TOP].frames) == ("reject", "2", 2)


def test_a_frame_that_comes_twice_is_not_two(clock):
    gate = fused(clock, {TOP: {"frames_per_part": 2}, SIDE: {}})
    sees(gate, TOP, "pass", frame_id="1")
    sees(gate, SIDE, "pass")
    assert sees(gate, TOP, "pass", frame_id="1") is None
    assert sees(gate, TOP, "reject", frame_id="1") is None, "the first result of a frame stands"
    (action,) = expired(gate, clock)
    assert (action.action, action.why, action.stations[TOP].frames) == ("reject", "no_verdict_in_time", 1)
    assert counts(gate) == {"parts": 1, "defaulted": 1, "rejected": 1, "repeated": 2}


def test_a_frame_more_than_expected_is_awaited_once_it_is_announced(gate):
    announced(gate, TOP, frame_id="1")
    announced(gate, TOP, frame_id="2")
    sees(gate, TOP, "pass", frame_id="1")
    assert sees(gate, SIDE, "pass") is None
    assert sees(gate, TOP, "reject", frame_id="2").action == "reject"


def test_two_stations_may_use_the_same_frame_ids(gate):
    assert sees(gate, TOP, "pass", frame_id="000001") is None
    assert sees(gate, SIDE, "pass", frame_id="000001").action == "pass"


# An optional station


def optional(clock):
    return fused(clock, {TOP: {}, SIDE: {"optional": True}})


def test_an_optional_station_may_miss_a_part(clock):
    gate = optional(clock)
    assert sees(gate, TOP, "pass") is None, "it may yet see it"
    (action,) = expired(gate, clock)
    assert (action.action, action.why, action.station) == ("pass", "verdict", TOP)
    assert (action.stations[SIDE].action, action.stations[SIDE].why) == (None, "not_awaited")
    assert gate.in_a_row == 0


def test_an_optional_station_that_has_spoken_is_not_waited_for(clock):
    gate = optional(clock)
    sees(gate, SIDE, "pass")
    assert sees(gate, TOP, "pass").action == "pass"


def test_an_optional_station_that_saw_the_part_counts_like_any_other(clock):
    gate = optional(clock)
    assert sees(gate, SIDE, "reject", "a").action == "reject"
    sees(gate, TOP, "pass", "b")
    announced(gate, SIDE, "b", deadline_s=5)
    (action,) = expired(gate, clock)
    assert (action.part_id, action.action, action.why) == ("b", "reject", "no_verdict_in_time")


# The weighted rule


def weighted(clock, *, reject_at=2.0, **weights):
    stations = {f"line-1/{name}": {"weight": weight} for name, weight in weights.items()}
    return fused(clock, stations, fuse="weighted", reject_at=reject_at)


def test_rejects_are_weighed(clock):
    gate = weighted(clock, top=1, side=1, back=2)
    assert sees(gate, TOP, "reject", "a") is None
    assert sees(gate, SIDE, "reject", "a").action == "reject"
    assert sees(gate, BACK, "reject", "b").action == "reject"
    sees(gate, TOP, "reject", "c")
    assert sees(gate, SIDE, "pass", "c") is None
    action = sees(gate, BACK, "pass", "c")
    assert (action.action, action.why, action.station) == ("pass", "verdict", BACK)
    assert action.stations[TOP].action == "reject"
    assert gate.in_a_row == 0


def test_a_part_passes_as_soon_as_no_reject_could_reach_the_limit(clock):
    gate = weighted(clock, top=1, side=1, back=2)
    sees(gate, BACK, "pass")
    action = sees(gate, TOP, "pass")
    assert (action.action, action.why) == ("pass", "verdict")
    assert action.stations[SIDE].why == "not_awaited"


def test_a_station_without_weight_only_watches(clock):
    gate = weighted(clock, reject_at=1.0, top=1, side=0)
    assert sees(gate, SIDE, "reject") is None
    action = sees(gate, TOP, "pass")
    assert (action.action, action.why, action.stations[SIDE].action) == ("pass", "verdict", "reject")


def test_missing_stations_weigh_as_much_as_rejects(clock):
    gate = weighted(clock, top=1, side=1, back=2)
    sees(gate, TOP, "pass")
    sees(gate, SIDE, "reject")
    (action,) = expired(gate, clock)
    assert (action.action, action.why, action.station) == ("reject", "no_verdict_in_time", BACK)


def test_weights_add_up_as_a_person_adds(clock):
    gate = weighted(clock, reject_at=0.8, top=0.7, side=0.1)
    sees(gate, TOP, "reject")
    assert sees(gate, SIDE, "reject").action == "reject"


@pytest.mark.parametrize(
    ("stations", "rule"),
    [
        ({TOP: {}, SIDE: {}}, {"fuse": "weighted", "reject_at": 3.0}),
        ({TOP: {"weight": 0}}, {"fuse": "weighted"}),
        ({TOP: {}, SIDE: {"optional": True, "weight": 5}}, {"fuse": "weighted", "reject_at": 2.0}),
        ({TOP: {"optional": True}, SIDE: {"optional": True}}, {}),
    ],
)
def test_a_rule_by_which_an_unseen_part_would_pass_is_refused(clock, stations, rule):
    with pytest.raises(ConfigError, match="no camera saw would pass"):
        fused(clock, stations, **rule)


@pytest.mark.parametrize("rule", [{"fuse": "any-reject"}, {"fuse": "weighted", "reject_at": 1.5}])
def test_a_part_that_no_camera_saw_is_rejected(clock, rule):
    gate = fused(clock, by_part=True, **rule)
    gate.see_trigger("unseen", TOP, START)
    (action,) = expired(gate, clock)
    assert (action.part_id, action.action, action.why) == ("unseen", "reject", "no_verdict_in_time")


# Deadlines


def test_until_each_station_has_seen_it_a_part_has_its_whole_time(gate, clock):
    announced(gate, TOP, deadline_s=0.1)
    sees(gate, TOP, "pass", deadline_s=0.1)
    clock.at = START + 0.9
    assert gate.expire() == [], "the next station is further down the line"
    announced(gate, SIDE, captured_s=0.85, deadline_s=0.1)
    assert gate.until_next_s(5) == pytest.approx(0.05, abs=1e-4)
    assert sees(gate, SIDE, "pass", captured_s=0.85, deadline_s=0.1).action == "pass"


def test_the_last_frames_deadline_is_the_parts(gate, clock):
    announced(gate, TOP, deadline_s=0.1)
    announced(gate, SIDE, captured_s=0.2, deadline_s=0.3)
    sees(gate, TOP, "pass", deadline_s=0.1)
    clock.at = START + 0.5
    assert gate.expire() == [], "on the deadline is in time"
    clock.at += STEP_S
    (action,) = gate.expire()
    assert (action.action, action.why, action.station) == ("reject", "no_verdict_in_time", SIDE)
    assert action.slack_ms == pytest.approx(-1000 * STEP_S, abs=0.01)


def test_no_frame_puts_a_part_off_beyond_its_whole_time(gate, clock):
    announced(gate, TOP, deadline_s=30)
    announced(gate, SIDE, captured_s=0.9, deadline_s=30)
    assert len(expired(gate, clock)) == 1


def test_a_part_counts_from_its_first_capture_whichever_message_comes_first(gate, clock):
    clock.at = START + 0.6
    announced(gate, SIDE, captured_s=0.5)
    announced(gate, TOP, captured_s=0.0, deadline_s=5)
    assert gate.until_next_s(5) == pytest.approx(0.4, abs=1e-4)
    clock.at = START + 1.1
    assert len(gate.expire()) == 1


def test_the_parts_time_is_the_longest_stations_unless_it_is_set(clock):
    tree = {"gate": {"fuse": "any-reject"}, "stations": {TOP: {"deadline_ms": 200}, SIDE: {"deadline_ms": 700}}}
    gate = Gate(line.build(tree), frozenset({TOP, SIDE}), clock=clock)
    announced(gate, TOP, deadline_s=0.2)
    assert gate.until_next_s(5) == pytest.approx(0.7, abs=1e-4)


def test_a_station_late_in_time_for_the_part_counts(gate, clock):
    announced(gate, TOP, deadline_s=0.1)
    clock.at = START + 0.5
    assert sees(gate, TOP, "reject", deadline_s=0.1).why == "verdict"


# Late and early, again and again


def test_a_straggler_never_reverses_what_was_done(gate, clock):
    sees(gate, TOP, "pass")
    assert [a.action for a in expired(gate, clock)] == ["reject"]
    assert sees(gate, SIDE, "pass") is None
    assert sees(gate, SIDE, "pass") is None
    announced(gate, SIDE)
    assert expired(gate, clock, after_s=10) == []
    assert counts(gate) == {"parts": 1, "defaulted": 1, "rejected": 1, "late": 1, "repeated": 1}


def test_a_result_between_the_deadline_and_the_next_look_at_the_clock_is_late(gate, clock):
    sees(gate, TOP, "pass")
    clock.at = START + PART_S + 0.001
    action = sees(gate, SIDE, "pass")
    assert (action.action, action.why) == ("reject", "no_verdict_in_time")
    assert expired(gate, clock, after_s=10) == []
    assert counts(gate) == {"parts": 1, "defaulted": 1, "rejected": 1, "late": 1}


def test_one_more_frame_puts_a_part_off_but_not_after_its_deadline(gate, clock):
    for station in (TOP, SIDE):
        announced(gate, station, deadline_s=0.3)
    clock.at = START + 0.29
    announced(gate, TOP, frame_id="third", captured_s=0.2, deadline_s=0.4)
    clock.at = START + 0.59
    assert gate.expire() == []
    clock.at = START + 0.61
    announced(gate, TOP, frame_id="fourth", captured_s=0.6, deadline_s=0.3)
    assert [a.why for a in gate.expire()] == ["no_verdict_in_time"]


def test_a_station_after_an_early_reject_is_no_new_part(gate, clock):
    sees(gate, TOP, "reject")
    clock.at = START + 0.9
    announced(gate, SIDE, captured_s=0.8)
    sees(gate, SIDE, "pass", captured_s=0.8)
    assert gate.waiting == 0
    assert expired(gate, clock, after_s=10) == []
    assert counts(gate)["parts"] == 1


def test_results_before_their_frames_and_frames_before_their_results_are_the_same(gate, clock):
    sees(gate, TOP, "pass", "a")
    announced(gate, TOP, "a")
    announced(gate, SIDE, "b")
    sees(gate, SIDE, "pass", "b")
    assert sees(gate, SIDE, "pass", "a").part_id == "a"
    assert sees(gate, TOP, "pass", "b").part_id == "b"
    announced(gate, SIDE, "a")
    assert expired(gate, clock) == []
    assert counts(gate) == {"parts": 2, "on_time": 2, "passed": 2}


def test_parts_may_overtake_each_other(gate):
    for part_id in "abc":
        sees(gate, TOP, "pass", part_id)
    assert [sees(gate, SIDE, v, p).part_id for p, v in (("c", "pass"), ("a", "reject"), ("b", "pass"))] == [*"cab"]


def test_a_frame_without_a_part_id_is_a_part_that_the_other_stations_missed(gate, clock):
    assert sees(gate, TOP, "pass", None, frame_id="1") is None
    assert sees(gate, SIDE, "pass", None, frame_id="1") is None
    actions = expired(gate, clock)
    assert [(a.part_id, a.action, a.why, a.station) for a in actions] == [
        (None, "reject", "no_verdict_in_time", TOP),
        (None, "reject", "no_verdict_in_time", SIDE),
    ]
    assert sees(gate, TOP, "reject", None, frame_id="2", captured_s=1).frame_id == "2"


def test_a_station_of_another_gate_is_none_of_it(gate):
    assert sees(gate, BACK, "reject") is None
    announced(gate, BACK)
    assert gate.see_trigger("p", BACK, START) is None
    assert gate.waiting == 0


# A trigger


@pytest.fixture
def barrier(clock):
    return fused(clock, by_part=True)


@pytest.mark.parametrize("order", [*itertools.permutations(["trigger", TOP, SIDE])])
def test_a_trigger_and_results_meet_in_any_order(barrier, clock, order):
    actions = [
        barrier.see_trigger("p", TOP, START) if each == "trigger" else sees(barrier, each, "pass") for each in order
    ]
    assert [a.action for a in actions if a] == ["pass"]
    assert actions[-1]
    assert expired(barrier, clock, after_s=10) == []


def test_a_trigger_again_is_no_other_part(barrier, clock):
    barrier.see_trigger("p", TOP, START)
    barrier.see_trigger("p", SIDE, START + 0.4)
    assert barrier.waiting == 1
    assert len(expired(barrier, clock)) == 1, "by the first trigger's deadline"
    assert barrier.see_trigger("p", TOP, START + 1.1) is None
    assert expired(barrier, clock, after_s=10) == []


def test_the_triggers_deadline_counts_and_not_the_frames(barrier, clock):
    sees(barrier, TOP, "pass", deadline_s=0.1)
    clock.at = START + 0.5
    barrier.see_trigger("p", TOP, START + 0.5)
    assert barrier.until_next_s(5) == pytest.approx(PART_S)
    clock.at = START + 1.4
    assert sees(barrier, SIDE, "pass", captured_s=0.4, deadline_s=0.1).action == "pass"


def test_a_trigger_may_stand_far_behind_the_cameras(barrier, clock):
    sees(barrier, TOP, "pass")
    sees(barrier, SIDE, "pass")
    clock.at = START + 59
    assert barrier.see_trigger("p", TOP, clock.at).action == "pass"


def test_verdicts_of_a_part_without_a_trigger_are_not_for_the_next_with_its_id(barrier, clock):
    sees(barrier, TOP, "pass")
    sees(barrier, SIDE, "pass")
    clock.at = START + 61
    assert barrier.see_trigger("p", TOP, clock.at) is None, "another part with that id; nobody has seen it yet"
    assert sees(barrier, TOP, "pass", frame_id="again") is None, "a straggler of the first"
    assert sees(barrier, SIDE, "pass", frame_id="too") is None
    (action,) = expired(barrier, clock, after_s=62)
    assert (action.action, action.why) == ("reject", "no_verdict_in_time")
    assert counts(barrier)["repeated"] == 2


def test_verdicts_are_no_help_once_the_triggers_deadline_has_passed(barrier, clock):
    sees(barrier, TOP, "pass")
    sees(barrier, SIDE, "pass")
    clock.at = START + 2
    assert barrier.see_trigger("p", TOP, START) is None, "the line lay unread for two seconds"
    (action,) = barrier.expire()
    assert (action.action, action.why) == ("reject", "no_verdict_in_time")
    assert sees(barrier, TOP, "pass") is None
    assert counts(barrier) == {"parts": 1, "defaulted": 1, "rejected": 1, "late": 1}


# Ids again, memory, clocks


def test_a_part_id_may_be_used_again(gate, clock):
    sees(gate, TOP, "pass")
    assert sees(gate, SIDE, "reject").action == "reject"
    clock.at = START + 60
    assert sees(gate, TOP, "pass", frame_id="new top", captured_s=60) is None
    assert sees(gate, SIDE, "pass", frame_id="straggler", captured_s=0.1) is None, "of the first part"
    assert gate.waiting == 1
    assert sees(gate, SIDE, "pass", frame_id="new side", captured_s=60).action == "pass"
    assert counts(gate) == {"parts": 2, "on_time": 2, "rejected": 1, "passed": 1, "repeated": 1}


@pytest.mark.parametrize("by_part", [False, True])
def test_an_id_used_again_before_the_gate_looked_at_the_clock_is_two_parts(clock, by_part):
    gate = fused(clock, by_part=by_part)
    if by_part:
        gate.see_trigger("p", TOP, START)
    sees(gate, TOP, "pass")
    clock.at = START + 60
    if by_part:
        gate.see_trigger("p", TOP, START + 60)
    sees(gate, TOP, "pass", frame_id="new", captured_s=60)
    action = sees(gate, SIDE, "pass", captured_s=60)
    assert (action.action, action.why) == ("pass", "verdict")
    assert [(a.action, a.why) for a in gate.expire()] == [("reject", "no_verdict_in_time")]
    assert counts(gate)["parts"] == 2


def test_memory_is_bounded(clock, monkeypatch):
    monkeypatch.setattr("workers.gate._REMEMBERED", 3)
    gate, barrier = fused(clock), fused(clock, by_part=True)
    for i in range(10):
        sees(gate, TOP, "reject", f"done {i}")
        sees(gate, TOP, "pass", f"waiting {i}")
        sees(barrier, TOP, "pass", f"early {i}")
    assert gate.waiting == len(gate._done) == len(barrier._early) == 3
    assert [a.part_id for a in gate.expire()] == [f"waiting {i}" for i in range(7)], "none goes without an action"
    assert len(expired(gate, clock)) == 3
    assert gate.counts.parts == 20


def test_what_was_decided_last_is_forgotten_last(clock, monkeypatch):
    monkeypatch.setattr("workers.gate._REMEMBERED", 2)
    gate = fused(clock)
    for part_id, captured_s in (("a", 0), ("b", 0), ("a", 60), ("c", 60)):
        clock.at = START + captured_s
        assert sees(gate, TOP, "reject", part_id, captured_s=captured_s)
    assert sees(gate, SIDE, "reject", "a", captured_s=60) is None
    assert sees(gate, SIDE, "reject", "b") is not None


def test_one_id_on_every_part_does_not_fill_the_memory(clock):
    gate, barrier = fused(clock), fused(clock, by_part=True)
    for i in range(2000):
        clock.at = START + i / 10
        sees(gate, TOP, "pass", "unset", frame_id=str(i), captured_s=i / 10)
        sees(barrier, TOP, "pass", "unset", frame_id=str(i), captured_s=i / 10)
        gate.expire()
    for kept, at_most in ((gate._waiting, 12), (barrier._early, 602)):
        assert all(len(part._stations[TOP]) <= at_most for part in kept.values())
    assert len(gate._due) < 50


def test_a_clock_that_jumps_ahead_takes_the_default(gate, clock):
    sees(gate, TOP, "pass")
    clock.at += 3600
    assert [a.action for a in gate.expire()] == ["reject"]


def test_a_clock_that_jumps_back_loses_no_part_and_acts_once(gate, clock):
    sees(gate, TOP, "pass", "a")
    sees(gate, TOP, "pass", "b")
    clock.at -= 3600
    assert gate.expire() == []
    assert sees(gate, SIDE, "pass", "a").action == "pass"
    clock.at += 3600
    assert [a.part_id for a in expired(gate, clock)] == ["b"]
    assert expired(gate, clock, after_s=100) == []


def test_a_capture_in_the_future_does_not_put_a_part_off(gate, clock):
    sees(gate, TOP, "pass", "a", captured_s=500)
    sees(gate, TOP, "pass", "b", captured_s=500)
    assert sees(gate, SIDE, "pass", "a", captured_s=500).action == "pass"
    assert [a.part_id for a in expired(gate, clock)] == ["b"]


def test_an_action_says_what_each_station_said(gate):
    body = json.loads(json.dumps(sees(gate, TOP, "reject").body()))
    assert body["stations"][TOP] == {
        "action": "reject",
        "why": "verdict",
        "reason": None,
        "score": 1.5,
        "frame_id": f"{TOP} p",
        "frames": 1,
    }
    assert body["stations"][SIDE]["why"] == "not_awaited"
