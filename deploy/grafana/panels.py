"""What the dashboards show: a panel is a title, a unit, a sentence, and its queries.

Queries are written so that what did not happen is 0 and not missing, wherever the process that would tell is up.
"""

from collections.abc import Sequence
from dataclasses import dataclass

S = 'station=~"$station"'
REJECTED = 'station=~"$station", verdict="reject"'
RATE = "$__rate_interval"
Query = tuple[str, str]


@dataclass(frozen=True)
class Panel:
    """One panel; `queries` are (PromQL, legend), `kind` is Grafana's name for it, `red` where it turns red."""

    title: str
    unit: str
    description: str
    queries: Sequence[Query]
    kind: str = "timeseries"
    width: int = 8
    red: float | None = None


def stat(title: str, unit: str, description: str, expr: str, *, red: float | None = None) -> Panel:
    """One number."""
    return Panel(title, unit, description, [(expr, title)], kind="stat", width=4, red=red)


def rate(metric: str, by: str, where: str = S) -> str:
    """How often a second, summed."""
    return f"sum by ({by}) (rate({metric}{{{where}}}[{RATE}]))"


def increase(metric: str, by: str = "", where: str = "") -> str:
    """How often in the last five minutes, summed."""
    grouped = f" by ({by}) " if by else ""
    return f"sum{grouped}(increase({metric}{{{where}}}[5m]))"


def quantile(q: float, metric: str, by: str = "", where: str = S) -> str:
    """Of a histogram."""
    grouped = ", ".join(filter(None, ("le", by)))
    return f"histogram_quantile({q}, sum by ({grouped}) (rate({metric}_bucket{{{where}}}[{RATE}])))"


def quantiles(metric: str, *qs: float) -> list[Query]:
    """Several, named p50 and so on."""
    return [(quantile(q, metric), f"p{100 * q:g}") for q in qs]


IN_TIME = (
    f"sum(increase(goldline_results_in_time_total{{{S}}}[$__range]))"
    f" / (sum(increase(goldline_results_total{{{S}}}[$__range])) > 0)"
)
DECIDED = rate("goldline_results_total", "station", S + ', verdict=~"pass|reject"')
REJECTS = f"{rate('goldline_results_total', 'station', REJECTED)} / ({DECIDED} > 0)"
REFIT_SUM, REFIT_COUNT = "sum(goldline_refit_duration_seconds_sum)", "sum(goldline_refit_duration_seconds_count)"
AGE = "time() - max by (station, recipe) "

STAGES = 'station=~"$station", stage!="total"'
STAGE_SUM, STAGE_COUNT = "goldline_stage_duration_seconds_sum", "goldline_stage_duration_seconds_count"

