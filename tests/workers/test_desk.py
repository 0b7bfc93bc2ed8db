"""One outcome for each frame, whatever models, batches and neighbours do."""

import asyncio
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import torch

from model_store import Version
from pipeline import settings as line
from pipeline.data import Decision, Failure, Frame, Reason, Verdict
from pipeline.decode import Placement
from pipeline.inspection import Inspected
from pipeline.settings import Worker
from workers.desk import Desk
from workers.shelf import Live, Trial
from workers.wire import Arrival, Record, read_frame

SETTINGS = line.build({"stations": {"line-1/top": {}, "line-2/top": {}}})
A, B = Version("a" * 64), Version("b" * 64)


class Model:
    """Passes every frame but those whose picture says otherwise."""

    def __init__(self, version=A):
        self.live = Live(self, "fake", version)
        self.batches = []
        self.threads = set()

    def inspect(self, frames):
        self.batches.append([f.frame_id for f in frames])
        self.threads.add(threading.current_thread().name)
        if any(f.image == b"breaks the batch" for f in frames):
            raise RuntimeError("the device is on fire")
        if any(f.image == b"breaks batches" for f in frames) and len(frames) > 1:
            raise RuntimeError("out of memory")
        said = [f for f in frames if f.image != b"forgotten"]
        bad = [f.frame_id for f in said if f.image == b"unreadable"]
        good = [f.frame_id for f in said if f.image != b"unreadable"]
        pixels = torch.zeros(len(good), 3, 2, 2, dtype=torch.uint8)
        return Inspected(
            verdicts=tuple(
                Verdict(frame_id=i, decision=Decision.PASS, score=1.0, threshold=2.0, p_value=0.5) for i in good
            ),
            failures=tuple(Failure(frame_id=i, reason=Reason.BAD_FRAME, detail="not a picture") for i in bad),
            maps={i: torch.zeros(2, 2) for i in good},
            placements={i: Placement((2, 2), 0.0, 0.0, 1.0, 1.0) for i in good},
            seconds={"decode": 0.001, "embed": 0.002, "score": 0.003},
            pixels=dict(zip(good, pixels, strict=True)),
        )


class InMemory:
    """Models that need not be waited for, with none on trial."""

    def trial(self, station, recipe):
        return None

    def load(self, station, recipe):
        return None


class Shelf(InMemory):
    """Models by station and recipe."""

    def __init__(self, **models):
        self.models = {}

    def put(self, station, recipe, model):
        self.models[station, recipe] = model.live
        return model

    def find(self, station, recipe):
        return self.models.get((station, recipe))


def shelf():
    models = Shelf()
    return models, models.put("line-1/top", "default", Model(A)), models.put("line-2/top", "default", Model(B))


def arrival(frame_id, image=b"good", *, station="line-1/top", recipe="default", in_s=60.0):
    now = datetime.now(UTC)
    record = Record(
        topic="goldline.frames",
        partition=0,
        offset=0,
        timestamp_ms=round(time.time() * 1000),
        key=station.encode(),
        value=image,
        headers=[],
    )
    frame = Frame(
        frame_id=frame_id,
        image=image,
        station=station,
        recipe=recipe,
        captured_at=now,
        deadline_at=now + timedelta(seconds=in_s),
    )
    return Arrival(frame=frame, record=record)


def decide(models, *arrivals, wait_ms=1000.0, batch_max=None, on_tried=lambda _: None, on_decided=lambda _: None):
    """Outcomes of frames that come at once."""

    async def scenario():
        executor = ThreadPoolExecutor(1, thread_name_prefix="device")
        worker = Worker(batch_max=batch_max or len(arrivals), wait_ms=wait_ms)
        desk = Desk(models, worker, executor, on_tried=on_tried, on_decided=on_decided)
        task = asyncio.ensure_future(desk.batcher.run())
        try:
            return await asyncio.wait_for(asyncio.gather(*(desk.decide(a) for a in arrivals)), 20)
        finally:
            assert not task.done(), "the batcher goes on"
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            executor.shutdown()

    return asyncio.run(scenario())


def said(outcome):
    """`pass`, or the reason why not."""
    answer = outcome.answer
    return answer.reason.value if isinstance(answer, Failure) else answer.decision.value


