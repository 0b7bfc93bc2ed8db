"""Monitors' states outlast the worker, and what is said about drift is read back as it was written."""

import math
from datetime import UTC, datetime
from random import Random

import numpy as np
import pytest

from pipeline import settings as line
from pipeline.appearance import Appearance
from pipeline.drift import Drift, Raised
from pipeline.martingale import Alarm
from workers import baselines, drift_events
from workers.baselines import Kept
from workers.drift_events import BaselineAccepted

AT = datetime(2025, 1, 1, 12, tzinfo=UTC)


def watched(frames=40):
    drift = Drift(0.01, rng=Random(0))
    rng = np.random.default_rng(0)
    for k in range(frames):
        numbers = {name: float(rng.normal(5, 1)) for name in ("exposure", "warmth", "tint", "sharpness")}
        seen = Appearance(numbers=numbers, thumbnail=rng.normal(9, 1, (64, 64)).astype(np.float32), size=(64, 64))
        drift.see(seen, score=1.0, version="a", at=AT, frame_id=str(k))
    return drift


def kept():
    return Kept(baseline=watched().baseline, accepted_ms=17, log_limit=math.log(800), saved_at=AT)


def test_what_is_kept_is_read_back(tmp_path):
    path = tmp_path / "line-1" / "top" / "default.json"
    assert baselines.read(path) is None
    assert baselines.stamp(path) == 0
    baselines.write(path, kept())
    assert baselines.read(path) == kept()
    assert baselines.stamp(path) > 0
    assert [p.name for p in path.parent.iterdir()] == ["default.json"]


def test_a_state_that_is_cut_off_is_refused(tmp_path):
    path = tmp_path / "default.json"
    baselines.write(path, kept())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"."):
        baselines.read(path)


def test_every_station_and_recipe_has_a_file_of_its_own_in_the_folder(tmp_path):
    settings = line.build({"drift": {"folder": str(tmp_path)}})
    paths = {baselines.place(settings, s, r) for s in ("line-1/top", "line-2/top") for r in ("default", "a.b")}
    assert len(paths) == 4
    assert all(path.is_relative_to(tmp_path) for path in paths)


def test_events_are_read_back_and_tell_their_kind():
    alarm = Alarm(log_martingale=7.5, direction="lower", since=AT, at=AT, frame_id="f", seen=99)
    raised = drift_events.alarm_of("line-1/top", "default", Raised(monitor="exposure", alarm=alarm), 6.7)
    accepted = BaselineAccepted(station="line-1/top", recipe="default", by="ana", why="lamp", at=AT)
    for event, kind in ((raised, b'"type":"alarm"'), (accepted, b'"type":"accepted"')):
        assert drift_events.decode(drift_events.encode(event)) == event
        assert kind in drift_events.encode(event)
    assert (raised.monitor, raised.frames, raised.log_limit) == ("exposure", 99, 6.7)


@pytest.mark.parametrize("value", [None, b"", b"{}", b'{"type":"alarm"}', b'{"type":"other"}', b"\xff"])
def test_what_is_no_event_is_none(value):
    assert drift_events.decode(value) is None