LINE = [
    "Now",
    stat("Decided in time", "percentunit", "Frames with a useful answer by the deadline. Objective: 99.9 %.", IN_TIME),
    stat(
        "Frames", "reqps", "Frames that came in, a second.", f"sum({rate('goldline_frames_received_total', 'station')})"
    ),
    stat(
        "In flight", "short", "Frames received that wait for their verdict.", f"sum(goldline_frames_in_flight{{{S}}})"
    ),
    stat(
        "Waiting",
        "short",
        "Frames on Kafka that no worker has committed.",
        f"sum(goldline_consumer_lag_records{{{S}}})",
    ),
    stat("Latency, p99", "s", "Capture to acknowledged verdict.", quantile(0.99, "goldline_decision_latency_seconds")),
    stat("Workers", "short", "Worker processes that answer.", 'count(goldline_build_info{process="worker"})'),
    "Verdicts",
    Panel(
        "Verdicts",
        "reqps",
        "Verdicts a second, by kind.",
        [(rate("goldline_results_total", "verdict"), "{{verdict}}")],
    ),
    Panel(
        "No decision",
        "reqps",
        "Frames without a verdict, by reason: late and shed are load, bad_frame the camera, the others ours.",
        [(rate("goldline_results_total", "reason", S + ', verdict="no_decision"'), "{{reason}}")],
    ),
    Panel("Rejects", "percentunit", "Rejects among decided frames, by station.", [(REJECTS, "{{station}}")]),
    Panel(
        "Latency",
        "s",
        "From capture to the acknowledged verdict, of all stations chosen.",
        quantiles("goldline_decision_latency_seconds", 0.5, 0.99, 0.999),
    ),
    Panel(
        "In and out",
        "reqps",
        "Received and answered should be one line; the distance is frames in flight.",
        [
            (f"sum({rate('goldline_frames_received_total', 'station')})", "received"),
            (f"sum({rate('goldline_results_total', 'station')})", "answered"),
            (f"sum({rate('goldline_frames_repeated_total', 'station')})", "came again"),
        ],
    ),
    Panel(
        "Error budget burnt",
        "short",
        "How many times faster than 99.9 % allows; 14.4 over an hour pages.",
        [(f"goldline:missed:ratio_rate1h{{{S}}} / 0.001", "{{station}}")],
        red=14.4,
    ),
    "At the gate",
    Panel(
        "Actions",
        "reqps",
        "What the gate did, and why; no_verdict_in_time is its default.",
        [(rate("goldline_gate_actions_total", "action, why"), "{{action}}: {{why}}")],
    ),
    Panel(
        "Left at the action",
        "s",
        "Time to the deadline when the gate acted: the median, and the worst of a hundred.",
        quantiles("goldline_gate_slack_seconds", 0.5, 0.01),
    ),
    Panel(
        "Parts",
        "short",
        "Parts that wait for their verdict, and how many in a row were not passed.",
        [("sum(goldline_gate_parts_waiting)", "waiting"), ("max(goldline_gate_in_a_row)", "in a row")],
    ),
    Panel(
        "Hooks",
        "short",
        "Calls of commands and URLs in five minutes.",
        [(increase("goldline_gate_hooks_total", "hook, outcome"), "{{hook}} {{outcome}}")],
    ),
    Panel(
        "Stragglers and stops",
        "short",
        "Results after their part was decided, and requests to stop the line, in five minutes.",
        [
            (increase("goldline_gate_stragglers_total", "kind"), "{{kind}}"),
            (increase("goldline_gate_stops_total"), "stops"),
        ],
    ),
    Panel(
        "Silence at the gate",
        "s",
        "Since a gate last heard of a part.",
        [("time() - max(goldline_gate_last_heard_timestamp_seconds)", "silence")],
    ),
    "Cameras",
    Panel(
        "Frames from cameras",
        "short",
        "What became of frames in five minutes; failed reached neither broker nor root.",
        [(increase("goldline_camera_frames_total", "station, outcome", S), "{{station}} {{outcome}}")],
        width=24,
    ),
]

