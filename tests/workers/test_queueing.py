"""A worker as a queue, held against what queueing theory knows, and against the real batcher in a time of its own."""

import asyncio
import selectors
from concurrent.futures import Executor, Future

import numpy as np
import pytest

from workers.batching import Batcher
from workers.queueing import Service, Way, arrivals, serve

ALONE = {"batch_max": 1, "wait_s": 0.0}


def at(*times):
    return np.array(times, dtype=float)


def ms(served):
    return np.round(served.latency * 1000, 6).tolist()


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_random_arrivals_wait_as_long_as_in_an_m_d_1_queue(load):
    service_s, frames = 0.004, 150_000
    rng = np.random.default_rng(0)
    captured = np.cumsum(rng.exponential(service_s / load, frames))
    served = serve(captured, Service(per_frame_s=service_s, **ALONE))
    waited = served.latency.mean() - service_s
    assert waited == pytest.approx(load * service_s / (2 * (1 - load)), rel=0.05)  # Pollaczek and Khinchine
    assert served.busy_s / captured[-1] == pytest.approx(load, rel=0.01)


def test_regular_arrivals_wait_for_nothing_until_the_worker_is_full():
    service = Service(per_frame_s=0.009, **ALONE)
    assert ms(serve(np.arange(1000) * 0.010, service)) == [9.0] * 1000
    late = ms(serve(np.arange(1000) * 0.008, service))
    assert late == [pytest.approx(9.0 + i) for i in range(1000)], "a millisecond more with each"


def test_what_comes_together_is_a_batch_and_what_does_not_fit_is_the_next():
    service = Service(per_frame_s=0.004, per_batch_s=0.002, batch_max=3, wait_s=0.005)
    assert service.capacity == pytest.approx(3 / 0.014)
    assert ms(serve(np.zeros(3), service)) == [14.0] * 3, "full, and so not waited for"
    assert ms(serve(np.zeros(5), service)) == [14.0] * 3 + [24.0] * 2
    assert ms(serve(np.zeros(2), service)) == [15.0] * 2, "5 ms for a third"


def test_the_first_of_a_batch_waits_for_others_only_so_long():
    service = Service(per_frame_s=0.001, batch_max=8, wait_s=0.005)
    assert ms(serve(at(0.0, 0.003, 0.006), service)) == [7.0, 4.0, 6.0]


def test_the_way_there_and_back_is_part_of_the_latency():
    service, way = Service(per_frame_s=0.004, **ALONE), Way(there_s=0.003, back_s=0.002)
    assert ms(serve(at(0.0, 1.0), service, way)) == [9.0, 9.0]


def test_under_twice_the_load_half_is_decided_and_nobody_waits_beyond_the_deadline():
    service, way = Service(per_frame_s=0.010, **ALONE), Way(deadline_s=0.1)
    served = serve(np.arange(4000) * 0.005, service, way)
    decided = np.isfinite(served.latency)
    assert decided.mean() == pytest.approx(0.5, abs=0.01)
    assert served.latency[decided].max() <= 0.1 + 1e-9
    assert served.busy_s == pytest.approx(decided.sum() * 0.010)


def test_a_batch_spends_half_of_what_its_most_urgent_frame_has_left_while_the_others_can_wait():
    service, way = Service(per_frame_s=0.010, batch_max=16, wait_s=0.0), Way(deadline_s=0.11)
    assert np.sort(ms(serve(np.zeros(8), service, way))).tolist() == [50.0] * 5 + [70.0] * 2 + [80.0]


def test_of_more_than_can_be_decided_in_time_a_batch_takes_as_many_as_can():
    service, way = Service(per_frame_s=0.010, batch_max=16, wait_s=0.0), Way(deadline_s=0.11)
    latency = serve(np.zeros(16), service, way).latency
    assert np.isfinite(latency).sum() == 10


def test_a_queue_that_small_batches_would_keep_goes_away():
    """A worker that has stood still for a while finds a frame of every age."""
    service, way = Service(per_frame_s=0.006, per_batch_s=0.014), Way(deadline_s=0.5)
    captured = np.arange(2000) / 60.0
    latency = serve(captured, service, way, held=np.where(captured < 5, 5, 0)).latency
    after = captured >= 5.5
    assert np.isfinite(latency[after]).all()
    assert latency[after].max() < 0.2


def test_frames_whose_partition_nobody_has_are_late_when_somebody_does():
    service, way = Service(per_frame_s=0.001, **ALONE), Way(deadline_s=0.2)
    captured = np.arange(100) * 0.1
    held = np.where(captured < 5.0, 5.0, 0.0)
    latency = serve(captured, service, way, held=held).latency
    assert np.isinf(latency[captured < 4.75]).all()
    assert (latency[captured >= 4.85] < 0.2).all()


def test_the_order_of_the_frames_does_not_matter():
    rng = np.random.default_rng(0)
    captured = rng.uniform(0, 10, 2000)
    service, way = Service(per_frame_s=0.004, per_batch_s=0.001), Way(deadline_s=0.1)
    order = rng.permutation(2000)
    assert (serve(captured, service, way).latency[order] == serve(captured[order], service, way).latency).all()