def test_a_scored_frame_names_its_model_and_its_times():
    models, *_ = shelf()
    came = arrival("f-1")
    (outcome,) = decide(models, came)
    assert outcome.arrival is came
    assert outcome.answer.frame_id == "f-1"
    assert (outcome.model.method, outcome.model.version) == ("fake", A)
    t = outcome.timings
    assert (t.decode, t.embed, t.score) == (1.0, 2.0, 3.0)
    assert 0 <= t.queue <= t.total
    assert came.frame.captured_at <= outcome.decided_at <= datetime.now(UTC)
    assert outcome.map.shape == (2, 2)
    assert outcome.placement.image_size == (2, 2)


def test_frames_of_two_models_in_a_batch_go_to_each_as_one_batch():
    models, one, two = shelf()
    stations = ["line-1/top", "line-2/top"] * 3
    outcomes = decide(models, *(arrival(f"f-{i}", station=s) for i, s in enumerate(stations)))
    assert one.batches == [["f-0", "f-2", "f-4"]]
    assert two.batches == [["f-1", "f-3", "f-5"]]
    assert [o.arrival.frame.frame_id for o in outcomes] == [f"f-{i}" for i in range(6)]
    assert [o.model.version for o in outcomes] == [A, B] * 3


def test_inspection_happens_on_the_devices_thread():
    models, one, _ = shelf()
    decide(models, *(arrival(str(i)) for i in range(4)), batch_max=2)
    assert one.threads == {"device_0"}


def test_a_swap_between_batches_changes_the_version_and_mixes_none():
    models, *_ = shelf()
    before = decide(models, *(arrival(f"a{i}") for i in range(3)))
    models.put("line-1/top", "default", Model(B))
    after = decide(models, *(arrival(f"b{i}") for i in range(3)))
    assert {o.model.version for o in before} == {A}
    assert {o.model.version for o in after} == {B}


def test_a_swap_in_the_middle_of_a_batch_leaves_each_frame_to_one_model():
    old, new = Model(A), Model(B)

    class Swapping(InMemory):
        def __init__(self):
            self.asked = 0

        def find(self, station, recipe):
            self.asked += 1
            return old.live if self.asked <= 4 + 2 else new.live  # four when they come

    outcomes = decide(Swapping(), *(arrival(str(i)) for i in range(4)))
    assert [o.model.version for o in outcomes] == [A, A, B, B]
    assert (old.batches, new.batches) == ([["0", "1"]], [["2", "3"]])


@pytest.mark.parametrize("changes", [{"recipe": "green"}, {"station": "line-3/top"}])
def test_without_a_model_there_is_no_decision_and_neighbours_are_scored(changes):
    models, one, _ = shelf()
    outcomes = decide(models, arrival("a"), arrival("b", **changes), arrival("c"))
    assert [said(o) for o in outcomes] == ["pass", "no_model", "pass"]
    assert outcomes[1].model is None
    assert not outcomes[1].arrival.unreadable
    assert changes.get("recipe", changes.get("station")) in outcomes[1].answer.detail
    assert one.batches == [["a", "c"]]


def test_a_frame_past_its_deadline_never_reaches_the_device():
    models, one, _ = shelf()
    outcomes = decide(models, arrival("a", in_s=-1.0), arrival("b"), batch_max=1)
    assert [said(o) for o in outcomes] == ["late", "pass"]
    assert "past its deadline" in outcomes[0].answer.detail
    assert outcomes[0].model is None
    assert one.batches == [["b"]]


def test_a_frame_whose_deadline_passes_in_the_queue_is_late_and_not_scored():
    slow = Model()
    held, entered = threading.Event(), threading.Event()

    class Slow(InMemory):
        def find(self, station, recipe):
            return Live(self, "fake", A)

        def inspect(self, frames):
            entered.set()
            held.wait(20)
            return slow.inspect(frames)

    async def scenario():
        executor = ThreadPoolExecutor(1)
        desk = Desk(Slow(), Worker(batch_max=1, wait_ms=0.0), executor)
        task = asyncio.ensure_future(desk.batcher.run())
        first = asyncio.ensure_future(desk.decide(arrival("first")))
        await asyncio.to_thread(entered.wait, 20)
        at_once = await asyncio.wait_for(desk.decide(arrival("past", in_s=-1.0)), 10)
        assert said(at_once) == "late", "who is late already does not wait for the device"
        hurried = arrival("hurried", in_s=0.2)
        second = asyncio.ensure_future(desk.decide(hurried))
        await asyncio.sleep(0.3)
        held.set()
        outcomes = await asyncio.wait_for(asyncio.gather(first, second), 20)
        task.cancel()
        executor.shutdown()
        return outcomes

    first, second = asyncio.run(scenario())
    assert (said(first), said(second)) == ("pass", "late")
    assert slow.batches == [["first"]]


