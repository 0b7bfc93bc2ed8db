"""What a worker, a gate and a camera count is what is on the topics."""

import json
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from model_store import ModelKey, open_store
from pipeline.data import Artifact
from tests.line import STATIONS, assert_one_verdict_each, results, start_worker
from workers import clients, topics, wire
from workers.rig import Rig
from workers.scrape import Scrape, scrape

pytestmark = pytest.mark.kafka

ODD = {"unknown station": 2, "no station": 1, "no recipe": 1, "not a picture": 3, "too late": 2}


def test_every_counter_is_what_is_on_the_topics(make_line: Callable[..., Rig], pictures: Path, tmp_path: Path) -> None:
    rig = make_line(heatmaps="all", pool={"url": f"file://{tmp_path}/pool"})
    worker = start_worker(rig)
    url = rig.metrics_url(worker)
    actions = rig.directory / "actions.jsonl"
    gate = rig.run("gate", "gate", "--config", str(rig.config), "--output", str(actions))
    rig.wait_for(gate, "gate started")
    camera = _camera(rig, pictures, "--count", "60", "--rate", "60")
    looks = []
    while camera.popen.poll() is None:
        looks.append(scrape(url))
    odd = _send_odd(rig, next(pictures.iterdir()).read_bytes())
    read = results(rig, 60 + odd)
    found = scrape(url)

    for look in (*looks, found):
        received, in_flight = look.sum("goldline_frames_received_total"), look.sum("goldline_frames_in_flight")
        assert received == look.sum("goldline_results_total") + in_flight
    assert found.sum("goldline_frames_received_total") == len(read) == 60 + odd
    assert_one_verdict_each(read, {r.frame_id for r in read})
    truth = Counter((_station(r), r.verdict, r.reason or "none") for r in read)
    counted = {
        (labels["station"], labels["verdict"], labels["reason"]): value
        for name, labels, value in found.samples
        if name == "goldline_results_total" and value
    }
    assert counted.keys() == truth.keys()
    for (station, verdict, reason), count in truth.items():
        assert found.sum("goldline_results_total", station=station, verdict=verdict, reason=reason) == count
    assert found.sum("goldline_frames_repeated_total") == 4
    unreadable = ODD["no station"] + ODD["no recipe"] + ODD["not a picture"]
    letters = _read(rig, "dead-letters", unreadable)
    assert found.sum("goldline_dead_letters_total") == len(letters) == unreadable
    assert found.sum("goldline_heatmaps_total", outcome="published") == len(_read(rig, "heatmaps", 60)) == 60
    assert found.sum("goldline_decision_latency_seconds_count") == len(read)
    scored = [r for r in read if r.score is not None]
    assert found.sum("goldline_stage_duration_seconds_count", stage="embed") == len(scored) == 60
    total_s = sum(r.timings_ms.total for r in read) / 1000
    assert found.sum("goldline_stage_duration_seconds_sum", stage="total") == pytest.approx(total_s, abs=1e-3)
    in_time = sum(r.verdict != "no_decision" or r.reason == "bad_frame" for r in read)
    assert found.sum("goldline_results_in_time_total") == in_time
    assert found.sum("goldline_results_late_total") == sum(r.late for r in read) >= ODD["too late"]
    assert found.sum("goldline_batch_size_frames_sum") == 60 + ODD["not a picture"]
    assert found.sum("goldline_models_resident") == 2
    assert found.by("outcome", "goldline_model_reloads_total") == {"loaded": 2}
    assert found.sum("goldline_partitions_assigned") == 2
    fit = sum(r.verdict == "pass" and (r.p_value or 0) >= rig.settings.pool.p_min for r in read)
    assert _later(lambda: scrape(url).sum("goldline_pool_offers_total") == fit > 0), "offered after the verdict"

    acted = _gate(rig, gate, actions)
    traced = {record.key: wire.header(record.headers, "traceparent") for record in _read(rig, "results", len(read))}
    assert all(traced.values()), "a frame without a trace is given one"
    assert all(action["traceparent"] for action in acted if action["why"] == "verdict")
    traces = {wire.header(r.headers, "ce_id"): wire.header(r.headers, "traceparent") for r in _read(rig, "frames", 60)}
    own = {a["frame_id"]: a["traceparent"] for a in acted}
    sent = [each for each in own if each.startswith("line-1-top-")]
    assert len(sent) == 60
    assert all(own[each] == traces[each] for each in sent), "the camera's trace leads to the gate"


