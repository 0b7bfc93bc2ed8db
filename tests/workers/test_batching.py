"""Batches close when they are full, when the first has waited, or when the most urgent would be late."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

import pytest

from workers.batching import Batcher

FAR = 1e12
LONG_S = 60.0  # nothing here may ever wait that long
PATIENCE_S = 20.0


class Clock:
    """Seconds that pass when told."""

    def __init__(self, at=1000.0):
        self.at = at

    def __call__(self):
        return self.at


class Device:
    """Notes the batches it is given; may be held busy, fail, or take time on a fake clock."""

    def __init__(self, clock=None):
        self.batches = []
        self.threads = set()
        self.free = threading.Event()
        self.free.set()
        self.started = threading.Event()
        self.clock = clock
        self.takes_s = 0.0
        self.broken = ()

    def __call__(self, work, given_up):
        self.threads.add(threading.get_ident())
        self.batches.append(list(work))
        self.started.set()
        assert self.free.wait(PATIENCE_S)
        if self.clock:
            self.clock.at += self.takes_s
        if set(self.broken) & set(work):
            raise RuntimeError(f"cannot do {self.broken}")
        yield {i: f"did {w}" for i, w in enumerate(work)}
        return len(work) - sum(given_up)


@asynccontextmanager
async def serving(device, *, batch_max=8, wait_s=0.0, clock=time.time, at_once=1):
    executor = ThreadPoolExecutor(at_once)
    batcher = Batcher(device, executor, batch_max=batch_max, wait_s=wait_s, clock=clock, at_once=at_once)
    task = asyncio.ensure_future(batcher.run())
    try:
        yield batcher
        assert not task.done(), "the batcher goes on"
    finally:
        device.free.set()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        executor.shutdown()


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE_S))


def submit(batcher, *works, deadline=FAR):
    return [asyncio.ensure_future(batcher.submit(w, deadline=deadline)) for w in works]


async def until(condition):
    while not condition():  # noqa: ASYNC110 - what is waited for happens on another thread
        await asyncio.sleep(0.001)


async def settled():
    """Everybody who can run has run."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_batch_closes_at_once_when_it_is_full():
    async def scenario():
        device = Device()
        async with serving(device, batch_max=4, wait_s=LONG_S) as batcher:
            answers = await asyncio.gather(*submit(batcher, *range(8)))
        assert device.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert answers == [f"did {i}" for i in range(8)]

    run(scenario())


def test_several_batches_are_processed_at_the_same_time_and_share_what_waits():
    async def scenario():
        device = Device()
        device.free.clear()
        async with serving(device, batch_max=8, wait_s=0.05, at_once=2) as batcher:
            answers = submit(batcher, *range(6))
            await until(lambda: len(device.batches) == 2)  # while neither is done
            assert len(device.threads) == 2
            device.free.set()
            assert await asyncio.gather(*answers) == [f"did {i}" for i in range(6)]
        assert sorted(map(len, device.batches)) == [3, 3]
        assert sorted(each for batch in device.batches for each in batch) == list(range(6))

    run(scenario())


def test_while_the_others_are_busy_one_takes_all_that_waits():
    async def scenario():
        device = Device()
        device.free.clear()
        async with serving(device, batch_max=8, at_once=2) as batcher:
            first = submit(batcher, "slow")
            await until(lambda: device.batches)
            batcher.pace.learn(1, 0.001)
            rest = submit(batcher, *range(4))
            await until(lambda: len(device.batches) == 2)
            device.free.set()
            await asyncio.gather(*first, *rest)
        assert device.batches == [["slow"], [0, 1, 2, 3]]

    run(scenario())


def test_where_counting_batches_fails_no_thread_goes_on_alone():
    async def scenario():
        def broken(_):
            raise RuntimeError("no more")

        executor = ThreadPoolExecutor(2)
        batcher = Batcher(Device(), executor, batch_max=1, wait_s=0.0, at_once=2, on_batch=broken)
        asks = submit(batcher, 1)
        with pytest.raises(ExceptionGroup, match="unhandled errors"):
            await batcher.run()
        for each in asks:
            each.cancel()
        executor.shutdown()

    run(scenario())


def test_a_batch_that_fails_ends_no_other():
    async def scenario():
        device = Device()
        device.broken = (1,)
        async with serving(device, batch_max=1, at_once=2) as batcher:
            answers = await asyncio.gather(*submit(batcher, *range(6)), return_exceptions=True)
        assert [isinstance(each, RuntimeError) for each in answers] == [False, True, False, False, False, False]

    run(scenario())


