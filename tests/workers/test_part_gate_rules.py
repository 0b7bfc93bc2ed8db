"""What holds for a part at its gate whatever comes, and in whatever order."""

import random
from collections import Counter
from datetime import datetime

from pipeline import settings as line
from pipeline.errors import ConfigError
from tests.gate_messages import BACK, PART_S, SIDE, START, STEP_S, TOP, Clock, announced, at, counts, fused, sees
from workers.gate import Gate


def tell(gate, actions, act, *arguments, **more):
    """Tell the gate something and let it look at the clock; what it does is added to `actions`."""
    action = act(gate, *arguments, **more)
    actions += [action] if action else []
    actions += gate.expire()


def triggered(gate, station, part_id="p", *, after_s=0.0):
    return gate.see_trigger(part_id, station, START + after_s)


def test_one_station_fused_is_as_a_gate_of_frames():
    chance = random.Random(11)
    for _ in range(30):
        clock = Clock()
        plain, one = Gate(line.build({"stations": {TOP: {}}}), frozenset({TOP}), clock=clock), fused(clock, {TOP: {}})
        moments = []
        for i in range(40):
            same = {"part_id": f"p{i}", "frame_id": str(i), "deadline_s": round(chance.uniform(0.05, 0.5), 3)}
            said = same | {"verdict": chance.choice(["pass", "reject", "no_decision"])}
            acts = chance.choice([(announced,), (sees,), (announced, sees), (announced, sees, sees, announced)])
            moments += [(chance.uniform(0, 0.6), act, said if act is sees else same) for act in acts]
        did, also = [], []
        for moment, act, what in sorted(moments, key=lambda m: m[0]):
            clock.at = START + moment
            tell(plain, did, act, TOP, **what)
            tell(one, also, act, TOP, **what)
        clock.at = START + 10
        assert did + plain.expire() == also + one.expire()
        assert plain.counts == one.counts
        assert plain.counts.parts == 40


def any_line(chance):
    """Any rule over any stations, such that a part that nobody saw is rejected."""
    while True:
        stations = {
            name: {
                "weight": chance.choice([0.0, 0.5, 1.0, 2.0]),
                "frames_per_part": chance.choice([1, 1, 2]),
                "optional": chance.random() < 0.25,
                "on_no_decision": chance.choice(["reject", "reject", "pass"]),
            }
            for name in (TOP, SIDE, BACK)[: chance.randint(1, 3)]
        }
        rule = {"fuse": chance.choice(["any-reject", "weighted"]), "reject_at": chance.choice([0.5, 1.0, 2.5])}
        try:
            fused(Clock(), stations, **rule)
        except ConfigError:
            continue
        return stations, rule


def expected(stations, rule, said):
    """What the rule says of a part, the slow and obvious way.

    Args:
        stations: their settings.
        rule: [gate].
        said: station -> the verdict of each of its frames; None for a frame without one.
    """
    weight = 0.0
    for name, station in stations.items():
        verdicts = said[name] + [None] * (station["frames_per_part"] - len(said[name]))
        if station["optional"] and not said[name]:
            continue
        if station["on_no_decision"] == "reject":
            rejects = any(verdict != "pass" for verdict in verdicts)
        else:
            rejects = "reject" in verdicts
        weight += rejects * (station["weight"] if rule["fuse"] == "weighted" else 1.0)
    return "reject" if weight >= (rule["reject_at"] if rule["fuse"] == "weighted" else 1.0) else "pass"


