"""A real Prometheus (Debian's) on loopback, as deploy/prometheus sets it up, and what the dashboards ask of it."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError
from workers.rig import Process

DEPLOY = Path(__file__).resolve().parent.parent
SETUP = DEPLOY / "prometheus" / "prometheus.yaml"
RULES = DEPLOY / "prometheus" / "rules.yaml"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))

# What Grafana would put in: a range of six scrapes, all stations.
_VARIABLES = {"$__rate_interval": "30s", "$__range": "5m", "$station": ".*"}
_READY_S = 30.0
_ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class Query:
    """What a panel asks."""

    dashboard: str
    panel: str
    expr: str


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every panel that is no row, with its dashboard's name."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            if panel["type"] != "row":
                yield path.stem, panel


def rules() -> list[dict[str, Any]]:
    """Every rule."""
    tree = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return [rule for group in tree["groups"] for rule in group["rules"]]


def queries() -> Iterator[Query]:
    """Every query of every panel, as Grafana would send it."""
    for dashboard, panel in panels():
        for target in panel["targets"]:
            expr = target["expr"]
            for name, value in _VARIABLES.items():
                expr = expr.replace(name, value)
            yield Query(dashboard, panel["title"], expr)


def prepare(folder: Path, targets: Mapping[str, str], *, every_s: int | None = None) -> None:
    """Lay out Prometheus' folder: settings and rules of deploy/prometheus as they are, and a file of targets.

    Args:
        folder: made if needed.
        targets: `http://HOST:PORT` of each process, by its name: its kind, and what tells it from others after a dash.
        every_s: scrape and evaluate as often, instead of what the settings say.
    """
    (folder / "targets").mkdir(parents=True, exist_ok=True)
    found = [
        {"targets": [url.removeprefix("http://")], "labels": {"process": name.partition("-")[0]}}
        for name, url in targets.items()
    ]
    (folder / "targets" / "line.yaml").write_text(yaml.safe_dump(found), encoding="utf-8")
    shutil.copy(RULES, folder / RULES.name)
    setup = yaml.safe_load(SETUP.read_text(encoding="utf-8"))
    if every_s is not None:
        setup["global"] = {"scrape_interval": f"{every_s}s", "evaluation_interval": f"{every_s}s"}
    (folder / SETUP.name).write_text(yaml.safe_dump(setup), encoding="utf-8")


class Prometheus:
    """One that runs on what `prepare` laid out.

    Args:
        folder: its settings, data and log.
        port: on loopback.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        argv = [
            "prometheus",
            f"--config.file={folder / SETUP.name}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
            "--enable-feature=exemplar-storage",
        ]
        log = folder / "prometheus.log"
        with log.open("w") as out:
            # A session of its own: Ctrl-C in the terminal is for whoever started it.
            popen = subprocess.Popen(argv, stdout=out, stderr=out, text=True, start_new_session=True)
        self.process = Process("prometheus", popen, log)

    def wait(self) -> None:
        """Until it answers.

        Raises:
            ConfigError: it ended, or does not answer in time.
        """
        until = time.monotonic() + _READY_S
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=_ANSWER_S):  # noqa: S310 - a URL of ours
                    return
            except OSError as error:
                if self.process.popen.poll() is not None or time.monotonic() > until:
                    raise ConfigError(f"Prometheus does not answer: {self.process.last_words()}") from error
                time.sleep(0.1)

    def ask(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its API.

        Raises:
            ConfigError: it does not answer, or refuses the question.
        """
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=_ANSWER_S) as answer:  # noqa: S310 - a URL of ours
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ConfigError(f"Prometheus refuses {parameters}: {error.read().decode()}") from error
        except OSError as error:
            raise ConfigError(f"Prometheus does not answer: {error}; {self.process.last_words()}") from error

    def query(self, expr: str) -> list[Any]:
        """The series that a query returns now, without those that are not a number."""
        return [each for each in self.ask("query", query=expr)["result"] if each["value"][1] != "NaN"]

    def alerting(self) -> list[dict[str, Any]]:
        """Alerting rules, as the API tells them: name, state, health, alerts."""
        groups = self.ask("rules", type="alert")["groups"]
        return [rule for group in groups for rule in group["rules"]]