def test_a_batch_of_one_needs_no_wait():
    async def scenario():
        device = Device()
        async with serving(device, batch_max=1, wait_s=LONG_S) as batcher:
            await asyncio.gather(*submit(batcher, 1, 2))
        assert device.batches == [[1], [2]]

    run(scenario())


def test_without_a_wait_what_is_there_goes_at_once():
    async def scenario():
        device = Device()
        async with serving(device, wait_s=0.0) as batcher:
            assert await batcher.submit("a", deadline=FAR) == "did a"
            assert await batcher.submit("b", deadline=FAR) == "did b"
        assert device.batches == [["a"], ["b"]]

    run(scenario())


def test_the_wait_counts_from_the_first_frame_and_not_from_a_tick():
    """On a fake clock: however long the batcher sat idle, the first frame's wait holds."""

    async def scenario():
        clock, device = Clock(), Device()
        async with serving(device, wait_s=LONG_S, clock=clock) as batcher:
            await settled()
            clock.at += 10 * LONG_S + LONG_S * 0.9  # a free-running tick would now be almost over
            first = submit(batcher, "first")
            await settled()
            assert device.batches == []
            clock.at += LONG_S * 0.9
            second = submit(batcher, "second")
            await settled()
            assert device.batches == [], "the first has waited 0.9 of its time"
            clock.at += LONG_S * 0.2
            third = submit(batcher, "third")  # its arrival makes the batcher look at the clock
            await asyncio.gather(*first, *second, *third)
        assert device.batches == [["first", "second", "third"]]

    run(scenario())


def test_the_wait_ends_by_itself():
    async def scenario():
        device = Device()
        async with serving(device, wait_s=0.05) as batcher:
            started = time.monotonic()
            assert await asyncio.gather(*submit(batcher, 1, 2)) == ["did 1", "did 2"]
            assert time.monotonic() - started > 0.04
        assert device.batches == [[1, 2]]

    run(scenario())


def test_the_most_urgent_frame_ends_the_wait_whoever_came_first():
    async def scenario():
        clock, device = Clock(), Device()
        async with serving(device, wait_s=LONG_S, clock=clock) as batcher:
            patient = submit(batcher, "patient", deadline=clock.at + 50)
            await settled()
            assert device.batches == []
            urgent = submit(batcher, "urgent", deadline=clock.at - 0.001)
            await asyncio.gather(*patient, *urgent)
        assert device.batches == [["patient", "urgent"]]

    run(scenario())


def test_the_time_a_batch_takes_is_left_before_the_deadline():
    async def scenario():
        clock, device = Clock(), Device()
        device.clock, device.takes_s = clock, 50.0
        async with serving(device, wait_s=LONG_S, clock=clock) as batcher:
            await asyncio.gather(*submit(batcher, "learn", deadline=clock.at + 0.02))
            await settled()
            device.batches.clear()
            # 40 s are left and a batch takes 50: waiting for others would only make it later.
            await asyncio.gather(*submit(batcher, "now", deadline=clock.at + 40))
            assert device.batches == [["now"]]
            waiting = submit(batcher, "can wait", deadline=clock.at + 80)
            await settled()
            assert device.batches == [["now"]]
            clock.at += 34.95  # it is thought to take 45 s by now
            await asyncio.gather(*waiting, *submit(batcher, "another"))
        assert device.batches == [["now"], ["can wait"], ["another"]], "both would be too much for the first"

    run(scenario())


def test_frames_gather_while_the_device_is_busy():
    async def scenario():
        device = Device()
        async with serving(device, batch_max=4, wait_s=0.0) as batcher:
            device.free.clear()
            first = submit(batcher, "first")
            await until(device.started.is_set)
            rest = submit(batcher, *range(6))
            await settled()
            assert len(batcher) == 6
            device.free.set()
            await asyncio.gather(*first, *rest)
            assert len(batcher) == 0
        assert device.batches == [["first"], [0, 1, 2, 3], [4, 5]]
        assert len(device.threads) == 1

    run(scenario())


def test_an_exception_reaches_every_waiter_of_its_batch_and_nobody_else():
    async def scenario():
        device = Device()
        device.broken = ("bad",)
        async with serving(device, batch_max=3, wait_s=LONG_S) as batcher:
            answers = await asyncio.gather(*submit(batcher, 1, "bad", 2, 3, 4, 5), return_exceptions=True)
            assert [type(a) for a in answers[:3]] == [RuntimeError] * 3
            assert answers[3:] == ["did 3", "did 4", "did 5"]

    run(scenario())


