"""Frames to their station's monitors: which count for what, what is kept, and who is believed. Kafka: test_drift.py."""

import os
import threading
from datetime import UTC, datetime, timedelta
from queue import Full

import pytest
import torch

from pipeline import settings as line
from pipeline.data import Decision, Frame, Verdict
from pipeline.drift import MONITORS, REFERENCE_FRAMES, SCORE, Baseline
from workers import baselines, drift_watch
from workers.desk import Decided
from workers.drift_events import BaselineAccepted
from workers.drift_watch import DriftWatch
from workers.messages import ModelBody
from workers.outcomes import Outcome
from workers.wire import Arrival, Record

STATION, KEY = "line-1/top", ("line-1/top", "default")
AT = datetime(2025, 1, 1, tzinfo=UTC)


def decided(k, *, brightness=100, score=1.0, reject=False, on_trial=False):
    torch.manual_seed(k)  # in random order, as a station's frames are: seven rising scores in a row are evidence
    pixels = torch.randint(brightness - 20, brightness + 20, (3, 48, 48), dtype=torch.uint8)
    frame = Frame(frame_id=f"f-{k}", image=b"", station=STATION, captured_at=AT + timedelta(seconds=k))
    verdict = Verdict(
        frame_id=frame.frame_id,
        decision=Decision.REJECT if reject else Decision.PASS,
        score=score + 0.1 * float(torch.rand(())),
        threshold=2.0,
        p_value=0.5,
    )
    record = Record(topic="t", partition=0, offset=k, timestamp_ms=0, key=b"", value=b"", headers=[])
    outcome = Outcome(
        arrival=Arrival(frame=frame, record=record),
        answer=verdict,
        decided_at=AT,
        model=ModelBody(method="fake", version="b" * 64 if on_trial else "a" * 64),
    )
    return Decided(outcome=outcome, pixels=pixels, on_trial=on_trial)


@pytest.fixture
def settings(tmp_path):
    """At a delta that no run of these tests will meet: the ties' random numbers have no seed."""
    return line.build({"stations": {STATION: {}}, "drift": {"folder": str(tmp_path / "kept"), "delta": 1e-6}})


def kept(settings):
    return baselines.read(baselines.place(settings, *KEY))


def look(watch, count, *, first=0, **how):
    for k in range(first, first + count):
        watch._look(decided(k, **how))


def seen(watch):
    return {name: monitor.seen for name, monitor in watch._of(KEY).drift.baseline.monitors.items()}


def test_rejects_and_canaries_count_for_the_picture_alone(settings):
    watch = DriftWatch(settings, lambda _: None)
    look(watch, 40)
    look(watch, 10, first=40, reject=True)
    look(watch, 10, first=50, on_trial=True)
    counts = seen(watch)
    assert counts.keys() == set(MONITORS)
    assert (counts["exposure"], counts["turn"], counts[SCORE]) == (60, 60 - REFERENCE_FRAMES, 40)
    assert watch._of(KEY).drift.baseline.version == "a" * 64


def test_frames_are_looked_at_in_lots_in_their_order(settings):
    watch = DriftWatch(settings, print)
    frames = [decided(k) for k in range(40)]
    watch.take(frames)
    watch._waiting.put(None)
    lots = [watch._lot() for _ in range(3)]
    assert [each.pixels.data_ptr() for lot in lots for each in lot if each] == [f.pixels.data_ptr() for f in frames]
    assert ([len(lot) for lot in lots], lots[-1][-1]) == ([16, 16, 9], None)


@pytest.mark.parametrize(("more", "patience_s", "expected"), [(1, 2, 2), (15, 30, 16)])
def test_a_frame_waits_for_others_but_no_longer_than_a_lot_takes_to_fill(
    settings, monkeypatch, more, patience_s, expected
):
    monkeypatch.setattr(drift_watch, "_GATHER_S", patience_s)
    watch = DriftWatch(settings, print)
    watch.take([decided(0)])
    later = threading.Timer(0.05, lambda: [watch.take([decided(1 + k)]) for k in range(more)])
    later.start()
    assert len(watch._lot()) == expected
    later.join()


def test_frames_that_wait_at_the_end_are_looked_at(settings, monkeypatch):
    for listening in ("_listen", "_listen_to_the_end"):  # to a broker
        monkeypatch.setattr(DriftWatch, listening, lambda _: None)
    watch = DriftWatch(settings, print)
    watch.start()
    watch.take([decided(k) for k in range(40)])
    watch.stop(within_s=60)
    assert seen(DriftWatch(settings, print))["exposure"] == 40


