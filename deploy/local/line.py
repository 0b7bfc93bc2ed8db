"""`make line`: a whole line on this machine until Ctrl-C (python -m deploy.local.line)."""

import sys
import time
from pathlib import Path

import click

from deploy.local.stack import STATIONS, Line, Order
from pipeline.errors import GoldlineError

FOLDER = Path(".goldline/line")


@click.command()
@click.option("--rate", default=3.0, show_default=True, help="Frames a second of each of two stations.")
@click.option("--deadline-ms", default=2000, show_default=True, help="From capture to the gate.")
def main(rate: float, deadline_ms: int) -> None:
    """Start Kafka, Redis, Prometheus, two workers, a gate, two cameras and refits; Ctrl-C ends all of them."""
    line = Line(Order(folder=FOLDER, rate=rate, deadline_ms=deadline_ms))
    try:
        with line:
            click.echo(summary(line))
            stay(line)
    except KeyboardInterrupt:
        click.echo(f"\nit is all down; logs are in {FOLDER}")
    except GoldlineError as error:
        sys.exit(f"line: {error}")


def summary(line: Line) -> str:
    """Where everything is, and what to try."""
    config = FOLDER / "line.toml"
    goldline = Path(sys.executable).with_name("goldline")
    rows = [
        ("kafka", str(line.rig.address), FOLDER / "kafka/kafka.log"),
        ("redis", f"{line.redis}/0 models, /1 pictures", FOLDER / "redis/redis.log"),
        ("prometheus", f"{line.prometheus.url}/alerts", FOLDER / "prometheus/prometheus.log"),
        *((name, f"{url}/metrics", FOLDER / f"{name}.log") for name, url in line.urls.items()),
    ]
    pids = line.pids
    shown = [f"  {name:12} {pids.get(name, '-'):>8}  {where:46} {log}" for name, where, log in rows]
    return "\n".join(
        [
            "",
            "The line is up.",
            f"  {'':12} {'process':>8}  {'address':46} log",
            *shown,
            f"\nIts settings: {config}; what the gate does: {FOLDER / 'actions.jsonl'}\n",
            "In another terminal:",
            f"  {goldline} status --config {config} --watch",
            f"  {goldline} doctor --config {config}",
            f"  {goldline} results --config {config}",
            f"  {goldline} refit --station {STATIONS[0]} --config {config}",
            f"  kill -9 {pids['worker-1']}    # then look at the alerts, and start it again:",
            f"  {goldline} worker --config {config}",
            "\nCtrl-C takes all of it down.",
        ]
    )


def stay(line: Line) -> None:
    """Until Ctrl-C; a process that ends is told of once, and the others go on."""
    told: set[str] = set()
    while True:
        line.go_on()
        for process in line.rig.processes:
            status = process.popen.poll()
            if status is not None and process.name not in told:
                told.add(process.name)
                click.echo(f"{process.name} ended with status {status}: {process.log}")
        time.sleep(0.5)


if __name__ == "__main__":
    main()
