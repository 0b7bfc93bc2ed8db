"""`make line-check`: the line of `make line`, held against its alerts, dashboards and counts; then a worker is killed.

Rules and scrape are those of deploy/prometheus, nothing is shortened. Exit status 0 where everything holds, else 1.
"""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from deploy.local.line import FOLDER
from deploy.local.prometheus import SETUP, Query, queries
from deploy.local.stack import Line, Order, alive
from pipeline.errors import GoldlineError
from workers.rig import Process
from workers.scrape import scrape

KILLED, LEFT = "worker-1", "worker-2"
ALERT = "GoldlineProcessDown"
# What follows from a worker's sudden end, and is right to fire: Kafka takes 15 s to notice, and deadlines are shorter.
FOLLOWS = {"GoldlineMissesFast", "GoldlineMissesSlow", "GoldlineGateDefaults"}
REFUSED = "GoldlineRefitRefused"
_SETTLE_S = 60.0
_DATA_S = 420.0  # a refit's panels have data after the first one, some minutes after the start
_TAKEN_OVER_S = 60.0
_ANSWERED_S = 60.0
_STALE_S = 6.0  # Prometheus' last look is at most a scrape ago


class Report:
    """What was looked at, told as it comes."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def tell(self, name: str, ok: bool, seen: str) -> None:
        """One finding."""
        click.echo(f"{'pass' if ok else 'FAIL'}  {name}: {seen}")
        if not ok:
            self.failed.append(name)


@click.command()
@click.option("--rate", default=3.0, show_default=True, help="Frames a second of each of two stations.")
@click.option("--deadline-ms", default=2000, show_default=True, help="From capture to the gate.")
def main(rate: float, deadline_ms: int) -> None:
    """Run a line for some minutes, and see that its monitoring says what is so."""
    report = Report()
    try:
        order = Order(folder=FOLDER, rate=rate, deadline_ms=deadline_ms)
        with Line(order, say=lambda step: click.echo(f"      {step}")) as line:
            click.echo(f"      the line is up; looking at it after {_SETTLE_S:.0f} s")
            click.echo(f"      load of this machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
            time.sleep(_SETTLE_S)
            quiet(line, report)
            counts(line, report)
            dashboards(line, report)
            quiet(line, report)
            kill(line, report)
            every_frame(line, report)
            pids = line.pids
    except GoldlineError as error:
        sys.exit(f"line-check: {error}")
    except KeyboardInterrupt:
        sys.exit("line-check: interrupted; everything was ended")
    left = [f"{name} ({pid})" for name, pid in pids.items() if alive(pid)]
    report.tell("nothing is left behind", not left, ", ".join(left) or f"{len(pids)} processes ended")
    sys.exit(f"{len(report.failed)} failed: {', '.join(report.failed)}" if report.failed else 0)


def quiet(line: Line, report: Report) -> None:
    """No alert fires or is about to, every rule is evaluated, every process is scraped."""
    rules = line.prometheus.alerting()
    right = rightly(line)
    strange = [rule for rule in active(rules) if rule["name"] not in right]
    told = [f"{rule['name']} {rule['state']}{[a['labels'] for a in rule['alerts']]}" for rule in strange]
    but = f", but {REFUSED}, as one was" if right else ""
    report.tell("every alert is quiet", not told, "; ".join(told) or f"{len(rules)} rules, none firing or pending{but}")
    unwell = [f"{rule['name']}: {rule.get('lastError')}" for rule in rules if rule["health"] != "ok"]
    report.tell("every rule is evaluated", not unwell, "; ".join(unwell) or "all are healthy")
    up = sum(float(series["value"][1]) for series in line.prometheus.query('up{job="goldline"}'))
    report.tell("every process is scraped", up == len(line.urls), f"{up:.0f} of {len(line.urls)}")


def rightly(line: Line) -> set[str]:
    """The alert about refused refits, where the refits' own process says that one was: drawn parts are judged, too."""
    refused = scrape(line.urls["refit"]).sum("goldline_refits_total", outcome="refused")
    return {REFUSED} if refused else set()


