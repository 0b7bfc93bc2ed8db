"""Spans of a frame's way, for OpenTelemetry: the camera's `send`, the worker's `inspect`, the gate's `decide`.

The camera's span is the one that the frame's `traceparent` names, the others are its children. All are made afterwards,
from times that are known by then, for frames whose `traceparent` is sampled: the way is the same with and without. They
go out in the background. What a collector does not take in time is lost, and that is told, once a minute.

Needs the extra `goldline[otel]`, which is imported only where `[tracing] endpoint` asks for it.
"""

import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.data import Failure, Verdict
from pipeline.errors import ConfigError, StoreUnavailable
from pipeline.settings import Settings
from workers import logs, waiting, wire
from workers.outages import Outages

if TYPE_CHECKING:
    from workers.gate import Action
    from workers.outcomes import Outcome

log = logs.get(__name__)

_STAGES = ("queue", "decode", "embed", "score")
_QUEUED = 4096  # spans that wait for the collector; what comes then is dropped
_TOGETHER = 512
_EVERY_MS = 1000
_EXPORT_S = 5.0  # so long the collector may take for one request
_STOP_S = 2.0
_TEXT_MAX = 200

Value: TypeAlias = str | float | bool
_Step: TypeAlias = tuple[str, float, float]
"""A child's name, begin and end, in seconds of the epoch."""


def opened(settings: Settings, process: str) -> "Spans":
    """The spans of this process, as `[tracing]` asks for them.

    Args:
        settings: of the line.
        process: `camera`, `worker` or `gate`: as `goldline-worker` they are a service each.

    Raises:
        ConfigError: an endpoint is set, and OpenTelemetry is not installed.
    """
    endpoint = settings.tracing.endpoint
    if endpoint is None:
        return Spans(None, process=process)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("[tracing] endpoint needs OpenTelemetry: pip install 'goldline[otel]'") from error
    exporter = Exporter(OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_S), endpoint)
    processor = BatchSpanProcessor(
        exporter,
        max_queue_size=_QUEUED,
        max_export_batch_size=_TOGETHER,
        schedule_delay_millis=_EVERY_MS,
    )
    return Spans(processor, process=process, share=settings.tracing.share)


class Spans:
    """The spans of one process. Whatever becomes of them, these methods neither wait nor raise.

    Args:
        processor: an SDK's span processor, told of each span once it is over; None for no spans.
        process: as for `opened`.
        share: of the traces that begin with a span of ours alone.
        outages: when what cannot be made is told.
    """

    def __init__(self, processor: Any, *, process: str, share: float = 1.0, outages: Outages | None = None) -> None:
        self._processor = processor
        self._share = share
        self._outages = outages or Outages()
        if processor is None:
            return
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - an optional extra
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415

        self._scope = InstrumentationScope("goldline", version("goldline"))
        self._resource = Resource.create(
            {
                "service.name": f"goldline-{process}",
                "service.version": version("goldline"),
                "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
            }
        )

    def sent(
        self, traceparent: str, *, began: float, about: Mapping[str, Value | None], error: BaseException | None = None
    ) -> None:
        """A frame was handed to the broker: `send`, from capture until the broker confirmed it, or did not.

        Args:
            traceparent: the frame's, whose span this is.
            began: when it was captured, in seconds of the epoch.
            about: attributes, as `station`.
            error: why it was not confirmed.
        """
        if self._wanted(traceparent):
            with self._harmless():
                problem = type(error).__name__ if error else None
                ids = _ids(traceparent)
                self._end("send", "PRODUCER", ids, None, (began, time.time()), about, problem)

    def inspected(self, outcome: "Outcome") -> None:
        """A frame's verdict is out: `inspect`, from received to the broker's confirmation, with a child for each stage.

        Stages are the batch's that the frame was in, laid one after the other; `publish` is from decided on.
        """
        traceparent = outcome.arrival.traceparent
        if traceparent is None or not self._wanted(traceparent):
            return
        with self._harmless():
            now, decided = time.time(), outcome.decided_at.timestamp()
            begun = decided - outcome.timings.total / 1000
            problem = outcome.answer.reason.value if isinstance(outcome.answer, Failure) else None
            (trace, parent), span = _ids(traceparent), _new_span()
            self._end("inspect", "CONSUMER", (trace, span), parent, (begun, now), _told(outcome), problem)
            for name, begin, end in (*_stages(outcome, begun, decided), ("publish", decided, now)):
                self._end(name, "INTERNAL", (trace, _new_span()), span, (begin, end), {})

    def decided(self, action: "Action", *, heard: float | None = None) -> None:
        """The gate acted: `decide`, from when it first heard of the frame that decided.

        Args:
            action: what it did; without a frame it is a trace of its own.
            heard: in seconds of the epoch; None where it heard of none.
        """
        traceparent = action.traceparent or wire.new_traceparent(self._share)
        if self._wanted(traceparent):
            with self._harmless():
                now = time.time()
                about: dict[str, Value | None] = {
                    "station": action.station,
                    "part_id": action.part_id,
                    "frame_id": action.frame_id or None,
                    "action": action.action,
                    "why": action.why,
                    "reason": action.reason,
                    "score": action.score,
                    "slack_ms": action.slack_ms,
                }
                trace, named = _ids(traceparent)
                parent = named if action.traceparent else None
                problem = None if action.why == "verdict" else action.reason or action.why
                self._end("decide", "CONSUMER", (trace, _new_span()), parent, (heard or now, now), about, problem)

    def close(self) -> None:
        """Send what waits, if that is quick."""
        if self._processor is None:
            return
        try:
            waiting.at_most(_STOP_S, self._processor.shutdown, what="the collector of spans")
        except StoreUnavailable as error:
            log.warning("spans: the last ones are lost", error=str(error))

    def _wanted(self, traceparent: str) -> bool:
        return self._processor is not None and wire.is_sampled(traceparent)

    def _end(
        self,
        name: str,
        kind: str,
        ids: tuple[int, int],
        parent: int | None,
        times: tuple[float, float],
        about: Mapping[str, Value | None],
        problem: str | None = None,
    ) -> None:
        """Tell the processor of a span that is over; a sampled one."""
        from opentelemetry import trace  # noqa: PLC0415 - an optional extra
        from opentelemetry.sdk.trace import ReadableSpan  # noqa: PLC0415

        def context(span: int, *, remote: bool) -> Any:
            return trace.SpanContext(ids[0], span, remote, trace.TraceFlags(trace.TraceFlags.SAMPLED))

        begin, end = times
        self._processor.on_end(
            ReadableSpan(
                name,
                context=context(ids[1], remote=False),
                parent=None if parent is None else context(parent, remote=kind != "INTERNAL"),
                resource=self._resource,
                attributes={f"goldline.{key}": _short(value) for key, value in about.items() if value is not None},
                kind=trace.SpanKind[kind],
                status=trace.Status(trace.StatusCode.ERROR, problem) if problem else trace.Status(),
                start_time=round(begin * 1e9),
                end_time=round(max(begin, end) * 1e9),
                instrumentation_scope=self._scope,
            )
        )

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a span is never worth a frame
            self._outages.fails("spans", f"{type(error).__name__}: {error}")
            if self._outages.to_tell():
                log.exception("spans: one could not be made")