def test_triggers_keep_their_rate_and_their_phases():
    rng = np.random.default_rng(0)
    apart = arrivals(50, 30.0, 10.0, jitter_s=0.0, together=False, rng=rng)
    assert apart.shape == (50, 300)
    assert np.diff(apart, axis=1) == pytest.approx(1 / 30)
    assert apart[:, 0].std() == pytest.approx(1 / 30 / 12**0.5, rel=0.2), "phases are spread over a period"
    same = arrivals(50, 30.0, 10.0, jitter_s=0.002, together=True, rng=rng)
    assert (same - np.arange(300) / 30)[:, 1:].std() == pytest.approx(0.002, rel=0.05)


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose time is what it would wait for: it never waits."""

    def __init__(self):
        self.now = 0.0
        super().__init__(_Selector(self))

    def time(self):
        return self.now


class _Selector(selectors.SelectSelector):
    def __init__(self, loop):
        super().__init__()
        self._loop = loop

    def select(self, timeout=None):
        self._loop.now += timeout or 0.0
        return super().select(0)


class Device(Executor):
    """Takes as long for a batch, in the loop's time, as the service says, or so many times as long."""

    def __init__(self, loop, service, times):
        self.frames = 0
        self._loop, self._service, self._times = loop, service, times

    def submit(self, work):
        done = Future()
        spent = self._service.takes_s(self.frames) if self.frames else 0.0
        self.frames = 0
        self._loop.call_later(spent * self._times(self._loop.time()), lambda: done.set_result(work()))
        return done


def at_once(works, given_up):
    yield {place: not given for place, given in enumerate(given_up)}
    return len(works) - sum(given_up)


def batched(captured, service, way, times=lambda _now: 1.0):
    """Latencies by the real batcher, infinite without a verdict, in the form of what was captured."""
    loop = Loop()
    device = Device(loop, service, times)
    latency = [np.full(len(each), np.nan) for each in captured]

    async def frame(batcher, station, number):
        at = captured[station][number]
        await asyncio.sleep(at + way.there_s - loop.time())
        decided = await batcher.submit(None, deadline=at + way.deadline_s, turn=station)
        latency[station][number] = loop.time() - at + way.back_s if decided else np.inf

    async def run():
        batcher = Batcher(
            at_once,
            device,
            batch_max=service.batch_max,
            wait_s=service.wait_s,
            clock=loop.time,
            on_batch=lambda frames: setattr(device, "frames", frames),
        )
        serving = asyncio.ensure_future(batcher.run())
        frames = [(station, number) for station, times in enumerate(captured) for number in range(len(times))]
        await asyncio.gather(*(frame(batcher, *each) for each in frames))
        serving.cancel()

    loop.run_until_complete(run())
    loop.close()
    return latency


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("stations", [2, 5, 7])
def test_a_simulated_worker_is_as_fast_as_the_real_batcher(stations, together):
    service, way = Service(per_frame_s=0.004, per_batch_s=0.001), Way(there_s=0.005, back_s=0.005, deadline_s=0.2)
    captured = arrivals(stations, 30.0, 20.0, jitter_s=0.002, together=together, rng=np.random.default_rng(stations))
    truth, simulated = np.stack(batched(captured, service, way)), serve(captured.ravel(), service, way).latency
    assert np.isfinite(truth).all()
    assert simulated.mean() == pytest.approx(truth.mean(), rel=0.01)
    assert np.quantile(simulated, (0.5, 0.99)) == pytest.approx(np.quantile(truth, (0.5, 0.99)), rel=0.03)


@pytest.mark.parametrize(
    ("stations", "per_batch_s", "per_frame_s", "deadline_s", "load"),
    [(2, 0.03, 0.012, 0.5, 0.9), (2, 0.06, 0.010, 0.5, 0.75), (4, 0.02, 0.004, 0.3, 0.97), (2, 0.01, 0.0155, 0.3, 0.9)],
)
def test_near_what_full_batches_can_do_every_frame_of_like_stations_is_decided_in_time(
    stations, per_batch_s, per_frame_s, deadline_s, load
):
    service, way = Service(per_frame_s=per_frame_s, per_batch_s=per_batch_s), Way(there_s=0.02, deadline_s=deadline_s)
    rate = load * service.capacity / stations
    captured = arrivals(stations, rate, 20.0, jitter_s=0.003, together=False, rng=np.random.default_rng(1))
    assert np.max(batched(captured, service, way)) <= deadline_s


@pytest.mark.parametrize(
    ("stations", "per_batch_s", "per_frame_s", "deadline_s", "load"),
    [
        (4, 0.006, 0.001, 0.05, 0.85),
        (2, 0.03, 0.012, 0.5, 1.2),
        (5, 0.03, 0.012, 0.5, 1.2),
        (10, 0.005, 0.015, 0.5, 1.1),
    ],
)
def test_like_stations_that_send_more_than_is_possible_fare_as_in_the_simulation(
    stations, per_batch_s, per_frame_s, deadline_s, load
):
    service, way = Service(per_frame_s=per_frame_s, per_batch_s=per_batch_s), Way(deadline_s=deadline_s)
    rate = load * service.capacity / stations
    captured = arrivals(stations, rate, 20.0, jitter_s=0.003, together=False, rng=np.random.default_rng(1))
    in_time = np.mean(np.concatenate(batched(captured, service, way)) <= deadline_s)
    assert in_time >= np.mean(serve(captured.ravel(), service, way).latency <= deadline_s) - 0.02
    assert in_time >= 0.9 / max(load, 1.0)


@pytest.mark.parametrize("flood", [1, 20])
def test_on_a_machine_that_is_slow_now_and_then_a_flood_makes_no_other_station_late(flood):
    service, way = Service(per_frame_s=0.015, per_batch_s=0.001), Way(there_s=0.01, deadline_s=0.5)
    rng = np.random.default_rng(1)
    one = arrivals(1, 1.85 * flood, 40.0, jitter_s=0.003, together=False, rng=rng)
    others = arrivals(19, 1.85, 40.0, jitter_s=0.003, together=False, rng=rng)
    latency = batched([*one, *others], service, way, lambda now: 1.8 if now % 10 < 2.5 else 1.0)
    assert max(map(np.max, latency[1:])) <= way.deadline_s  # without the rule for floods 6 % are late