def test_a_refused_model_is_in_metrics_and_health_while_the_old_one_serves(
    make_line: Callable[..., Rig], model: Artifact
) -> None:
    rig = make_line()
    worker = start_worker(rig)
    url = rig.metrics_url(worker)
    assert _health(url, "live")[0] == 200
    status, ready = _health(url, "ready")
    assert status == 200, ready
    store, key = open_store(rig.store_url), ModelKey(STATIONS[0])
    before = store.current(key)
    foreign = Artifact(method=model.method, tensors=dict(model.tensors), meta={**model.meta, "backbone": {"name": "x"}})
    version = store.put(key, foreign)
    store.promote(key, version, expected=before, who="tests")
    rig.wait_for(worker, "model refused", within_s=30)
    status, ready = _health(url, "ready")
    assert status == 200, "the old model serves"
    detail = next(c["detail"] for c in ready["checks"] if c["name"] == f"model {key}")
    assert before
    assert before[:12] in detail
    assert f"{version[:12]} is refused" in detail
    found = scrape(url)
    assert found.by("station", "goldline_model_refused") == {STATIONS[0]: 1}
    assert found.sum("goldline_model_reloads_total", station=STATIONS[0], outcome="refused") == 1
    assert found.sum("goldline_model_info", station=STATIONS[0], version=before[:12], role="active") == 1
    store.promote(key, before, expected=version, who="tests")
    assert _later(lambda: scrape(url).sum("goldline_model_refused") == 0)


def _later(holds: Callable[[], bool], within_s: float = 30.0) -> bool:
    until = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _station(result: Any) -> str:
    return result.station if result.station in STATIONS else "other"


def _camera(rig: Rig, pictures: Path, *options: str) -> Any:
    arguments = ["--config", str(rig.config), "--station", STATIONS[0], "--loop", *options]
    return rig.run("camera", "camera", str(pictures), *arguments)


def _send_odd(rig: Rig, picture: bytes) -> int:
    """What no camera of ours sends; frames that will have a verdict, two of them again after it."""
    now = datetime.now(UTC)
    producer = clients.producer(rig.settings.kafka)

    def send(
        name: str, key: str, value: bytes, *, ago_s: float = 0.0, deadline_ms: int = 60_000, recipe: str = "default"
    ) -> None:
        made = wire.frame_headers(
            frame_id=name,
            part_id=name,
            source="tests",
            captured_at=now - timedelta(seconds=ago_s),
            content_type="image/jpeg",
            deadline_ms=deadline_ms,
            recipe=recipe,
        )
        topic = topics.name(rig.prefix, "frames")
        producer.send(topic, key=key.encode(), value=value, headers=made, partition=0).get(timeout=20)

    send("unknown-1", "line-9/top", picture)
    send("unknown-2", 'line-1/to"p', picture)
    send("unknown-3", "line-8/top", picture)
    send("recipe", STATIONS[0], picture, recipe='a" b')
    for i in range(3):
        send(f"junk-{i}", STATIONS[0], b"not a picture")
    for i in range(2):
        send(f"late-{i}", STATIONS[0], picture, ago_s=5.0, deadline_ms=1000)
    for _ in range(4):
        send("junk-0", STATIONS[0], picture)
    producer.close()
    return sum(ODD.values())


def _read(rig: Rig, kind: str, wanted: int) -> list[wire.Record]:
    client = clients.tail(rig.settings.kafka, topics.name(rig.prefix, kind), from_start=True)
    found: list[wire.Record] = []
    for _ in range(100):
        found += clients.records(client)
        if len(found) >= wanted:
            break
    client.close()
    return found


def _gate(rig: Rig, gate: Any, actions: Path) -> list[dict[str, Any]]:
    """What the gate did, and that it counted all of it."""
    url = rig.metrics_url(gate)
    assert _health(url, "live")[0] == _health(url, "ready")[0] == 200
    told: Scrape = scrape(url)
    acted = [json.loads(line) for line in actions.read_text().splitlines()]
    truth = Counter((a["action"], a["why"], a["reason"] or "none") for a in acted)
    for (action, why, reason), count in truth.items():
        assert told.sum("goldline_gate_actions_total", action=action, why=why, reason=reason) == count
    assert told.sum("goldline_gate_actions_total") == len(acted) >= 60
    return acted


def _health(url: str, kind: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"{url}/health/{kind}", timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
