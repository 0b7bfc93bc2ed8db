"""What several integration tests do with a line."""

import time

from workers import clients, messages, topics
from workers.rig import Process, Rig

STATIONS = ("line-1/top", "line-2/top")


def start_worker(rig: Rig, name: str = "worker", *, assigned: int = len(STATIONS)) -> Process:
    """A worker that has its partitions."""
    worker = rig.run(name, "worker", "--config", str(rig.config))
    rig.wait_for(worker, "worker started")
    until = time.monotonic() + 60
    while worker.log.read_text().count('"event": "assigned"') < assigned:
        worker.check()
        assert time.monotonic() < until, worker.last_words()
        time.sleep(0.1)
    return worker


def results(rig: Rig, wanted: int, *, within_s: float = 90.0) -> list[messages.Result]:
    """Every result on the topic in log order, repeats included, once `wanted` frame ids are there (or time is up)."""
    client = clients.tail(rig.settings.kafka, topics.name(rig.prefix, "results"), from_start=True)
    read: list[messages.Result] = []
    until = time.monotonic() + within_s
    settled = 0.0
    while time.monotonic() < until:
        for record in clients.records(client):
            result = messages.decode_result(record.value)
            assert result is not None, record.value
            read.append(result)
        if len({r.frame_id for r in read}) >= wanted:
            settled = settled or time.monotonic()
            if time.monotonic() - settled > 1.5:
                break
    client.close()
    return read


def assert_one_verdict_each(read: list[messages.Result], frame_ids: set[str], *, repeats: bool = False) -> None:
    """Every frame has its verdict, and no repeat contradicts the first."""
    first: dict[str, messages.Result] = {}
    for result in read:
        before = first.setdefault(result.frame_id, result)
        assert (before.verdict, before.result_id) == (result.verdict, result.result_id)
    assert first.keys() == frame_ids
    if not repeats:
        assert len(read) == len(first)
