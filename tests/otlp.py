"""A collector that takes spans by OTLP over HTTP, as a real one does, and keeps them."""

import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True, slots=True)
class Told:
    """A span as it came over the wire; ids in hexadecimal, times in nanoseconds."""

    service: str
    name: str
    trace: str
    span: str
    parent: str
    start: int
    end: int
    failed: bool
    about: dict[str, object]


@dataclass(slots=True)
class Collector:
    """Answers on loopback.

    Attributes:
        status: what it answers.
        open: requests wait for it before they are answered.
    """

    spans: list[Told] = field(default_factory=list)
    status: int = 200
    requests: int = 0
    open: threading.Event = field(default_factory=threading.Event)
    _server: ThreadingHTTPServer | None = None

    def __enter__(self):
        collector = self
        self.open.set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.requests += 1
                collector.open.wait(30)
                if collector.status == 200:
                    assert self.headers["Content-Type"] == "application/x-protobuf"
                    collector.spans += _read(body)
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.open.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        """Where it takes spans."""
        return f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def of(self, name: str) -> list[Told]:
        """The spans of this name."""
        return [span for span in self.spans if span.name == name]


def _read(body: bytes) -> list[Told]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest  # noqa: PLC0415

    told: list[Told] = []
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = _values(group.resource.attributes)["service.name"]
        told += [
            Told(
                service=str(service),
                name=span.name,
                trace=span.trace_id.hex(),
                span=span.span_id.hex(),
                parent=span.parent_span_id.hex(),
                start=span.start_time_unix_nano,
                end=span.end_time_unix_nano,
                failed=span.status.code == span.status.STATUS_CODE_ERROR,
                about=_values(span.attributes),
            )
            for scope in group.scope_spans
            for span in scope.spans
        ]
    return told


def _values(attributes) -> dict[str, object]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