def test_a_frame_that_cannot_be_scored_in_time_is_shed_before_its_deadline():
    models, one, _ = shelf()

    async def scenario():
        executor = ThreadPoolExecutor(1)
        desk = Desk(models, Worker(batch_max=1, wait_ms=0.0), executor)
        desk.batcher.pace.learn(1, 5.0)
        task = asyncio.ensure_future(desk.batcher.run())
        outcomes = await asyncio.gather(desk.decide(arrival("hopeless", in_s=2.0)), desk.decide(arrival("fine")))
        task.cancel()
        executor.shutdown()
        return outcomes

    hopeless, fine = asyncio.run(scenario())
    assert (said(hopeless), said(fine)) == ("shed", "pass")
    assert hopeless.decided_at < hopeless.arrival.frame.deadline_at
    assert "no time left" in hopeless.answer.detail
    assert one.batches == [["fine"]]


def test_a_deadline_that_passes_while_scoring_still_gets_the_verdict():
    class Slow(Model):
        def inspect(self, frames):
            while datetime.now(UTC) <= frames[0].deadline_at:
                time.sleep(0.01)
            return super().inspect(frames)

    models = Shelf()
    models.put("line-1/top", "default", Slow())
    (outcome,) = decide(models, arrival("a", in_s=0.3), batch_max=1, wait_ms=0.0)
    assert said(outcome) == "pass"
    assert outcome.decided_at > outcome.arrival.frame.deadline_at


def test_a_model_that_leaves_memory_for_others_still_decides_about_the_frames_that_found_it():
    class Forgetful(Shelf):
        def find(self, station, recipe):
            return self.models.pop((station, recipe), None)

    models = Forgetful()
    model = models.put("line-1/top", "default", Model(A))
    (outcome,) = decide(models, arrival("a"))
    assert said(outcome) == "pass"
    assert (outcome.model.version, model.batches) == (A, [["a"]])


def test_an_unreadable_picture_is_a_bad_frame_and_a_dead_letter_alone():
    models, *_ = shelf()
    outcomes = decide(models, arrival("a"), arrival("b", b"unreadable"), arrival("c"))
    assert [said(o) for o in outcomes] == ["pass", "bad_frame", "pass"]
    assert [o.arrival.unreadable for o in outcomes] == [False, True, False]
    assert outcomes[1].model is None
    assert outcomes[1].map is None


def test_when_a_batch_fails_its_frames_go_one_by_one_and_only_the_bad_one_is_an_error():
    models, one, two = shelf()
    outcomes = decide(
        models,
        arrival("a"),
        arrival("b", b"breaks the batch"),
        arrival("c"),
        arrival("d", station="line-2/top"),
    )
    assert [said(o) for o in outcomes] == ["pass", "error", "pass", "pass"]
    assert outcomes[1].answer.detail == "RuntimeError: the device is on fire"
    assert not outcomes[1].arrival.unreadable, "the frame may be innocent: no dead letter"
    assert one.batches == [["a", "b", "c"], ["a"], ["b"], ["c"]]
    assert two.batches == [["d"]]


def test_a_batch_too_large_for_the_device_loses_no_frame():
    models, *_ = shelf()
    outcomes = decide(models, *(arrival(str(i), b"breaks batches") for i in range(5)))
    assert [said(o) for o in outcomes] == ["pass"] * 5