@pytest.mark.parametrize("answers", [[], [{0: "one"}], [{0: "one"}, {5: "nobody's"}], None])
def test_a_piece_that_gets_no_answer_gets_an_exception_and_the_batcher_goes_on(answers):
    async def scenario():
        given = [answers, [{0: "did 3"}, {1: "did 4"}]]
        executor = ThreadPoolExecutor(1)
        batcher = Batcher(lambda work, given_up: iter(given.pop(0)), executor, batch_max=2, wait_s=LONG_S)
        task = asyncio.ensure_future(batcher.run())
        first = await asyncio.gather(*submit(batcher, 1, 2), return_exceptions=True)
        assert first[0] == "one" or isinstance(first[0], Exception)
        assert isinstance(first[1], Exception)
        assert await asyncio.gather(*submit(batcher, 3, 4)) == ["did 3", "did 4"]
        assert not task.done()
        task.cancel()
        executor.shutdown()

    run(scenario())


def test_a_piece_is_answered_before_the_rest_of_its_batch_is_done():
    async def scenario():
        go_on = threading.Event()

        def process(work, given_up):
            yield {0: "early"}
            assert go_on.wait(PATIENCE_S)
            yield {1: "late"}

        executor = ThreadPoolExecutor(1)
        batcher = Batcher(process, executor, batch_max=2, wait_s=LONG_S)
        task = asyncio.ensure_future(batcher.run())
        early, late = submit(batcher, "a", "b")
        assert await early == "early"
        assert not late.done()
        go_on.set()
        assert await late == "late"
        task.cancel()
        executor.shutdown()

    run(scenario())


def test_an_exception_in_the_middle_of_a_batch_spares_those_answered_before():
    async def scenario():
        def process(work, given_up):
            yield {0: "fine"}
            raise RuntimeError("the device is on fire")

        executor = ThreadPoolExecutor(1)
        batcher = Batcher(process, executor, batch_max=2, wait_s=LONG_S)
        task = asyncio.ensure_future(batcher.run())
        fine, failed = await asyncio.gather(*submit(batcher, "a", "b"), return_exceptions=True)
        assert fine == "fine"
        assert str(failed) == "the device is on fire"
        task.cancel()
        executor.shutdown()

    run(scenario())


def test_answers_come_in_order_under_load():
    async def scenario():
        device = Device()
        async with serving(device, batch_max=7, wait_s=0.001) as batcher:
            order = []

            async def one(i):
                if i % 13 == 0:
                    await asyncio.sleep(0.001)
                assert await batcher.submit(i, deadline=FAR) == f"did {i}"
                order.append(i)

            await asyncio.gather(*(one(i) for i in range(300)))
            done = [w for batch in device.batches for w in batch]
            assert order == done
            assert sorted(done) == list(range(300))
            assert max(map(len, device.batches)) <= 7

    run(scenario())


def test_a_waiter_who_gives_up_harms_nobody():
    async def scenario():
        device = Device()
        async with serving(device, batch_max=4, wait_s=LONG_S) as batcher:
            waiting = submit(batcher, 0, 1, 2)
            await settled()
            waiting[1].cancel()
            waiting += submit(batcher, 3)
            answers = await asyncio.gather(*waiting, return_exceptions=True)
            assert [a for i, a in enumerate(answers) if i != 1] == ["did 0", "did 2", "did 3"]
            assert isinstance(answers[1], asyncio.CancelledError)
            assert await asyncio.gather(*submit(batcher, *range(4, 8))) == [f"did {i}" for i in range(4, 8)]

    run(scenario())


@pytest.mark.parametrize("broken", [(), (1,)])
def test_a_waiter_may_give_up_while_the_device_works(broken):
    async def scenario():
        device = Device()
        device.broken = broken
        device.free.clear()
        async with serving(device, batch_max=2, wait_s=LONG_S) as batcher:
            waiting = submit(batcher, 0, 1)
            await until(device.started.is_set)
            waiting[0].cancel()
            await settled()
            device.free.set()
            answer = (await asyncio.gather(*waiting, return_exceptions=True))[1]
            assert isinstance(answer, RuntimeError) if broken else answer == "did 1"
            device.broken = ()
            assert await asyncio.gather(*submit(batcher, 2, 3)) == ["did 2", "did 3"]

    run(scenario())


