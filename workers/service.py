"""A worker process from start to end: check, load, run, drain.

SIGTERM or SIGINT takes no more frames, publishes what is in flight, commits and exits 0.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from model_store import ModelKey, open_store
from model_store.frames import open_roots
from model_store.pool import open_pool
from pipeline.decode import Limits
from pipeline.errors import ConfigError
from pipeline.settings import Settings
from pipeline.threads import share
from workers import app as faust_app
from workers import clients, logs, pauses, spans, topics, watchdog
from workers.backbones import opener
from workers.claims import Claims
from workers.desk import Desk, Finds
from workers.drift_watch import DriftWatch
from workers.feedback import Follower
from workers.health import Health
from workers.inspect import Lane, Lanes
from workers.live import Models
from workers.metrics import WorkerMetrics
from workers.outcomes import Outcome
from workers.pass_all import PassAll
from workers.pooling import Pooling
from workers.publish import Publisher
from workers.spans import Spans
from workers.vitals import Vitals

log = logs.get(__name__)

_STOP_S = 5.0
_AT_ONCE = 2  # one batch is decoded while another is scored


def limits_of(settings: Settings) -> Limits:
    """What this line accepts as a picture."""
    return Limits(max_pixels=settings.frames.max_pixels, formats=tuple(settings.frames.formats))


def check(settings: Settings) -> None:
    """Refuse to start on what cannot work.

    Raises:
        ConfigError: no station, no broker, or topics that are missing or do not fit.
    """
    if not settings.stations:
        raise ConfigError('no station in the settings; add one: [stations."line-1/top"]')
    problems = topics.check(
        settings.kafka.brokers, topics.of(settings), client_options=clients.client_options(settings.kafka)
    )
    if problems:
        raise ConfigError("\n".join(problems))


def run(settings: Settings, models: Models | PassAll | None = None, *, metrics_port: int | None = None) -> int:
    """Run a worker until a signal ends it.

    Args:
        settings: checked.
        models: in place of the store's, for benchmarks of the walk without a model.
        metrics_port: where it answers /metrics and /health, instead of the settings'.

    Returns:
        The exit status.
    """
    check(settings)
    tracing = spans.opened(settings, "worker")
    at_once = _share(settings)
    metrics = WorkerMetrics(settings)
    models = models or _models_of(settings, metrics)
    vitals = Vitals(settings, models)
    health = Health(metrics, settings, port=metrics_port, live=vitals.live, ready=vitals.ready)
    health.start()
    try:
        models.start()
        return asyncio.run(_serve(settings, models, metrics, vitals, tracing, at_once))
    finally:
        models.stop()
        health.stop()
        tracing.close()


def _share(settings: Settings) -> int:
    """Let this process compute as the settings say.

    Returns:
        How many batches at once, never more than it has threads.
    """
    threads = settings.worker.threads or max(1, os.cpu_count() or 1)
    at_once = min(settings.worker.at_once or _AT_ONCE, threads)
    share(threads, at_once)
    return at_once


def _models_of(settings: Settings, metrics: WorkerMetrics) -> Models:
    keys = [ModelKey(name, recipe) for name, station in settings.stations.items() for recipe in station.recipes]
    return Models(
        open_store(settings.store.url),
        keys,
        open_backbone=opener(settings, settings.worker.device),
        limits=limits_of(settings),
        poll_s=settings.store.poll_s,
        most_bytes=settings.worker.models_max_mb * 1_000_000,
        metrics=metrics,
    )


def _pool_threads(
    settings: Settings, metrics: WorkerMetrics
) -> tuple[Callable[[Outcome], None], list[Pooling | Follower]]:
    """Who is told of published outcomes, and the threads to run for it: none where there is no pool."""
    if settings.pool.url is None:
        return lambda _: None, []
    pool = open_pool(settings.pool)
    pooling = Pooling(pool, metrics=metrics)
    return pooling.offer, [pooling, Follower(settings, pool)]


async def _serve(
    settings: Settings, models: Finds, metrics: WorkerMetrics, vitals: Vitals, tracing: Spans, at_once: int
) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    executor = ThreadPoolExecutor(at_once, thread_name_prefix="device")
    app = faust_app.build(settings)
    offer, beside = _pool_threads(settings, metrics)

    def on_published(outcome: Outcome) -> None:
        offer(outcome)
        tracing.inspected(outcome)

    source = f"worker/{os.getpid()}"
    publisher = Publisher(faust_app.Sender(app).send, settings, source, on_published=on_published, metrics=metrics)
    claims = Claims(
        open_roots(settings.frames.roots, keep_s=settings.frames.keep_s),
        on_silence=partial(metrics.store_failed, "frames"),
    )
    watch = DriftWatch(settings, lambda alarm: loop.call_soon_threadsafe(publisher.drifted, alarm), metrics)
    desk = Desk(
        models,
        settings.worker,
        executor,
        claims,
        at_once=at_once,
        on_tried=lambda tried: loop.call_soon_threadsafe(partial(publisher.tried, tried)),
        on_decided=watch.take,
        on_batch=metrics.batch,
    )
    lanes = Lanes(lambda partition: Lane(partition, settings, desk, publisher, metrics))
    faust_app.attach(app, settings, lanes)
    batching, beating = (asyncio.ensure_future(task) for task in (desk.batcher.run(), vitals.heart.run()))

    def assigned() -> set[int]:
        return faust_app.assigned(app) if lanes.joined else set()

    vitals.watch(lanes, assigned)
    metrics.partitions.set_function(lambda: len(assigned()))
    await app.start()
    for thread in beside:
        thread.start()
    watch.start()
    watchdog.start(settings, assigned, metrics)
    pauses.settle()
    log.info("worker started", stations=list(settings.stations), group=settings.kafka.group)
    crashed = asyncio.ensure_future(app.wait_until_stopped())
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({crashed, stopping, batching}, return_when=asyncio.FIRST_COMPLETED)
    asked = stop.is_set()
    lanes.stop_intake()
    clean = asked and await lanes.drain(within_s=settings.worker.drain_s)
    await asyncio.to_thread(watch.stop)
    if clean:
        await publisher.settle()
        await app.consumer.commit()
    lanes.close()
    for task in (batching, crashed, stopping, beating):
        task.cancel()
    try:
        await asyncio.wait_for(app.stop(), _STOP_S)
    except TimeoutError:
        log.warning("faust did not stop in time; everything is published and committed", within_s=_STOP_S)
    executor.shutdown(wait=False, cancel_futures=True)
    claims.close()
    for thread in beside:
        thread.stop()
    log.info("worker ended", asked=asked, **metrics.flow.totals())
    return 0 if clean else 1
