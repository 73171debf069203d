"""Structured logs: one canonical line per request and per cycle, as JSON or for a terminal.

Lines say whom and what they are about under the same names everywhere: ``tenant_id``, ``model_id``,
``request_id``, ``cycle_id``, ``worker_id``. Never what anybody sent: no tokens, no texts, no keys.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import structlog

_names: ContextVar[dict[str, str] | None] = ContextVar("names_in_log", default=None)


@contextmanager
def named_in_log() -> Generator[dict[str, str]]:
    """Collect what ``name_in_log`` says meanwhile, for all lines and for the canonical one.

    Names that were given outside do not count inside, nor those from inside outside.
    """
    names: dict[str, str] = {}
    before = structlog.contextvars.get_contextvars()
    token = _names.set(names)
    try:
        yield names
    finally:
        _names.reset(token)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(**before)


def name_in_log(**names: str) -> None:
    """Have the lines from here on say whom and what they are about; ids that are known to exist."""
    structlog.contextvars.bind_contextvars(**names)
    collected = _names.get()
    if collected is not None:
        collected.update(names)


def configure_logs(process: str, *, level: str = "INFO", as_json: bool = True) -> None:
    """Send every log line of this process to standard error, stamped with its name.

    Those of libraries too, from WARNING on, Python's warnings, and what ends the process.
    """
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    stamps: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    ends: list[Any] = [structlog.processors.format_exc_info, renderer]
    structlog.configure(
        processors=[*stamps, *ends],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    _take_in_libraries(stamps, ends)


def _take_in_libraries(stamps: list[Any], ends: list[Any]) -> None:
    """Lay out what comes through ``logging`` as our own lines are."""
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*stamps, structlog.stdlib.add_logger_name],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ends],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)

    def report(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            structlog.get_logger().critical("process failed", exc_info=(kind, error, trace))

    sys.excepthook = report
