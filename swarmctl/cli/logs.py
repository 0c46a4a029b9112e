"""The log of a daemon: JSON lines on stderr, or console style when that is a terminal.

Secrets never get there: join tokens are cut down to their prefix wherever they turn up in a
value, and what is named like a secret is left out whole.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

LEVELS: Final = ("debug", "info", "warning", "error")

_TOKEN: Final = re.compile(r"swarmctl-join-[A-Za-z0-9_-]+")
_SECRET_NAMES: Final = ("secret", "password", "secret_key")


def configure(daemon: str, level: str) -> None:
    """Send what this process logs to stderr, from ``level`` on; ``daemon`` says who it is."""

    def name(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
        event.setdefault("daemon", daemon)
        return event

    on_terminal = sys.stderr.isatty()
    last: list[Any] = (
        [structlog.dev.ConsoleRenderer(colors=True)]
        if on_terminal
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(
                fmt="%H:%M:%S.%f" if on_terminal else "iso", utc=not on_terminal
            ),
            name,
            without_secrets,
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def without_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
    """A structlog processor: the event without what nobody should read in a log."""
    for key, value in event.items():
        if key in _SECRET_NAMES:
            event[key] = "(hidden)"
        elif isinstance(value, str) and "swarmctl-join-" in value:
            event[key] = _TOKEN.sub("swarmctl-join-(hidden)", value)
    return event
