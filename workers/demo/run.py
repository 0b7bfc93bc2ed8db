"""The demo from start to end: draw or read parts, fit, start a line of real processes, watch it, and report."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer
from rich.console import Console
from rich.live import Live
from rich.progress import Progress

from model_store import ModelKey, open_store
from pipeline import commissioning, methods, settings
from pipeline.backbone import Backbone
from pipeline.data import Frame
from pipeline.decode import Limits
from pipeline.errors import ConfigError
from pipeline.inspection import Inspector
from pipeline.speed.turns import machine
from pipeline.view import View
from workers import clients, topics
from workers.backbones import Choice, choose
from workers.demo import page, parts
from workers.demo.parts import Plan
from workers.demo.show import Show, defects_table, summary_table
from workers.demo.tally import Tally, read_manifest
from workers.rig import Process, Rig
from workers.scrape import scrape

_RATE_OF_FALSE_REJECTS = 0.01
_GOODS_DRAWN = 400
_CALIBRATE_SHARE_DRAWN = 0.75  # 300 of 400: enough to prove 1 % at 95 % confidence
_AFTER_LAST_S = 30.0
_SETTLED_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What was asked of the demo."""

    frames: int | None
    rate: float
    data: Path | None
    report: Path
    directory: Path
    keep: bool
    broker: str | None
    method: str
    settings: dict[str, str]
    fixtured: bool
    quick: bool
    backbone: Choice
    deadline_ms: int
    seed: int


def run(order: Order, console: Console) -> dict[str, Any]:
    """Do it all.

    Returns:
        The report, as it was written to `order.report`.
    """
    net = choose(order.backbone, settings.build({}, environment=os.environ), View().size)
    console.print(f"backbone: {net.spec.name}, layers {', '.join(net.spec.layers)}, weights {net.spec.weights}")
    parts.clear(order.directory)
    rig = Rig(order.directory, _tree(order), address=order.broker)
    plans = _plans(order, console)
    inspectors = _fit(order, plans, net, rig.store_url, console)
    with rig:
        tally, beside = _drive(order, rig, plans, console)
    report = (
        {"machine": machine()}
        | tally.summary()
        | {
            **beside,
            "model": _models(inspectors, plans, rig.store_url, order.method),
            "backbone": inspectors[plans[0].station].save().meta["backbone"],
            "rate": order.rate,
        }
    )
    order.report.parent.mkdir(parents=True, exist_ok=True)
    order.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    order.report.with_suffix(".html").write_text(page.render(report, tally, inspectors), encoding="utf-8")
    if not order.keep:
        parts.clear(order.directory)
        order.directory.rmdir()
    console.print(defects_table(report))
    console.print(summary_table(report))
    return report


def _tree(order: Order) -> dict[str, Any]:
    stations = {station: {"deadline_ms": order.deadline_ms} for station in parts.STATIONS}
    tree: dict[str, Any] = {"stations": stations, "frames": {"inline_max_bytes": 8_000_000}}
    chosen = order.backbone
    weights = {"weights": str(chosen.weights.resolve())} if chosen.weights else {}
    return tree | {"backbones": {chosen.name: weights}, "worker": {"device": chosen.device}}


def _plans(order: Order, console: Console) -> tuple[Plan, ...]:
    pictures = order.directory / "pictures"
    if order.data:
        return parts.real(pictures, order.data, frames=order.frames, seed=order.seed)
    with Progress(console=console, transient=True) as bars:
        bar = bars.add_task("drawing parts", total=None)
        return parts.drawn(
            pictures,
            frames=order.frames or 600,
            goods=_GOODS_DRAWN,
            seed=order.seed,
            told=lambda done, total: bars.update(bar, completed=done, total=total),
        )


def _fit(
    order: Order, plans: tuple[Plan, ...], net: Backbone, store_url: str, console: Console
) -> dict[str, Inspector]:
    """One model for each kind of part, stored and promoted as `goldline fit` does it."""
    store = open_store(store_url)
    inspectors: dict[str, Inspector] = {}
    config = methods.make_config(order.method, order.settings, quick=order.quick, fixtured=order.fixtured)
    for plan in plans:
        key = ModelKey(plan.station)
        if plan.model_of:
            inspector = inspectors[plan.model_of]
        else:
            with Progress(console=console, transient=True) as bars:
                made = commissioning.commission(
                    [Frame(frame_id=str(p), image=p.read_bytes()) for p in plan.goods],
                    method=order.method,
                    config=config,
                    backbone=net,
                    view=View(),
                    limits=Limits(),
                    rate=_RATE_OF_FALSE_REJECTS,
                    calibrate_share=commissioning.CALIBRATE_SHARE if order.data else _CALIBRATE_SHARE_DRAWN,
                    seed=order.seed,
                    progress=_bar(bars, plan.part),
                )
            inspector = made.inspector
            engine = inspector.save().meta["backbone"]["engine"]
            console.print(
                f"fitted {order.method} to {made.frames['fit']} good {plan.part} pictures in {made.fit_s:.1f} s, "
                f"run by {engine}; promise: {inspector.threshold.guarantee}"
            )
        inspectors[plan.station] = inspector
        version = store.put(key, inspector.save(), lineage={"created_by": "demo", "method": order.method})
        store.promote(key, version, expected=None, who="demo")
    return inspectors


