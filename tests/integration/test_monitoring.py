"""Every query of the dashboards and rules, asked of a real Prometheus that scrapes a real line."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local.prometheus import Prometheus, prepare, queries
from deploy.local.stack import free_port
from tests.conftest import missing
from tests.line import STATIONS, start_worker
from tests.monitoring import alerts, rules
from workers.health import Health
from workers.metrics import RefitMetrics
from workers.rig import Rig

pytestmark = pytest.mark.kafka


@pytest.fixture
def watched(make_line: Callable[..., Rig], pictures: Path, tmp_path: Path) -> Iterator[Prometheus]:
    """A line at work, and a Prometheus that has looked at it for a while."""
    if shutil.which("prometheus") is None:
        missing("no prometheus here: install it (Debian: apt-get install prometheus)")
    rig = make_line(heatmaps="all", pool={"url": f"file://{tmp_path}/pool"})
    worker = start_worker(rig)
    gate = rig.run("gate", "gate", "--config", str(rig.config), "--output", str(rig.directory / "actions.jsonl"))
    cameras = [
        rig.run(
            f"camera-{i}",
            "camera",
            str(pictures),
            "--config",
            str(rig.config),
            "--station",
            name,
            "--rate",
            "5",
            "--loop",
        )
        for i, name in enumerate(STATIONS)
    ]
    refits = RefitMetrics(rig.settings)
    refits.refit(STATIONS[0], "default", "promoted", seconds=20.0)
    refit = Health(refits, rig.settings)
    refit.start()
    targets = {process.name: rig.metrics_url(process) for process in (worker, gate, *cameras)}
    prepare(tmp_path / "prometheus", {**targets, "refit": str(refit.url)}, every_s=1)
    prometheus = Prometheus(tmp_path / "prometheus", free_port())
    try:
        prometheus.wait()
        yield prometheus
    finally:
        prometheus.process.end()
        refit.stop()


@pytest.mark.timeout(300)
def test_every_query_returns_data_and_no_alert_fires(watched: Prometheus) -> None:
    wanted = [query.expr for query in queries()]
    wanted += [rule["record"] for rule in rules() if "record" in rule and "expected" not in rule["record"]]
    until = time.monotonic() + 90
    while (empty := [expr for expr in wanted if not watched.query(expr)]) and time.monotonic() < until:
        time.sleep(1.0)
    assert not empty

    loaded = [rule for group in watched.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"]: rule["health"] for rule in loaded if rule["health"] != "ok"} == {}
    assert {rule["name"] for rule in loaded if rule["type"] == "alerting"} == alerts().keys()
    assert {rule["name"] for rule in loaded if rule.get("state") == "firing"} == set()

    out = "sum without (verdict, reason) (goldline_results_total)"
    assert watched.query(f"goldline_frames_received_total == {out} + goldline_frames_in_flight")
    assert not watched.query(f"goldline_frames_received_total != {out} + goldline_frames_in_flight")
    stations = watched.ask("label/station/values", **{"match[]": "goldline_frames_received_total"})
    assert set(stations) == {*STATIONS, "other"}
    exemplars = watched.ask(
        "query_exemplars",
        query="goldline_decision_latency_seconds_bucket",
        start=str(time.time() - 300),
        end=str(time.time()),
    )
    assert all(len(e["labels"]["trace_id"]) == 32 for series in exemplars for e in series["exemplars"])
    assert exemplars
