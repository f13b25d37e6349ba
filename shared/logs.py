"""One line an event: JSON for machines, readable on a terminal; to standard error, at a bounded rate.

Texts of exceptions stay out: those of Postgres, pydantic and grpc repeat the data they choked on.
"""

import logging
import sys
import time
import traceback
from types import TracebackType
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

LIBRARY_LINES_MAX = 10  # of one logger in LIBRARY_WINDOW_S: a lost broker makes aiokafka log every attempt
LIBRARY_WINDOW_S = 30.0


def error_facts(error: BaseException) -> dict[str, str]:
    """The type of an error and where it was raised: all of it that may be logged."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else ""
    cause = error.__cause__
    facts = {"error": type(error).__name__, "error_at": where}
    return facts | ({"error_cause": type(cause).__name__} if cause is not None else {})


def crash(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    """What an unexpected end leaves behind: every frame, and no text of any exception."""
    if issubclass(kind, KeyboardInterrupt):
        return
    structlog.get_logger("shared.logs").error("process_crashed", **error_facts(error), trace=_trace(error))


def _trace(error: BaseException) -> list[str]:
    """Type and frames of an error, of what caused it and of what it groups."""
    lines = [type(error).__name__] + [
        f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
    ]
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else (error.__cause__ or error.__context__,)
    return lines + [line for other in inner if other is not None for line in _trace(other)]


class RateLimit(logging.Filter):
    """Lets a logger say LIBRARY_LINES_MAX lines in a window, and says how many it held back."""

    def __init__(self) -> None:
        super().__init__()
        self._window_end: dict[str, float] = {}
        self._lines: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now >= self._window_end.get(record.name, 0.0):
            held_back = self._lines.get(record.name, 0) - LIBRARY_LINES_MAX
            if held_back > 0:
                record.held_back = held_back
            self._window_end[record.name] = now + LIBRARY_WINDOW_S
            self._lines[record.name] = 0
        self._lines[record.name] += 1
        return self._lines[record.name] <= LIBRARY_LINES_MAX


def _library_line(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """A line of a library: its exception shrinks to type and place."""
    record = event.get("_record")
    if isinstance(record, logging.LogRecord):
        if record.exc_info and record.exc_info[1] is not None:
            event.update(error_facts(record.exc_info[1]))
        if hasattr(record, "held_back"):
            event["held_back_lines"] = record.held_back
    event.pop("exc_info", None)
    return event


def configure(level: str, *, process: str) -> None:
    """Route structlog and the standard library's loggers to standard error."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    is_terminal = sys.stderr.isatty()
    renderer: Any = structlog.dev.ConsoleRenderer() if is_terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[_library_line, structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    sys.excepthook = crash
    limit = RateLimit()
    for name in ("aiokafka", "asyncio", "grpc", "asyncpg"):
        logging.getLogger(name).setLevel("WARNING")
    handler.addFilter(lambda record: record.name.split(".")[0] in OURS or limit.filter(record))


OURS = frozenset({"receiver", "consumer", "shared"})