STATION = [
    "The walk",
    Panel(
        "Verdicts",
        "reqps",
        "Verdicts a second, by recipe and kind.",
        [(rate("goldline_results_total", "recipe, verdict, reason"), "{{recipe}} {{verdict}} {{reason}}")],
    ),
    Panel(
        "Latency",
        "s",
        "From capture to the acknowledged verdict.",
        quantiles("goldline_decision_latency_seconds", 0.5, 0.99, 0.999),
    ),
    Panel(
        "Left to the deadline",
        "s",
        "When the broker had the verdict: the median, and the worst of a hundred. Below 0 is too late.",
        quantiles("goldline_deadline_slack_seconds", 0.5, 0.01),
    ),
    Panel(
        "Stages, mean",
        "s",
        "Where the time goes. decode, embed and score are the whole batch's that a frame was in.",
        [(f"{rate(STAGE_SUM, 'stage', STAGES)} / ({rate(STAGE_COUNT, 'stage', STAGES)} > 0)", "{{stage}}")],
    ),
    Panel(
        "Stages, p99",
        "s",
        "The slowest of a hundred, by stage.",
        [(quantile(0.99, "goldline_stage_duration_seconds", "stage", STAGES), "{{stage}}")],
    ),
    Panel(
        "Missed and late",
        "short",
        "In five minutes: results decided after the deadline, and frames that retention deleted unread.",
        [
            (increase("goldline_results_late_total", "station", S), "{{station}} late"),
            (increase("goldline_frames_lost_total", "station", S), "{{station}} lost"),
        ],
    ),
    "What is seen",
    Panel(
        "Scores",
        "percentunit",
        "Score over threshold; above 100 % is a reject. Good parts that creep up come before rejects.",
        quantiles("goldline_anomaly_score_ratio", 0.5, 0.9, 0.99),
        red=1.0,
    ),
    Panel("Rejects", "percentunit", "Rejects among decided frames.", [(REJECTS, "{{station}}")]),
    Panel(
        "Dead letters",
        "short",
        "Messages that could not be read, in five minutes; other is a station that the settings do not have.",
        [(increase("goldline_dead_letters_total", "station, reason", 'station=~"$station|other"'), "{{station}}")],
    ),
    "Drift",
    Panel(
        "Evidence",
        "short",
        "Of each monitor, natural logarithm; at the limit it raises its alarm, and stays until a baseline is accepted.",
        [
            (f"max by (station, recipe, monitor) (goldline_drift_log_martingale{{{S}}})", "{{monitor}} {{recipe}}"),
            ("max(goldline_drift_log_limit)", "limit"),
        ],
        width=16,
    ),
    Panel(
        "Alarms",
        "short",
        "Alarms in five minutes.",
        [(increase("goldline_drift_alarms_total", "station, monitor", S), "{{station}} {{monitor}}")],
    ),
]

MODELS = [
    "Models",
    Panel(
        "In memory",
        "short",
        "Which version is in service, or on trial, on how many workers.",
        [(f"count by (station, recipe, role, method, version) (goldline_model_info{{{S}}})", "")],
        kind="table",
        width=16,
    ),
    Panel(
        "Age",
        "s",
        "Since the model in service was fitted.",
        [(f"{AGE}(goldline_model_created_timestamp_seconds{{{S}}})", "{{station}} {{recipe}}")],
    ),
    Panel(
        "Loads",
        "short",
        "Attempts to put a model in service, in five minutes; swapped_back needs no load.",
        [(increase("goldline_model_reloads_total", "station, outcome", S), "{{station}} {{outcome}}")],
    ),
    Panel(
        "Refused",
        "short",
        "1 while the store names a model that a worker refuses.",
        [(f"max by (station, recipe) (goldline_model_refused{{{S}}})", "{{station}} {{recipe}}")],
        red=1,
    ),
    Panel(
        "In service since",
        "s",
        "Since a worker last swapped or loaded it.",
        [(f"{AGE}(goldline_model_loaded_timestamp_seconds{{{S}}})", "{{station}} {{recipe}}")],
    ),
    Panel(
        "Models in memory",
        "short",
        "On each worker, those included that were just replaced; and those that had to leave.",
        [
            ("sum by (instance) (goldline_models_resident)", "{{instance}}"),
            (increase("goldline_models_evicted_total", "instance"), "{{instance}} left"),
        ],
    ),
    Panel(
        "Their tensors",
        "bytes",
        "Against [worker] models_max_mb.",
        [("sum by (instance) (goldline_models_resident_bytes)", "{{instance}}")],
    ),
    Panel(
        "Stores that do not answer",
        "short",
        "In five minutes: models, frames by reference, pool.",
        [(increase("goldline_store_errors_total", "store"), "{{store}}")],
    ),
    "Refits",
    Panel(
        "Refits",
        "short",
        "In the last day, by what came of them.",
        [(f"sum by (station, outcome) (increase(goldline_refits_total{{{S}}}[1d]))", "{{station}} {{outcome}}")],
    ),
    Panel(
        "Since the last refit",
        "s",
        "By what came of it.",
        [
            (
                f"time() - max by (station, outcome) (goldline_refit_last_timestamp_seconds{{{S}}})",
                "{{station}} {{outcome}}",
            )
        ],
    ),
    Panel(
        "What a refit takes",
        "s",
        "Mean from start to end, of all that the process made.",
        [(f"{REFIT_SUM} / ({REFIT_COUNT} > 0)", "mean")],
    ),
    Panel(
        "Offered to the pool",
        "short",
        "In five minutes; dropped is a queue that was full, unstored a disk.",
        [(increase("goldline_pool_offers_total", "outcome", S), "{{outcome}}")],
    ),
    Panel(
        "In the pool",
        "short",
        "Frames that the next refit may learn from, once out of quarantine.",
        [(f"max by (station, recipe) (goldline_pool_frames{{{S}}})", "{{station}} {{recipe}}")],
    ),
    Panel(
        "Frames that drift left out",
        "short",
        "In five minutes; the monitors do not keep up.",
        [(increase("goldline_drift_frames_left_out_total", "instance"), "{{instance}}")],
    ),
]

