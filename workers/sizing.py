"""How many partitions, workers, machines and brokers a plant needs: `goldline sizing`.

Arithmetic on a line's own topics and partitions. A plant is many lines, each with its prefix, group and gate: workers
of one group all wait while it is rebalanced, and a gate reads all of its line's results. How frames then fare is
simulated (`sizing_simulation.py`), since a mean says nothing about a deadline.
"""

import math
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.settings import Settings, build
from workers.queueing import Service, Way
from workers.topic_specs import of as topics_of

RESULT_BYTES = 1_000
SHARE_OF_HARDWARE = 0.5  # of a network card or disk: the rest is for peaks, catching up and a broker that is away
PARTITIONS_A_BROKER = 4_000  # copies included: Kafka's own advice for clusters that fail over quickly


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant:
    """What is to be inspected.

    Attributes:
        per_line: stations of a line.
        rate: of a station, frames a second.
        deadline_s: from capture until the verdict has to be at the gate.
        transport_s: from capture to worker and from verdict to gate, together.
        jitter_s: standard deviation of a trigger.
        together: the stations of a line are triggered at the same time.
        trigger: gates learn of parts from a trigger, and read no frames.
    """

    stations: int = 1000
    per_line: int = 10
    rate: float = 30.0
    frame_bytes: int = 200_000
    deadline_s: float = 0.2
    transport_s: float = 0.01
    jitter_s: float = 0.002
    together: bool = False
    trigger: bool = False

    @property
    def lines(self) -> int:
        """How many lines there are."""
        return math.ceil(self.stations / self.per_line)

    @property
    def way(self) -> Way:
        """What stands around a worker."""
        return Way(there_s=self.transport_s / 2, back_s=self.transport_s / 2, deadline_s=self.deadline_s)

    @property
    def settings(self) -> Settings:
        """Of one of its lines."""
        return build({"stations": {f"line/station-{i}": {} for i in range(self.per_line)}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What there is to inspect it with.

    Attributes:
        cores: of a machine for workers.
        threads: cores that one worker uses.
        load: the share of a worker's capacity that is planned for, 0 to 1.
        copies: of each partition, on as many brokers.
        nic_gbit: a broker's network, in gigabits a second each way.
        disk_mb: what a broker's disks write, in megabytes a second.
    """

    service: Service
    cores: int = 16
    threads: int = 1
    load: float = 0.6
    copies: int = 3
    nic_gbit: float = 25.0
    disk_mb: float = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What it takes. Bytes are of the whole plant; rates are a second.

    Attributes:
        partitions_per_line: of its topics of frames, of results and of heatmaps each.
        partitions: of all topics of all lines, without copies.
        stations_per_worker: at most; a station is one partition, and that is one worker's.
        load: of the worker that has the most stations.
        brokers_by: how many each reason asks for; the largest, and one that may be away, are `brokers`.
        kept_bytes: on the brokers' disks once they are as full as retention lets them be, copies included.
    """

    frames: float
    lines: int
    partitions_per_line: int
    partitions: int
    stations_per_worker: int
    workers_per_line: int
    workers: int
    load: float
    machines: int
    machine_in_bytes: float
    brokers_by: dict[str, int]
    brokers: int
    in_bytes: float
    out_bytes: float
    written_bytes: float
    gate_in_bytes: float
    kept_bytes: dict[str, float]


def plan(plant: Plant, hardware: Hardware) -> Plan:
    """What a plant takes.

    Raises:
        ConfigError: one station alone is more than a worker can do, or a worker has more threads than a machine cores.
    """
    capacity = hardware.service.capacity
    if plant.rate > capacity:
        raise ConfigError(
            f"a station of {plant.rate:g} frames a second is more than one worker decides ({capacity:.0f}), and its "
            "frames cannot be shared out: give workers more threads or a GPU, and a smaller --ms-per-frame with them"
        )
    if hardware.threads > hardware.cores:
        raise ConfigError(f"a worker of {hardware.threads} threads does not fit a machine of {hardware.cores} cores")
    each = max(1, math.floor(hardware.load * capacity / plant.rate))
    # Partitions are shared out evenly: as many workers as keep the most loaded one within the plan.
    workers = math.ceil(plant.per_line / each)
    each = math.ceil(plant.per_line / workers)
    machine = hardware.cores // hardware.threads
    topics = topics_of(plant.settings)
    partitions = plant.lines * sum(topic.partitions for topic in topics)
    frames = plant.stations * plant.rate
    pictures, results = frames * plant.frame_bytes, frames * RESULT_BYTES
    written = hardware.copies * (pictures + results)
    gate = plant.per_line * plant.rate * (RESULT_BYTES + (0 if plant.trigger else plant.frame_bytes))
    copied = (hardware.copies - 1) * (pictures + results)
    leaving = copied + pictures + plant.lines * gate
    kept = {
        topic.name.rpartition(".")[2]: plant.stations * hardware.copies * _kept(topic.config, plant.rate * size)
        for topic, size in ((topics[0], plant.frame_bytes), (topics[1], RESULT_BYTES))
    }
    network = SHARE_OF_HARDWARE * hardware.nic_gbit * 1e9 / 8
    by = {
        "network": math.ceil(max(written, leaving) / network),
        "disk": math.ceil(written / (SHARE_OF_HARDWARE * hardware.disk_mb * 1e6)),
        "partitions": math.ceil(hardware.copies * partitions / PARTITIONS_A_BROKER),
        "copies": hardware.copies,
    }
    return Plan(
        frames=frames,
        lines=plant.lines,
        partitions_per_line=plant.settings.partition_count(),
        partitions=partitions,
        stations_per_worker=each,
        workers_per_line=workers,
        workers=plant.lines * workers,
        load=each * plant.rate / capacity,
        machines=math.ceil(plant.lines * workers / machine),
        machine_in_bytes=machine * each * plant.rate * plant.frame_bytes,
        brokers_by=by,
        brokers=max(by.values()) + (hardware.copies > 1),
        in_bytes=written,
        out_bytes=leaving,
        written_bytes=written,
        gate_in_bytes=gate,
        kept_bytes=kept,
    )


def _kept(config: dict[str, str], rate: float) -> float:
    """Bytes of a partition that retention leaves of so many a second."""
    aged = rate * int(config["retention.ms"]) / 1000
    return min(aged, float(config.get("retention.bytes", math.inf)))