def test_a_frame_that_the_inspector_forgets_is_an_error_and_its_neighbours_are_scored():
    models, *_ = shelf()
    outcomes = decide(models, arrival("a"), arrival("b", b"forgotten"), arrival("c", station="line-2/top"))
    assert [said(o) for o in outcomes] == ["pass", "error", "pass"]
    assert not outcomes[1].arrival.unreadable, "the picture is not at fault: no dead letter"


def test_the_same_frame_id_twice_in_a_batch_is_answered_twice_by_its_own_picture():
    models, *_ = shelf()
    outcomes = decide(models, arrival("twin"), arrival("other"), arrival("twin", b"unreadable"))
    assert [said(o) for o in outcomes] == ["pass", "pass", "bad_frame"]
    assert [o.arrival.unreadable for o in outcomes] == [False, False, True]


def test_a_message_with_a_problem_is_answered_without_a_model():
    class Unasked(InMemory):
        def find(self, station, recipe):
            raise AssertionError("nobody asks")

    broken = Record(
        topic="goldline.frames", partition=2, offset=7, timestamp_ms=0, key=b"line-1/top", value=b"", headers=[]
    )
    came = read_frame(broken, SETTINGS)
    (outcome,) = decide(Unasked(), came)
    assert said(outcome) == "bad_frame"
    assert outcome.arrival.unreadable
    assert outcome.answer.frame_id == "goldline.frames/2/7"