def active(rules: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that fire or are pending."""
    return [rule for rule in rules if rule["state"] != "inactive"]


def dashboards(line: Line, report: Report) -> None:
    """Every query of every panel returns data."""
    asked = list(queries())
    empty: list[Query] = []

    def answered() -> bool:
        empty[:] = [query for query in asked if not line.prometheus.query(query.expr)]
        return not empty

    took = waited(answered, _DATA_S)
    told = "; ".join(f"{query.dashboard}, {query.panel}: {query.expr}" for query in empty)
    seen = f"{len(asked)} queries of {len({q.dashboard for q in asked})} dashboards, after {took:.0f} s more"
    report.tell("every dashboard query returns data", not empty, told or seen)


def counts(line: Line, report: Report) -> None:
    """What is on the topic lies between two looks at the workers, and so does what Prometheus has stored."""
    began = time.monotonic()
    before, acted_before = verdicts(line), acted(line)
    topic = on_topic(line)
    actions = len((line.rig.directory / "actions.jsonl").read_text(encoding="utf-8").splitlines())
    time.sleep(max(0.0, began + _STALE_S - time.monotonic()))
    stored = Counter(
        {
            (series["metric"]["station"], series["metric"]["verdict"]): int(float(series["value"][1]))
            for series in line.prometheus.query("sum by (station, verdict) (goldline_results_total) > 0")
        }
    )
    after, acted_after = verdicts(line), acted(line)
    for name, seen in (("goldline results", Counter(topic.values())), ("Prometheus", stored)):
        wrong = outside(before, seen, after)
        told = ", ".join(f"{'/'.join(k)} {seen[k]} not in {before[k]}..{after[k]}" for k in wrong)
        ok = seen.total() > 0 and not wrong
        report.tell(f"the workers' counts are those of {name}", ok, told or f"{seen.total()} verdicts")
    ok = 0 < acted_before <= actions <= acted_after
    report.tell("the gate's count is that of its actions", ok, f"{actions}, in {acted_before:.0f}..{acted_after:.0f}")


def outside(low: Counter[Any], seen: Counter[Any], high: Counter[Any]) -> list[Any]:
    """Keys whose count is not within two others."""
    return sorted(key for key in low.keys() | seen.keys() | high.keys() if not low[key] <= seen[key] <= high[key])


def verdicts(line: Line) -> Counter[tuple[str, str]]:
    """By station and verdict, as the workers tell now."""
    found: Counter[tuple[str, str]] = Counter()
    for name in (KILLED, LEFT):
        for metric, labels, value in scrape(line.urls[name]).samples:
            if metric == "goldline_results_total" and value:
                found[labels["station"], labels["verdict"]] += int(value)
    return found


def acted(line: Line) -> float:
    """Parts that the gate acted on, as it tells now."""
    return scrape(line.urls["gate"]).sum("goldline_gate_actions_total")


def on_topic(line: Line) -> dict[str, tuple[str, str]]:
    """Station and verdict of each frame, as `goldline results` reads them from the topic."""
    out = line.rig.directory / "results.out"
    out.unlink(missing_ok=True)
    options = ("--from-start", "--until-end", "--json", "--config", str(line.rig.config))
    reader = line.rig.run("results", "results", *options)
    reader.popen.wait(120)
    reader.check()
    line.rig.processes.remove(reader)
    found = [json.loads(text) for text in out.read_text(encoding="utf-8").splitlines()]
    return {result["frame_id"]: (result["station"], result["verdict"]) for result in found}


def kill(line: Line, report: Report) -> None:
    """A worker is killed: its alert fires in time, no strange one does, the other takes over, and all is well again."""
    worker = line.process(KILLED)
    instance = line.urls[KILLED].removeprefix("http://")
    limit_s = firing_within_s(line, ALERT)
    click.echo(f"      kill -9 {worker.popen.pid} ({KILLED}, {instance})")
    worker.popen.kill()
    worker.popen.wait()
    took = waited(lambda: instance in firing(line, ALERT), limit_s)
    report.tell(
        f"{ALERT} fires for {instance}", instance in firing(line, ALERT), f"after {took:.0f} s of {limit_s:.0f}"
    )
    report.tell("it fires for no other", firing(line, ALERT) <= {instance}, ", ".join(sorted(firing(line, ALERT))))
    share = waited(lambda: scrape(line.urls[LEFT]).sum("goldline_partitions_assigned") == 2, _TAKEN_OVER_S)
    report.tell(f"{LEFT} takes its station over", share < _TAKEN_OVER_S, f"within {took + share:.0f} s of the kill")
    others = {rule["name"] for rule in active(line.prometheus.alerting())} - {ALERT}
    strange = others - FOLLOWS - rightly(line)
    seen = f"beside it: {', '.join(sorted(others)) or 'none'}"
    report.tell("what else fires follows from it", not strange, seen)
    port = instance.rpartition(":")[2]
    line.rig.processes.remove(worker)
    line.rig.run(KILLED, "worker", "--config", str(line.rig.config), "--metrics-port", port)
    took = waited(lambda: not firing(line, ALERT), limit_s + _TAKEN_OVER_S)
    report.tell("it is quiet once the worker is back", not firing(line, ALERT), f"after {took:.0f} s")


def firing(line: Line, name: str) -> set[str]:
    """Instances that an alert fires for."""
    (rule,) = (rule for rule in line.prometheus.alerting() if rule["name"] == name)
    return {alert["labels"]["instance"] for alert in rule["alerts"] if alert["state"] == "firing"}


def firing_within_s(line: Line, name: str) -> float:
    """How long an alert may take: a scrape that notices, an evaluation, its `for`, and the evaluation after that."""
    (rule,) = (rule for rule in line.prometheus.alerting() if rule["name"] == name)
    every = yaml.safe_load(SETUP.read_text(encoding="utf-8"))["global"]
    scrape_s, evaluate_s = (float(every[f"{key}_interval"].removesuffix("s")) for key in ("scrape", "evaluation"))
    return float(rule["duration"]) + scrape_s + 2 * evaluate_s


def every_frame(line: Line, report: Report) -> None:
    """The cameras end; each frame that the broker took from them has one verdict, whatever was killed."""
    cameras = [process for process in line.rig.processes if process.name.startswith("camera-")]
    for camera in cameras:
        camera.end()
    wanted = sum(accepted(camera) for camera in cameras)
    found: dict[str, tuple[str, str]] = {}

    def answered() -> bool:
        found.update(on_topic(line))
        return len(found) >= wanted

    waited(answered, _ANSWERED_S)
    told = Counter(verdict for _, verdict in found.values())
    seen = f"{len(found)} of {wanted}: {', '.join(f'{count} {verdict}' for verdict, count in told.most_common())}"
    report.tell("every frame has a verdict", len(found) == wanted > 0, seen)


def accepted(camera: Process) -> int:
    """Frames that the broker took from it, in its last words."""
    out: Path = camera.log.with_suffix(".out")
    return int(json.loads(out.read_text(encoding="utf-8"))["accepted"])


def waited(holds: Callable[[], bool], within_s: float) -> float:
    """How long it took until something held; `within_s` or more where it did not."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began >= within_s:
            break
        time.sleep(1.0)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