def test_the_order_of_what_comes_in_time_does_not_matter():
    chance = random.Random(12)
    outcomes = set()
    for _ in range(500):
        stations, rule = any_line(chance)
        by_part = chance.random() < 0.3
        verdicts = ["pass", "pass", "pass", "reject", "no_decision", *([] if by_part else [None])]
        said = {
            name: [chance.choice(verdicts) for _ in range(chance.randint(0, station["frames_per_part"]))]
            for name, station in stations.items()
        }
        messages = [(triggered, chance.choice([*stations]), {})] * by_part
        for name, frames in said.items():
            for i, verdict in enumerate(frames):
                same = {"frame_id": f"{i}", "deadline_s": 5}
                if not by_part and (verdict is None or chance.random() < 0.7):
                    messages += [(announced, name, same)] * chance.randint(1, 2)
                if verdict:
                    messages += [(sees, name, same | {"verdict": verdict})] * chance.randint(1, 2)
        want = [expected(stations, rule, said)] if messages else []
        for _ in range(4):
            chance.shuffle(messages)
            clock, actions = Clock(), []
            gate = fused(clock, stations, by_part=by_part, **rule)
            for act, name, what in messages:
                clock.at += 0.001
                tell(gate, actions, act, name, **what)
            clock.at = START + PART_S + STEP_S
            actions += gate.expire()
            assert [a.action for a in actions] == want, (stations, rule, messages)
            outcomes |= {(a.action, a.why) for a in actions}
    assert len(outcomes) == 6, "every way to a decision was taken"


def a_part(chance, part_id, stations, *, by_part):
    """All that happens to a part: (seconds, what the gate is told, station, more), in no order.

    A frame's message or its result may be late, come twice, or never come. A part may have no trigger.
    """
    begins, moments = chance.uniform(0, 2), []
    if by_part and chance.random() < 0.9:
        for after_s in (begins, begins + chance.uniform(0, 0.1))[: chance.randint(1, 2)]:
            what = {"part_id": part_id, "after_s": after_s}
            moments.append((after_s, triggered, chance.choice([*stations]), what))
    for name, station in stations.items():
        for i in range(chance.randint(0, station["frames_per_part"] + 1)):
            captured_s = begins + chance.uniform(0, 0.5)
            same = {"part_id": part_id, "frame_id": f"{part_id}-{i}", "captured_s": captured_s}
            same["deadline_s"] = chance.uniform(0.1, 1)
            if not by_part and chance.random() < 0.8:
                moments.append((captured_s + chance.uniform(0, 0.1), announced, name, same))
            said = same | {"verdict": chance.choice(["pass", "pass", "pass", "reject", "no_decision"])}
            times = chance.choice([0, 1, 1, 1, 2])
            moments += [(captured_s + chance.uniform(0.02, 1.5), sees, name, said) for _ in range(times)]
    return moments


def played(gate, clock, moments):
    """The gate's actions, by part; it looks at the clock each step. No part has two."""
    looks = [(STEP_S * step, None, "", {}) for step in range(300)]
    actions = []
    for moment, act, name, what in sorted(moments + looks, key=lambda m: m[0]):
        clock.at = START + moment
        if act:
            tell(gate, actions, act, name, **what)
        else:
            actions += gate.expire()
    by_part = {a.part_id: a for a in actions}
    assert len(by_part) == len(actions) == counts(gate).get("parts", 0)
    assert gate.waiting == 0
    return by_part


def test_whatever_comes_each_part_has_one_action_by_its_deadline():
    chance = random.Random(13)
    outcomes = Counter()
    for _ in range(80):
        stations, rule = any_line(chance)
        by_part, clock = chance.random() < 0.4, Clock()
        moments = [m for i in range(40) for m in a_part(chance, f"p{i}", stations, by_part=by_part)]
        actions = played(fused(clock, stations, by_part=by_part, **rule), clock, moments)
        done_s = {
            part_id: (datetime.fromisoformat(action.decided_at) - at(0)).total_seconds()
            for part_id, action in actions.items()
        }
        tells = [m for m in moments if m[1] is triggered or not by_part]
        assert actions.keys() == {what["part_id"] for _, _, _, what in tells}
        for moment, act, _, what in tells:
            first_s = what["after_s"] if act is triggered else what["captured_s"]
            late_s = done_s[what["part_id"]] - max(moment, first_s + PART_S)
            assert late_s <= STEP_S + 1e-4 or moment > done_s[what["part_id"]], "it knew of the part and its time"
        for moment, act, _, what in moments if rule["fuse"] == "any-reject" else []:
            in_time = moment < done_s.get(what["part_id"], 0) - 1e-4
            if act is sees and what["verdict"] == "reject":
                assert not in_time or actions[what["part_id"]].action == "reject"
        outcomes.update((a.action, a.why) for a in actions.values())
    assert len(outcomes) == 6
    assert min(outcomes.values()) >= 5, outcomes
