"""Every query of the dashboards and rules, asked of a real Prometheus that scrapes a real line."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tests.conftest import missing
from tests.line import STATIONS, start_worker
from tests.monitoring import RULES, alerts, panels, rules
from workers.health import Health
from workers.metrics import RefitMetrics
from workers.rig import Rig

pytestmark = pytest.mark.kafka

VARIABLES = {"$__rate_interval": "30s", "$__range": "5m", "$station": ".*"}


class Prometheus:
    """A real one, on loopback, for as long as the `with` lasts."""

    def __init__(self, folder: Path, targets: dict[str, str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        (folder / "targets.json").write_text(
            json.dumps([{"targets": [url.removeprefix("http://")]} for url in targets.values()])
        )
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [
                {"job_name": "goldline", "file_sd_configs": [{"files": [str(folder / "targets.json")]}]}
            ],
        }
        (folder / "prometheus.yaml").write_text(json.dumps(config))
        self._argv = [
            "prometheus",
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address={self._url.removeprefix('http://')}",
            "--enable-feature=exemplar-storage",
        ]
        self._log = folder / "prometheus.log"

    def __enter__(self) -> Self:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._argv, stdout=log, stderr=log)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)

    def ask(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its API; None while it does not answer."""
        assert self._process.poll() is None, self._log.read_text()[-2000:]
        try:
            url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it is starting
                return None
            pytest.fail(f"{parameters}: {error.read().decode()}")
        except OSError:
            return None

    def query(self, expr: str) -> list[Any]:
        """The series that a query returns now, without those that are not a number."""
        answer = self.ask("query", query=expr)
        return [each for each in (answer or {"result": []})["result"] if each["value"][1] != "NaN"]


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
    with Prometheus(tmp_path, {**targets, "refit": str(refit.url)}) as prometheus:
        yield prometheus
    refit.stop()


@pytest.mark.timeout(300)
def test_every_query_returns_data_and_no_alert_fires(watched: Prometheus) -> None:
    wanted = [target["expr"] for _, panel in panels() for target in panel["targets"]]
    for name, value in VARIABLES.items():
        wanted = [expr.replace(name, value) for expr in wanted]
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
