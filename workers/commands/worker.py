"""`goldline worker`."""

import os
import signal
import sys

import click

from pipeline.settings import Settings
from workers import logs
from workers.commands import options


@click.command("worker")
@options.config
@options.metrics_port
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.option("--without-model", is_flag=True, hidden=True, help="Pass every frame at once: `goldline bench walk`.")
def command(settings: Settings, metrics_port: int | None, log_level: str, without_model: bool) -> None:
    """Inspect frames until SIGTERM: then finish what is in flight, publish, commit, and exit 0.

    Start as many as you like on as many machines: stations are shared out among the workers of a group. Logs are JSON
    lines on standard error. The first lines say where it answers /metrics, /health/live and /health/ready.

    \b
    Exit status: 0 ended as asked; 1 ended by itself; 2 refused to start; 70 was stuck (see [worker] stuck_s).
    """
    # Until the worker has handlers of its own nothing is in flight, and to end at once is to end in order. Not by an
    # exception: in a call-back of native code it would abort the process.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    logs.set_up(log_level, process="worker")
    from workers import service  # noqa: PLC0415 - torch and Faust take seconds to import
    from workers.pass_all import PassAll  # noqa: PLC0415

    status = service.run(settings, PassAll() if without_model else None, metrics_port=metrics_port)
    # Nothing is left to do: what was published is committed, and the rest comes again. To take the interpreter apart
    # under a thread that still computes prints that thread's errors, and what native libraries think of it.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