WORKERS = [
    "Processes",
    Panel("Up", "short", "Whether Prometheus reaches each process.", [('up{job="goldline"}', "{{instance}}")]),
    Panel(
        "Versions",
        "short",
        "Which Goldline runs where.",
        [("count by (process, version) (goldline_build_info)", "{{process}} {{version}}")],
    ),
    Panel(
        "Running for",
        "s",
        "Short and falling to 0 again is a process that restarts.",
        [('time() - process_start_time_seconds{job="goldline"}', "{{instance}}")],
    ),
    Panel(
        "CPU",
        "percentunit",
        "Cores in use.",
        [(f'rate(process_cpu_seconds_total{{job="goldline"}}[{RATE}])', "{{instance}}")],
    ),
    Panel(
        "Memory",
        "bytes",
        "Resident.",
        [('process_resident_memory_bytes{job="goldline"}', "{{instance}}")],
    ),
    Panel(
        "Open files",
        "percentunit",
        "Of those that the process may have.",
        [('process_open_fds{job="goldline"} / process_max_fds{job="goldline"}', "{{instance}}")],
        red=0.8,
    ),
    "Kafka",
    Panel(
        "Waiting",
        "short",
        "Frames that no worker has committed, by station.",
        [(f"sum by (station) (goldline_consumer_lag_records{{{S}}})", "{{station}}")],
    ),
    Panel(
        "Since progress",
        "s",
        "Since a frame was committed, or none waited; with frames waiting it is a worker that is stuck.",
        [(f"time() - max by (station) (goldline_last_progress_timestamp_seconds{{{S}}})", "{{station}}")],
        red=45,
    ),
    Panel(
        "Partitions",
        "short",
        "Held by each worker.",
        [("sum by (instance) (goldline_partitions_assigned)", "{{instance}}")],
    ),
    Panel(
        "Trouble with the broker",
        "short",
        "In five minutes: results that it refused (they are sent again), and looks that it did not answer.",
        [
            (increase("goldline_publish_failures_total", "instance"), "{{instance}} publish"),
            (increase("goldline_broker_errors_total", "instance"), "{{instance}} look"),
        ],
    ),
    Panel(
        "Heatmaps",
        "short",
        "In five minutes; they are best effort.",
        [(increase("goldline_heatmaps_total", "outcome"), "{{outcome}}")],
    ),
    Panel(
        "Publishing",
        "s",
        "From decision to acknowledgement.",
        [(quantile(0.99, "goldline_stage_duration_seconds", "station", S + ', stage="publish"'), "{{station}} p99")],
    ),
    "Batches and disks",
    Panel(
        "Batch size",
        "short",
        "Frames that were inspected together: load makes batches larger.",
        [(quantile(q, "goldline_batch_size_frames", where=""), f"p{100 * q:g}") for q in (0.5, 0.9)],
        width=12,
    ),
    Panel(
        "Disks",
        "percentunit",
        "Free, of the disks that the settings name.",
        [
            (
                "min by (instance, folder) (goldline_disk_free_bytes / goldline_disk_size_bytes)",
                "{{instance}} {{folder}}",
            )
        ],
        width=12,
    ),
]

DASHBOARDS = {
    "line": ("Line overview", LINE),
    "station": ("Station", STATION),
    "models": ("Models and refits", MODELS),
    "workers": ("Workers and Kafka", WORKERS),
}
