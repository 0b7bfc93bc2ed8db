"""What the gate calls: commands as argv lists and HTTP POSTs, the action as JSON, never through a shell."""

import json
import subprocess
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from pipeline.errors import ConfigError
from pipeline.settings import Gate as GateSettings
from pipeline.settings import Settings
from workers import logs
from workers.gate import Action
from workers.metrics import GateMetrics

log = logs.get(__name__)

_THREADS = 4


class Hooks:
    """Calls what the settings name, off the gate's own thread; a failing hook is a log line."""

    def __init__(self, settings: GateSettings, metrics: GateMetrics | None = None) -> None:
        for url in (settings.pass_url, settings.reject_url):
            if url and not url.startswith(("http://", "https://")):
                raise ConfigError(f"gate: a hook's URL begins with http:// or https://, not {url!r}")
        self._settings = settings
        self._metrics = metrics or GateMetrics(Settings())
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="hook")

    def call(self, action: Action) -> None:
        """What is due for this action: a command, a POST, both or nothing."""
        passes = action.action == "pass"
        argv = self._settings.on_pass if passes else self._settings.on_reject
        url = self._settings.pass_url if passes else self._settings.reject_url
        body = json.dumps(action.body()).encode()
        kind = "pass" if passes else "reject"
        if argv:
            self._pool.submit(self._command, f"{kind}_command", argv, body)
        if url:
            self._pool.submit(self._post, f"{kind}_url", url, body)
        if self._settings.stop_after and action.in_a_row == self._settings.stop_after:
            self._metrics.stops.inc()
            log.critical("stop the line: too many in a row did not pass", station=action.station, n=action.in_a_row)
            if self._settings.on_stop:
                self._pool.submit(self._command, "stop_command", self._settings.on_stop, body)

    def close(self) -> None:
        """Wait for the calls under way."""
        self._pool.shutdown(wait=True)

    def _command(self, hook: str, argv: tuple[str, ...], body: bytes) -> None:
        try:
            subprocess.run(
                list(argv),
                input=body,
                stdout=subprocess.DEVNULL,  # ours carries the actions
                timeout=self._settings.hook_timeout_s,
                check=True,
            )
            self._metrics.hook(hook, done=True)
        except Exception as error:  # noqa: BLE001 - whatever a hook does, the gate goes on and says so
            self._metrics.hook(hook, done=False)
            log.error("hook failed", command=argv[0], error=str(error))

    def _post(self, hook: str, url: str, body: bytes) -> None:
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked, the URL is the settings'
            url, data=body, headers={"content-type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=self._settings.hook_timeout_s):  # noqa: S310
                self._metrics.hook(hook, done=True)
        except Exception as error:  # noqa: BLE001 - likewise; http.client has errors of its own
            self._metrics.hook(hook, done=False)
            log.error("hook failed", url=url, error=str(error))