def test_ending_the_batcher_leaves_nobody_answered_twice():
    async def scenario():
        device = Device()
        async with serving(device, batch_max=8, wait_s=LONG_S) as batcher:
            waiting = submit(batcher, "left")
            await settled()
        assert device.batches == []
        assert not waiting[0].done()
        waiting[0].cancel()

    run(scenario())


def test_stations_take_turns_and_the_oldest_frame_of_each_goes_first():
    async def scenario():
        device = Device()
        device.free.clear()
        async with serving(device, batch_max=3) as batcher:
            first = asyncio.ensure_future(batcher.submit("held", deadline=FAR))
            await until(device.started.is_set)
            flood = [asyncio.ensure_future(batcher.submit(f"a{i}", deadline=FAR, turn="a")) for i in range(6)]
            rest = [asyncio.ensure_future(batcher.submit(f"{t}0", deadline=FAR, turn=t)) for t in ("b", "c", "d")]
            await settled()
            device.free.set()
            await asyncio.gather(first, *flood, *rest)
        assert device.batches == [["held"], ["a0", "b0", "c0"], ["d0", "a1", "a2"], ["a3", "a4", "a5"]]

    run(scenario())


def test_a_batch_takes_no_more_than_half_the_time_that_its_most_urgent_frame_has_left():
    async def scenario():
        clock, device = Clock(), Device()
        device.clock, device.takes_s = clock, 1.0
        async with serving(device, batch_max=8, clock=clock) as batcher:
            await asyncio.gather(*submit(batcher, "learn"))
            device.free.clear()
            held = submit(batcher, "held")
            device.started.clear()
            await until(device.started.is_set)
            waiting = submit(batcher, *range(5), deadline=clock.at + 1.0 + 6.5)
            await settled()
            device.free.set()
            await asyncio.gather(*held, *waiting)
        # A piece takes 1 s. With 6.5 s left three fit in half of it; then 5.5 s are left for two.
        assert device.batches == [["learn"], ["held"], [0, 1, 2], [3, 4]]

    run(scenario())


def test_with_a_frame_that_is_late_already_the_others_need_not_hurry():
    async def scenario():
        clock, device = Clock(), Device()
        async with serving(device, batch_max=4, wait_s=LONG_S, clock=clock) as batcher:
            batcher.pace.learn(1, 1.0)
            late, fine = submit(batcher, "late", deadline=clock.at - 1), submit(batcher, *range(3))
            await asyncio.gather(*late, *fine)
        assert device.batches == [["late", 0, 1, 2]]

    run(scenario())


def test_those_with_no_time_for_the_batch_are_given_up_where_the_others_cannot_wait():
    async def scenario():
        clock, device = Clock(), Device()
        given = []
        async with serving(device, batch_max=8, clock=clock) as batcher:
            for size in [1, 2, 3, 16] * 20:
                batcher.pace.learn(size, 1.0 + 0.1 * size)
            batcher._process = lambda work, given_up: (
                given.append((list(work), list(given_up))) or device(work, given_up)
            )
            ages = {"old": 1.2, "a": 2.0, "b": 2.0, "c": 2.0, "older": 1.15, "d": 2.0}
            await asyncio.gather(
                *(batcher.submit(name, deadline=clock.at + left_s, turn=name) for name, left_s in ages.items())
            )
        assert given == [(["old", "a", "b", "c", "older", "d"], [True, False, False, False, True, False])]

    run(scenario())


def test_after_a_hiccup_nobody_is_given_up_for_long():
    """What a batch took once, longer than any deadline, is not believed for ever, though no batch shows otherwise."""

    async def scenario():
        clock, device = Clock(), Device()
        asked = []
        async with serving(device, batch_max=4, clock=clock) as batcher:
            batcher.pace.learn(1, 5.0)
            batcher._process = lambda work, given_up: asked.append(*given_up) or device(work, given_up)
            while not asked or asked[-1]:
                assert len(asked) < 10
                await batcher.submit("frame", deadline=clock.at + 0.5)
        assert asked[:2] == [True, True]

    run(scenario())


