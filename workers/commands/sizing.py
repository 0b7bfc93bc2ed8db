"""`goldline sizing`."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from workers.commands import options

if TYPE_CHECKING:
    from workers.sizing import Hardware, Plan, Plant
    from workers.sizing_simulation import Fared, Lost

_SOME = click.IntRange(min=1)
_ABOVE = click.FloatRange(min=0, min_open=True)
_NOT_BELOW = click.FloatRange(min=0)


@click.command("sizing")
@click.option("--stations", type=_SOME, default=1000, show_default=True, help="Of the whole plant.")
@click.option("--stations-per-line", "per_line", type=_SOME, default=10, show_default=True, help="Behind one gate.")
@click.option("--rate", type=_ABOVE, default=30.0, show_default=True, help="Frames a second of each station.")
@click.option("--frame-bytes", type=_SOME, default=200_000, show_default=True, help="Of an encoded picture.")
@click.option("--ms-per-frame", type=_ABOVE, default=4.0, show_default=True, help="A worker's time for a frame.")
@click.option("--ms-per-batch", type=_NOT_BELOW, default=1.0, show_default=True, help="And for a batch of any size.")
@click.option("--batch-max", type=_SOME, default=16, show_default=True, help="As [worker] batch_max.")
@click.option("--wait-ms", type=_NOT_BELOW, default=5.0, show_default=True, help="As [worker] wait_ms.")
@click.option("--threads", type=_SOME, default=1, show_default=True, help="Cores that a worker uses.")
@click.option("--cores", type=_SOME, default=16, show_default=True, help="Of a machine for workers.")
@click.option(
    "--load",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=0.6,
    show_default=True,
    help="Share of a worker's capacity to plan for.",
)
@click.option("--deadline-ms", type=_ABOVE, default=200.0, show_default=True, help="From capture to gate.")
@click.option(
    "--transport-ms", type=_NOT_BELOW, default=10.0, show_default=True, help="Of it, on the way: Kafka twice."
)
@click.option("--jitter-ms", type=_NOT_BELOW, default=2.0, show_default=True, help="Standard deviation of a trigger.")
@click.option("--together", is_flag=True, help="All stations of a line are triggered at once: the worst there is.")
@click.option("--trigger", is_flag=True, help="Gates learn of parts from a trigger, and read no frames.")
@click.option("--copies", type=_SOME, default=3, show_default=True, help="Of each partition, on as many brokers.")
@click.option("--nic-gbit", type=_ABOVE, default=25.0, show_default=True, help="A broker's network, each way.")
@click.option("--disk-mb", type=_ABOVE, default=1000.0, show_default=True, help="A broker's disks write a second, MB.")
@click.option(
    "--gap-s",
    type=click.FloatRange(min=0, max=30),
    default=16.0,
    show_default=True,
    help="From a worker's end until its group knows: the session's 15 s and a heartbeat.",
)
@click.option(
    "--pause-s",
    type=click.FloatRange(min=0, max=10),
    default=1.0,
    show_default=True,
    help="For which all workers of the group then stand still.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the simulation.")
@options.as_json
def command(
    stations: int,
    per_line: int,
    rate: float,
    frame_bytes: int,
    ms_per_frame: float,
    ms_per_batch: float,
    batch_max: int,
    wait_ms: float,
    threads: int,
    cores: int,
    load: float,
    deadline_ms: float,
    transport_ms: float,
    jitter_ms: float,
    together: bool,
    trigger: bool,
    copies: int,
    nic_gbit: float,
    disk_mb: float,
    gap_s: float,
    pause_s: float,
    seed: int,
    as_json: bool,
) -> None:
    """Partitions, workers, machines and brokers for a plant of many stations, and how its frames then fare.

    Measure a worker first, on the machine and with the pictures that it will have: `goldline bench line --workers 1`
    says the highest rate that one keeps up with, and --ms-per-frame is 1000 over it. Nothing here is measured.

    A station is one partition, and a partition one worker's: stations are whole. The table shows what becomes of
    frames with so many stations on a worker; below it, what one worker's end does to its line. Both are simulated, by
    the rules by which a worker makes batches and sheds frames. docs/sizing.md says what is left out.

    \b
    Examples:
      goldline sizing --stations 12 --stations-per-line 4 --rate 5 --ms-per-frame 15
      goldline sizing --stations 1000 --rate 30 --ms-per-frame 4 --trigger
      goldline sizing --together --deadline-ms 100 --json
    """
    from workers import sizing, sizing_simulation  # noqa: PLC0415 - numpy
    from workers.queueing import Service  # noqa: PLC0415

    service = Service(
        per_frame_s=ms_per_frame / 1000, per_batch_s=ms_per_batch / 1000, batch_max=batch_max, wait_s=wait_ms / 1000
    )
    plant = sizing.Plant(
        stations=stations,
        per_line=min(per_line, stations),
        rate=rate,
        frame_bytes=frame_bytes,
        deadline_s=deadline_ms / 1000,
        transport_s=transport_ms / 1000,
        jitter_s=jitter_ms / 1000,
        together=together,
        trigger=trigger,
    )
    hardware = sizing.Hardware(
        service=service, cores=cores, threads=threads, load=load, copies=copies, nic_gbit=nic_gbit, disk_mb=disk_mb
    )
    planned = sizing.plan(plant, hardware)
    fared = sizing_simulation.by_load(plant, service, seed=seed)
    lost = sizing_simulation.one_lost(plant, planned, service, gap_s=gap_s, pause_s=pause_s, seed=seed)
    if as_json:
        told = {
            "plant": asdict(plant),
            "hardware": asdict(hardware),
            "plan": asdict(planned),
            "by_load": [asdict(each) for each in fared],
            "one_worker_lost": asdict(lost),
        }
        click.echo(json.dumps(told, indent=2))
        return
    for line in (*_planned(plant, hardware, planned), "", *_fared(plant, planned, fared), "", *_lost(gap_s, lost)):
        click.echo(line)


def _planned(plant: "Plant", hardware: "Hardware", planned: "Plan") -> list[str]:
    each = hardware.cores // hardware.threads
    copies = planned.partitions * hardware.copies
    into_gate = _bytes(planned.gate_in_bytes)
    by = ", ".join(f"{name} {count}" for name, count in planned.brokers_by.items())
    kept = ", ".join(f"{name} {_bytes(size)}" for name, size in planned.kept_bytes.items())
    rows = {
        "plant": f"{plant.stations:,} stations x {plant.rate:g} = {planned.frames:,.0f} frames a second",
        "lines": f"{planned.lines:,} of {plant.per_line} stations, each with its own prefix, group and gate",
        "partitions": f"{planned.partitions:,} of all topics, {copies:,} with their copies",
        "workers": f"{planned.workers:,}, {planned.workers_per_line} a line",
        "": f"{planned.stations_per_worker} stations on one at most: load {planned.load:.2f}",
        "machines": f"{planned.machines:,} of {hardware.cores} cores, {each} workers each",
        "brokers": f"{planned.brokers:,}, with one to spare (for {by})",
        "frames": f"{_bytes(planned.frames * plant.frame_bytes)} a second",
        "network": f"{_bytes(planned.in_bytes)} a second into all brokers, {_bytes(planned.out_bytes)} out of them",
        "into one": f"{_bytes(planned.machine_in_bytes)} a second into a machine, {into_gate} into a gate",
        "disks": f"{_bytes(planned.written_bytes)} a second written; kept, with copies: {kept}",
    }
    return [f"{name:12}{said}" for name, said in rows.items()]


def _fared(plant: "Plant", planned: "Plan", fared: "list[Fared]") -> list[str]:
    lines = [
        f"stations  load  busy   p50 ms   p99 ms  p99.9 ms  in time ({plant.deadline_s * 1000:g} ms), of one worker",
    ]
    for each in fared:
        times = "".join(f"{_ms(value):>{width}}" for value, width in zip(_times(each), (9, 9, 10), strict=True))
        here = "  <- as planned" if each.stations_per_worker == planned.stations_per_worker else ""
        lines.append(f"{each.stations_per_worker:8d}{each.load:6.2f}{each.busy:6.2f}{times}{each.in_time:10.2%}{here}")
    return lines


def _times(each: "Fared") -> tuple[float | None, ...]:
    return each.p50_ms, each.p99_ms, each.p999_ms


def _lost(gap_s: float, lost: "Lost") -> list[str]:
    if lost.seconds is None:
        until = f"the others do not keep up: {lost.in_time_after:.1%} in time until another takes its place"
    else:
        until = f"in time again {lost.seconds:g} s after it"
    return [
        f"one worker ends without a word, and its group knows after {gap_s:g} s:",
        f"  {lost.frames:,.0f} frames of its line come too late; {lost.in_time_minute:.1%} of its next minute in time",
        f"  load of the others {lost.load_after:.2f}, {until}",
    ]


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