class Exporter:
    """An SDK's span exporter whose failures are told once a minute; the SDK needs these methods, not a base class.

    Args:
        exporter: the real one.
        endpoint: where it sends, for the log.
        outages: when failures are told.
    """

    def __init__(self, exporter: Any, endpoint: str, *, outages: Outages | None = None) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._outages = outages or Outages()
        self._lost = 0

    def export(self, spans: Sequence[Any]) -> Any:
        """Send them; in the processor's thread."""
        from opentelemetry.sdk.trace.export import SpanExportResult  # noqa: PLC0415 - an optional extra

        try:
            result, error = self._exporter.export(spans), "it did not take them"
        except Exception as raised:  # noqa: BLE001 - whatever the exporter does, frames go on
            result, error = SpanExportResult.FAILURE, f"{type(raised).__name__}: {raised}"
        if result is SpanExportResult.SUCCESS:
            self._outages.works("collector")
        else:
            self._lost += len(spans)
            self._outages.fails("collector", error)
        told = self._outages.to_tell()
        if told and told[0]:
            log.warning(
                "spans: the collector does not take them", endpoint=self._endpoint, lost=self._lost, error=error
            )
        elif told:
            log.info("spans: the collector takes them again", endpoint=self._endpoint, lost=self._lost)
        return result

    def shutdown(self) -> None:
        """Let nothing more be sent."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing waits here: it does in the processor."""
        return bool(self._exporter.force_flush(timeout_millis))


def _told(outcome: "Outcome") -> dict[str, Value | None]:
    frame, answer, model = outcome.arrival.frame, outcome.answer, outcome.model
    verdict = answer if isinstance(answer, Verdict) else None
    return {
        "station": frame.station,
        "recipe": frame.recipe,
        "frame_id": frame.frame_id,
        "part_id": frame.part_id,
        "verdict": verdict.decision.value if verdict else "no_decision",
        "reason": answer.reason.value if isinstance(answer, Failure) else None,
        "score": verdict.score if verdict else None,
        "threshold": verdict.threshold if verdict else None,
        "model.method": model.method if model else None,
        "model.version": model.version if model else None,
        "late": frame.deadline_at is not None and outcome.decided_at > frame.deadline_at,
    }


def _stages(outcome: "Outcome", begun: float, decided: float) -> Iterator[_Step]:
    at = begun
    for name in _STAGES:
        if spent := getattr(outcome.timings, name) / 1000:
            yield name, min(at, decided), min(at + spent, decided)
        at += spent


def _ids(traceparent: str) -> tuple[int, int]:
    """Trace and span of a `traceparent` that was checked."""
    return int(traceparent[3:35], 16), int(traceparent[36:52], 16)


def _new_span() -> int:
    return secrets.randbits(64) or 1


def _short(value: Value) -> Value:
    return value[:_TEXT_MAX] if isinstance(value, str) else value