class Loading(Shelf):
    """A model that is in memory once somebody has asked for it, and `arrives` is set."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.future = Future()

    def load(self, station, recipe):
        return None if (station, recipe) in self.models else self.future

    def arrive(self):
        self.put("line-1/top", "default", self.model)
        self.future.set_result(None)


def test_frames_wait_for_a_model_that_is_being_loaded():
    models = Loading(Model())
    threading.Timer(0.2, models.arrive).start()
    outcomes = decide(models, arrival("a"), arrival("b"))
    assert [said(o) for o in outcomes] == ["pass", "pass"]


def test_frames_wait_for_a_model_no_longer_than_their_deadline():
    models = Loading(Model())
    (outcome,) = decide(models, arrival("a", in_s=0.2), wait_ms=0.0)
    assert said(outcome) == "late"
    assert "had to be loaded" in outcome.answer.detail
    assert not models.future.cancelled(), "others wait for it, too"


def test_what_needs_no_inspection_is_known_at_once_and_a_late_frame_lets_go_of_its_picture():
    models, *_ = shelf()
    with ThreadPoolExecutor(1) as executor:
        desk = Desk(models, Worker(), executor)
        assert desk.at_once(arrival("in-time")) is None
        late = desk.at_once(arrival("late", b"a large picture", in_s=-1.0))
    assert said(late) == "late"
    assert "had to be loaded" not in late.answer.detail
    assert (late.arrival.frame.image, late.arrival.record.value) == (b"", None)


def test_models_that_cannot_be_looked_up_are_an_error_of_their_frames():
    class Broken(InMemory):
        def find(self, station, recipe):
            raise KeyError(station)

    outcomes = decide(Broken(), arrival("a"), arrival("b"))
    assert [said(o) for o in outcomes] == ["error", "error"]
    assert "KeyError" in outcomes[0].answer.detail


def test_hundreds_of_mixed_frames_get_one_outcome_each():
    models, *_ = shelf()
    kinds = [b"good", b"unreadable", b"breaks batches", b"good"]
    came = [
        arrival(f"f-{i}", kinds[i % 4], station=f"line-{i % 3 + 1}/top", in_s=-1.0 if i % 17 == 0 else 60.0)
        for i in range(300)
    ]
    outcomes = decide(models, *came, batch_max=16, wait_ms=5.0)
    assert [o.answer.frame_id for o in outcomes] == [a.frame.frame_id for a in came]
    for i, outcome in enumerate(outcomes):
        expected = "late" if i % 17 == 0 else "no_model" if i % 3 == 2 else "bad_frame" if i % 4 == 1 else "pass"
        assert said(outcome) == expected, i


class Trying(Shelf):
    """A model in service at line-1/top, and one on trial beside it."""

    def __init__(self, active, tried, share=0.0):
        super().__init__()
        self.put("line-1/top", "default", active)
        self.tried = Trial(tried.live, share)

    def trial(self, station, recipe):
        return self.tried if station == "line-1/top" else None


def test_a_model_on_trial_sees_the_frames_and_decides_none():
    active, tried = Model(A), Model(B)
    heard = []
    outcomes = decide(
        Trying(active, tried), arrival("a"), arrival("b", b"unreadable"), arrival("c"), on_tried=heard.extend
    )
    assert {o.model.version for o in outcomes if o.model} == {A}
    assert active.batches == tried.batches == [["a", "b", "c"]]
    assert [(t.outcome.answer.frame_id, t.model.version, t.verdict.score) for t in heard] == [
        ("a", B, 1.0),
        ("c", B, 1.0),
    ]


def test_a_canary_decides_about_its_share_and_is_named_in_those_results():
    active, tried = Model(A), Model(B)
    heard = []
    came = [arrival(f"f-{i}") for i in range(60)]
    models = Trying(active, tried, share=0.5)
    outcomes = decide(models, *came, on_tried=heard.extend)
    theirs = [o for o in outcomes if o.model.version == B]
    assert {o.arrival.frame.frame_id for o in theirs} == {
        a.frame.frame_id for a in came if models.tried.decides(a.frame)
    }
    assert 15 < len(theirs) < 45
    assert len(heard) == 60 - len(theirs), "it looks at the rest"


def test_frames_that_were_scored_are_told_of_with_their_pictures():
    heard = []
    came = [arrival("a"), arrival("b", b"unreadable"), arrival("c", in_s=-1.0), arrival("d", b"forgotten")]
    outcomes = decide(Trying(Model(A), Model(B)), *came, on_decided=heard.extend)
    assert outcomes[0].map is not None
    assert [d.outcome for d in heard] == [replace(outcomes[0], map=None)]
    assert [(d.pixels.shape, d.on_trial) for d in heard] == [((3, 2, 2), False)]


def test_a_frame_that_is_told_of_holds_no_other_s_picture():
    heard = []
    decide(Trying(Model(A), Model(B)), *(arrival(f"f-{i}") for i in range(4)), on_decided=heard.extend)
    assert len(heard) == 4
    assert {d.pixels.untyped_storage().nbytes() for d in heard} == {3 * 2 * 2}


def test_frames_that_a_canary_decided_about_are_told_apart():
    heard = []
    came = [arrival(f"f-{i}") for i in range(20)]
    decide(Trying(Model(A), Model(B), share=0.5), *came, on_decided=heard.extend)
    assert {d.outcome.model.version for d in heard if d.on_trial} == {B}
    assert {d.outcome.model.version for d in heard if not d.on_trial} == {A}
    assert len(heard) == 20


def test_frames_are_told_of_after_their_verdicts():
    release = threading.Event()

    def hold(_):
        assert release.wait(20), "the verdict waited"

    async def scenario():
        executor = ThreadPoolExecutor(1)
        models = Trying(Model(A), Model(B))
        desk = Desk(models, Worker(batch_max=1, wait_ms=0.0), executor, on_decided=hold)
        task = asyncio.ensure_future(desk.batcher.run())
        try:
            return await asyncio.wait_for(desk.decide(arrival("a")), 10)
        finally:
            release.set()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            executor.shutdown()

    assert said(asyncio.run(scenario())) == "pass"


def test_a_model_on_trial_that_fails_costs_no_verdict():
    outcomes = decide(Trying(Model(A), Model(B)), arrival("a", b"good"), arrival("b", b"good"))
    assert [said(o) for o in outcomes] == ["pass", "pass"]

    class Failing(Model):
        def inspect(self, frames):
            raise RuntimeError("no memory")

    heard = []
    outcomes = decide(Trying(Model(A), Failing(B)), arrival("a"), on_tried=heard.append)
    assert [said(o) for o in outcomes] == ["pass"]
    assert heard == [[]]


def test_frames_in_a_hurry_are_not_held_up_by_a_trial():
    tried = Model(B)
    hurried = arrival("a", in_s=1.0)
    hurried = replace(hurried, frame=replace(hurried.frame, captured_at=datetime.now(UTC) - timedelta(seconds=5)))
    (outcome,) = decide(Trying(Model(A), tried), hurried, wait_ms=0.0)
    assert said(outcome) == "pass"
    assert tried.batches == []