def _bar(bars: Progress, part: str) -> Callable[[str, int, int], None]:
    shown = bars.add_task(f"fitting {part}", total=None)
    return lambda stage, done, total: bars.update(
        shown, description=f"fitting {part}: {stage}", completed=done, total=total
    )


def _drive(order: Order, rig: Rig, plans: tuple[Plan, ...], console: Console) -> tuple[Tally, dict[str, Any]]:
    """Worker, gate and cameras as processes; their results counted until all are in."""
    config = ("--config", str(rig.config))
    worker = rig.run("worker", "worker", *config)
    actions = rig.directory / "actions.jsonl"
    gate = rig.run("gate", "gate", *config, "--output", str(actions))
    url = rig.metrics_url(worker)
    console.print(f"broker at {rig.address}; starting worker and gate; metrics at {url}/metrics")
    for _ in plans:
        rig.wait_for(worker, "worker started")
    for partition in rig.settings.partitions().values():
        rig.wait_for(worker, f'"partition": {partition},')
    rig.wait_for(gate, "gate started")
    wanted = sum(len(plan.frames) for plan in plans)
    tally = Tally()
    show = Show(tally, wanted)
    client = clients.tail(rig.settings.kafka, topics.name(rig.prefix, "results"), from_start=True)
    cameras = [_camera(rig, plan, order.rate / len(plans)) for plan in plans]
    with Live(show, console=console, refresh_per_second=5, transient=True, vertical_overflow="crop"):
        _watch(client, tally, show, cameras, wanted)
    client.close()
    worker.check()
    counted = _counted(url)
    worker_status, gate_status = worker.end(), gate.end()
    if worker_status or gate_status:
        raise ConfigError(f"worker ended with {worker_status}, gate with {gate_status}: {worker.last_words()}")
    for plan in plans:
        defects = {str(path): defect for path, defect in plan.frames}
        tally.truth |= read_manifest(_manifest(rig, plan), plan.station, defects)
    return tally, {"gate": _gate_counts(gate), "metrics": counted}


def _watch(client: KafkaConsumer, tally: Tally, show: Show, cameras: list[Process], wanted: int) -> None:
    sending, quiet_since = True, time.monotonic()
    while len(tally.results) < wanted:
        for record in clients.records(client):
            result = tally.see(record)
            if result:
                show.see(result)
                quiet_since = time.monotonic()
        if sending:
            for camera in cameras:
                camera.check()
            sending = any(camera.popen.poll() is None for camera in cameras)
            quiet_since = time.monotonic()
        elif time.monotonic() - quiet_since > _AFTER_LAST_S:
            return
    for camera in cameras:
        camera.popen.wait()


def _camera(rig: Rig, plan: Plan, rate: float) -> Process:
    folder = plan.frames[0][0].parent
    arguments = ["--station", plan.station, "--rate", str(rate), "--json", "--manifest", str(_manifest(rig, plan))]
    return rig.run(
        f"camera-{plan.part}-{plan.station[:6]}", "camera", str(folder), "--config", str(rig.config), *arguments
    )


def _manifest(rig: Rig, plan: Plan) -> Path:
    return rig.directory / f"{plan.station.replace('/', '-')}.manifest.jsonl"


def _gate_counts(gate: Process) -> dict[str, Any]:
    for line in reversed(gate.log.read_text(encoding="utf-8").splitlines()):
        if '"gate ended"' in line:
            counts = json.loads(line)
            return {k: v for k, v in counts.items() if isinstance(v, int)}
    raise ConfigError(f"the gate did not say what it did: {gate.last_words()}")


def _counted(url: str) -> dict[str, Any]:
    """What the worker counted itself, once nothing is in flight there: it should be what is on the topic."""
    until = time.monotonic() + _SETTLED_S
    while (told := scrape(url)).sum("goldline_frames_in_flight") and time.monotonic() < until:
        time.sleep(0.1)
    return {
        "received": int(told.sum("goldline_frames_received_total")),
        "in_flight": int(told.sum("goldline_frames_in_flight")),
        "verdicts": {v: int(told.sum("goldline_results_total", verdict=v)) for v in ("pass", "reject", "no_decision")},
    }


def _models(inspectors: dict[str, Inspector], plans: tuple[Plan, ...], store_url: str, method: str) -> dict[str, Any]:
    store = open_store(store_url)
    return {
        "method": method,
        "versions": [
            {
                "station": plan.station,
                "part": plan.part,
                "version": store.current(ModelKey(plan.station)),
                "threshold": inspectors[plan.station].threshold.image,
                "guarantee": str(inspectors[plan.station].threshold.guarantee),
            }
            for plan in plans
        ],
    }
