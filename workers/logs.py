"""Logs: one JSON object a line on standard error, ours and the libraries' alike."""

import logging
import sys
from typing import Any

import structlog

_LIBRARIES = {
    "aiokafka": logging.ERROR,
    "kafka": logging.ERROR,
    "faust": logging.WARNING,
    "mode": logging.WARNING,
    "asyncio": logging.ERROR,
    "opentelemetry": logging.CRITICAL,  # `spans` tells what it has to tell, once a minute
    "urllib3": logging.ERROR,
}


def set_up(level: str = "info", **context: Any) -> None:
    """Send all logs to standard error as JSON lines, each with `context` bound."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    processors = structlog.get_config()["processors"]
    # The same list, changed: loggers that were used before hold it.
    processors[:] = [*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter]
    structlog.configure(
        processors=processors,
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, quiet in _LIBRARIES.items():
        logging.getLogger(name).setLevel(max(quiet, root.level))
    structlog.contextvars.bind_contextvars(**context)


def get(name: str) -> structlog.stdlib.BoundLogger:
    """A logger of ours."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