def test_an_alarm_is_reported_and_kept_at_once(settings):
    alarms = []
    watch = DriftWatch(settings, alarms.append)
    look(watch, 60)
    assert not alarms
    look(watch, 80, first=60, brightness=60)
    (alarm,) = (each for each in alarms if each.monitor == "exposure")
    assert (alarm.station, alarm.recipe, alarm.direction) == (STATION, "default", "lower")
    assert alarm.at > AT + timedelta(seconds=59)
    assert kept(settings).baseline.monitors["exposure"].alarm.frame_id == alarm.frame_id
    again = DriftWatch(settings, alarms.append)
    look(again, 30, first=140, brightness=60)
    assert [each.monitor for each in alarms].count("exposure") == 1


def test_another_process_goes_on_where_this_one_kept(settings):
    first, second = DriftWatch(settings, print), DriftWatch(settings, print)
    look(first, 40)
    assert kept(settings) is None
    first.save()
    look(second, 10, first=40)
    assert seen(second)["exposure"] == 50


def test_what_another_worker_wrote_meanwhile_is_taken(settings):
    mine, theirs = DriftWatch(settings, print), DriftWatch(settings, print)
    look(mine, 40)
    mine.save()
    look(theirs, 20, first=40)
    theirs.save()
    path = baselines.place(settings, *KEY)
    os.utime(path, ns=(0, baselines.stamp(path) + 1_000_000))  # a file system may be too coarse to tell
    mine.save()
    assert seen(mine)["exposure"] == 60


def accept(watch, at_ms):
    event = BaselineAccepted(station=STATION, recipe="default", by="ana", why="lamp", at=AT)
    watch._accept(KEY, at_ms, event)


def test_an_acceptance_counts_once_whether_it_comes_before_or_after_the_state_is_read(settings):
    watch = DriftWatch(settings, print)
    look(watch, 40)
    watch.save()
    accept(watch, 1000)
    assert kept(settings).accepted_ms == 1000
    look(watch, 5, first=40)
    accept(watch, 1000)
    accept(watch, 900)
    assert seen(watch)["exposure"] == 5
    watch.save()
    later = DriftWatch(settings, print)
    accept(later, 1000)
    assert seen(later)["exposure"] == 5
    newest = DriftWatch(settings, print)
    accept(newest, 2000)
    assert seen(newest)["exposure"] == 0
    newest.save()
    assert kept(settings).accepted_ms == 2000


def test_a_damaged_state_begins_anew(settings):
    path = baselines.place(settings, *KEY)
    path.parent.mkdir(parents=True)
    path.write_bytes(b'{"baseline": 1}')
    watch = DriftWatch(settings, print)
    look(watch, 3)
    watch.save()
    assert kept(settings).baseline.monitors["exposure"].seen == 3


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    settings = line.build({"stations": {STATION: {}}, "drift": {"folder": str(tmp_path / "file")}})
    watch = DriftWatch(settings, print)
    look(watch, 10)
    watch.save()
    look(watch, 10, first=10)
    watch.save()
    assert seen(watch)["exposure"] == 20


def test_frames_beyond_what_may_wait_are_left_out_without_waiting(settings):
    watch = DriftWatch(settings, print)  # not started: nothing is taken away
    watch.take([decided(k) for k in range(watch._waiting.maxsize + 7)])
    assert watch._left_out == 7
    with pytest.raises(Full):
        watch._waiting.put_nowait(None)


def test_the_time_of_an_alarm_is_remembered_when_a_person_accepts_what_is_now(settings):
    watch = DriftWatch(settings, print)
    look(watch, 120)
    look(watch, 120, first=120, brightness=180)
    began = min(m.alarm.since for m in watch._watched[KEY].drift.baseline.monitors.values() if m.alarm)
    assert AT < began < AT + timedelta(seconds=240)
    accepted = AT + timedelta(hours=2)
    accept(watch, int(accepted.timestamp() * 1000))
    (window,) = kept(settings).windows
    assert (window.since, window.until) == (began, accepted)
    accept(watch, int((accepted + timedelta(hours=1)).timestamp() * 1000))
    assert kept(settings).windows == (window,), "without an alarm there is no time to remember"


def test_it_is_remembered_as_well_when_nobody_watched_as_it_was_accepted(settings):
    watch = DriftWatch(settings, print)
    look(watch, 120)
    look(watch, 120, first=120, brightness=180)
    watch.save()
    later = DriftWatch(settings, print)
    accepted = AT + timedelta(hours=2)
    accept(later, int(accepted.timestamp() * 1000))
    look(later, 3, first=300)
    later.save()
    (window,) = kept(settings).windows
    assert window.until == accepted


def test_a_time_that_no_pool_reaches_back_to_is_forgotten(settings):
    old = baselines.Window(since=AT, until=AT + timedelta(hours=1))
    state = baselines.Kept(baseline=Baseline(), log_limit=7.0, saved_at=AT, windows=(old,))
    assert baselines.windows(state, AT + timedelta(days=89)) == (old,)
    assert baselines.windows(state, AT + timedelta(days=91)) == ()
