"""What a process says of itself over HTTP: `/metrics`, `/health/live` and `/health/ready`.

On a thread of its own, so that it answers while the process does not. Health is 200 or 503 with JSON that names each
check. Who may look is settled by the address alone: it is loopback unless the settings say otherwise.
"""

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from prometheus_client.exposition import choose_encoder

from pipeline.settings import Settings
from workers import logs
from workers.exposition import Exposition

log = logs.get(__name__)

PORTS = 64  # that are tried, from the one in the settings on
_BEAT_S = 0.5
_STILL_S = 10.0
_DISKS_S = 15.0
_CLIENT_S = 5.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str = ""


Checks: TypeAlias = Callable[[], Sequence[Check]]


class Heart:
    """Shows that a loop turns."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at: float | None = None

    def beat(self) -> None:
        """The loop turned."""
        self._at = self._clock()

    async def run(self) -> None:
        """Beat until cancelled: a task of an event loop."""
        while True:
            self.beat()
            await asyncio.sleep(_BEAT_S)

    def started(self) -> Check:
        """Whether the loop ever turned."""
        return Check("started", self._at is not None)

    def alive(self) -> Check:
        """Whether the loop turned lately, or has yet to begin."""
        still_s = 0.0 if self._at is None else self._clock() - self._at
        return Check("loop", still_s < _STILL_S, f"turned {still_s:.1f} s ago")


class _Server(ThreadingTCPServer):
    """http.server's own would ask the DNS for the host's name first."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], pages: Mapping[str, Callable[[str], tuple[int, str, bytes]]]) -> None:
        self.pages = pages
        super().__init__(address, _Handler)

    def handle_error(self, *_: object) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _CLIENT_S
    server: _Server

    def do_GET(self) -> None:
        """One of the pages; nothing of the request but its path and what it accepts is read."""
        page = self.server.pages.get(self.path.partition("?")[0])
        status, kind, body = (
            page(self.headers.get("Accept", ""))
            if page
            else (404, "text/plain", b"see /metrics, /health/live, /health/ready\n")
        )
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: a scrape is no event."""


class Health:
    """The server, and what it looks after.

    Args:
        metrics: what `/metrics` shows.
        settings: the address.
        port: instead of the settings', and no other.
        live: what must hold, or the process is to be ended.
        ready: what must hold for it to do its work.
    """

    def __init__(
        self,
        metrics: Exposition,
        settings: Settings,
        *,
        port: int | None = None,
        live: Checks = tuple,
        ready: Checks = tuple,
    ) -> None:
        self._metrics = metrics
        self._settings = settings
        self._ports = range(port, port + 1) if port else range(settings.metrics.port, settings.metrics.port + PORTS)
        self._on = settings.metrics.port > 0 if port is None else port > 0
        self._pages = {"/metrics": self._scrape, "/health/live": _page(live), "/health/ready": _page(ready)}
        self._folders = _folders(settings)
        self._server: _Server | None = None
        self.url: str | None = None
        """Where it answers, once it does."""

    def start(self) -> None:
        """Answer from now on. Without a free port that is logged, and the process does its work all the same."""
        if not self._on:
            return
        host = self._settings.metrics.host
        for port in self._ports:
            try:
                self._server = _Server((host, port), self._pages)
                break
            except OSError as error:
                told = error
        if self._server is None:
            log.error("no metrics: their port is taken", host=host, first=self._ports[0], error=str(told))
            return
        self.url = f"http://{host}:{port}"
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()
        threading.Thread(target=self._watch_disks, name="disks", daemon=True).start()
        log.info("metrics served", url=f"{self.url}/metrics")

    def stop(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _scrape(self, accept: str) -> tuple[int, str, bytes]:
        encode, kind = choose_encoder(accept)
        return 200, kind, encode(self._metrics.registry)

    def _watch_disks(self) -> None:
        """Apart from all else: a disk that hangs stops whoever asks it."""
        while True:
            for name, path in self._folders.items():
                try:
                    usage = shutil.disk_usage(path)
                except OSError:
                    continue  # not there (yet): whoever needs it says so
                self._metrics.disk(name, free=usage.free, size=usage.total)
            time.sleep(_DISKS_S)


def _page(checks: Checks) -> Callable[[str], tuple[int, str, bytes]]:
    def page(_: str) -> tuple[int, str, bytes]:
        try:
            found = checks()
        except Exception as error:  # noqa: BLE001 - a process whose health cannot be told has none
            found = [Check("checks", ok=False, detail=f"{type(error).__name__}: {error}")]
        ok = all(check.ok for check in found)
        body = {"ok": ok, "checks": [asdict(check) for check in found]}
        return 200 if ok else 503, "application/json", json.dumps(body).encode() + b"\n"

    return page


def _folders(settings: Settings) -> dict[str, Path]:
    """Folders of the settings whose disks matter."""
    root = next(iter(settings.frames.roots), "")
    urls = {"models": settings.store.url, "frames": root, "pool": settings.pool.url or ""}
    found = {name: Path(unquote(urlsplit(url).path)) for name, url in urls.items() if url.startswith("file:///")}
    return found | {"drift": Path(settings.drift.folder).expanduser()}