def test_a_flood_whose_frame_is_the_most_urgent_costs_no_other_station_its_frame():
    async def scenario():
        clock, device = Clock(), Device()
        given = {}
        async with serving(device, batch_max=10, clock=clock) as batcher:
            for size in [1, 2, 5, 16] * 20:
                batcher.pace.learn(size, 2.0 + 1.0 * size)
            batcher._process = lambda work, given_up: (
                given.update(zip(work, given_up, strict=True)) or device(work, given_up)
            )
            flood = [6.5, 8, 11, 12, 13, 17, 18, 19, 21]
            rest = [batcher.submit(f"flood {s}", deadline=clock.at + s, turn="flood") for s in flood]
            other = batcher.submit("other", deadline=clock.at + 6.6, turn="other")
            await asyncio.gather(rest[0], other, *rest[1:])
        assert not given["other"]

    run(scenario())


FLOOD = {"flood": 15}
EVEN = {"a": 8, "b": 7}


@pytest.mark.parametrize(
    ("before", "now", "sizes"),
    [
        ((), FLOOD, [15]),
        (("other",), FLOOD, [10, 5]),
        (("flood",), FLOOD, [15]),
        (("a", "b"), EVEN, [15]),
    ],
)
def test_a_flood_fills_a_batch_only_as_far_as_another_stations_next_frame_can_wait(before, now, sizes):
    assert asyncio.run(asyncio.wait_for(batch_sizes(before, now, later_s=1.0), PATIENCE_S)) == sizes


def test_a_station_without_frames_for_a_minute_is_waited_for_no_more():
    assert asyncio.run(asyncio.wait_for(batch_sizes(("other",), FLOOD, later_s=61.0), PATIENCE_S)) == [15]


async def batch_sizes(before, now, *, later_s):
    """Of frames that come together some time after those of before, each with 0.4 s, where one takes 0.01 s."""
    clock, device = Clock(), Device()
    async with serving(device, batch_max=16, clock=clock) as batcher:
        teach(batcher.pace)
        for name in before:
            known = batcher.pace(1)
            await batcher.submit(name, deadline=clock.at + 0.4, turn=name)
            await until(lambda known=known: batcher.pace(1) != known)  # else it takes what passes below
        teach(batcher.pace)
        device.batches.clear()
        clock.at += later_s
        frames = [name for name, count in now.items() for _ in range(count)]
        await asyncio.gather(*(batcher.submit(name, deadline=clock.at + 0.4, turn=name) for name in frames))
    return [len(batch) for batch in device.batches]


def teach(pace):
    for size in [1, 2, 5, 16] * 20:
        pace.learn(size, 0.01 * size)


def test_batches_that_took_no_time_of_the_device_teach_nothing():
    """Frames that no model decides about are answered in no time."""

    async def scenario():
        clock, device = Clock(), Device()

        def nothing(work, given_up):
            yield dict.fromkeys(range(len(work)), "no model")
            return 0

        async with serving(device, batch_max=4, clock=clock) as batcher:
            for size in [1, 4] * 20:
                batcher.pace.learn(size, 0.05 * size)
            batcher._process = nothing
            for _ in range(10):
                assert set(await asyncio.gather(*submit(batcher, *range(4)))) == {"no model"}
            assert batcher.pace(4) == pytest.approx(0.2)

    run(scenario())


def test_a_frame_with_little_time_in_all_is_not_given_up_for_its_way_back():
    async def scenario():
        clock, device = Clock(), Device()
        given = []
        async with serving(device, clock=clock) as batcher:
            batcher.pace.learn(1, 0.002)
            batcher._process = lambda work, given_up: given.extend(given_up) or device(work, given_up)
            await batcher.submit("hurried", deadline=clock.at + 0.008)
        assert given == [False]

    run(scenario())


def test_quick_answers_are_given_together_and_wait_for_no_slow_one():
    async def scenario():
        told, go_on = [], threading.Event()

        def process(work, given_up):
            yield {0: "quick"}
            yield {1: "quick"}
            assert go_on.wait(PATIENCE_S)
            yield {2: "slow"}
            return 3

        executor = ThreadPoolExecutor(1)
        batcher = Batcher(process, executor, batch_max=3, wait_s=LONG_S)
        task = asyncio.ensure_future(batcher.run())
        pieces = submit(batcher, "a", "b", "c")
        for piece in pieces:
            piece.add_done_callback(lambda piece: told.append((piece.result(), time.monotonic())))
        await asyncio.gather(*pieces[:2])
        go_on.set()
        await pieces[2]
        await settled()
        (_, first), (_, second), _ = told
        assert [answer for answer, _ in told] == ["quick", "quick", "slow"]
        assert second - first < 0.015
        task.cancel()
        executor.shutdown()

    run(scenario())
