"""One line an event: JSON for machines, readable on a terminal; to standard error, at a bounded rate.

Texts of exceptions stay out: those of Postgres, pydantic and grpc repeat the data they choked on. So do lines of
libraries: of a logger that is not on the list below, the logger, level, place and type of error stay.
"""

import logging
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, WrappedLogger

LINES_MAX = 10  # of one event, or of one library's logger, in WINDOW_S: a lost broker fails every batch
WINDOW_S = 30.0

# Loggers whose texts speak of brokers, topics and partitions only. None of them sees a request or a row.
TOLD_AS_THEY_ARE = ("aiokafka",)
FOREIGN_EVENT = "library_line"

LogFormat = Literal["auto", "json", "console"]


def error_facts(error: BaseException) -> dict[str, str]:
    """The type of an error and where it was raised: all of it that may be logged."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else ""
    cause = error.__cause__
    facts = {"error": type(error).__name__, "error_at": where}
    return facts | ({"error_cause": type(cause).__name__} if cause is not None else {})


def crash(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    """Log an unexpected end: every frame, and no text of any exception."""
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
    """Passes LINES_MAX lines of a name in WINDOW_S. The next line that passes says how many were dropped.

    The name is the event's for our own lines, of which there is a closed set, and the logger's for a library's.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._windows: dict[str, tuple[float, int]] = {}  # when it ends, and the lines in it
        self._held_back: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        name = str(record.msg.get("event")) if isinstance(record.msg, dict) else record.name
        now = self._clock()
        ends_at, lines = self._windows.get(name, (0.0, 0))
        if now >= ends_at:
            ends_at, lines = now + WINDOW_S, 0
        self._windows[name] = (ends_at, lines + 1)
        if lines >= LINES_MAX:
            self._held_back[name] += 1
            return False
        if self._held_back:
            record.held_back, self._held_back = dict(self._held_back), Counter()
        return True


def _thread_crash(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
        structlog.get_logger("shared.logs").error("thread_crashed", **error_facts(args.exc_value))


def _ignored(unraisable: Any) -> None:
    """Log errors that Python cannot raise anywhere, such as those of a finaliser."""
    if unraisable.exc_value is not None:
        structlog.get_logger("shared.logs").warning("error_ignored", **error_facts(unraisable.exc_value))


def _is_told_as_it_is(logger: str) -> bool:
    return any(logger == name or logger.startswith(f"{name}.") for name in TOLD_AS_THEY_ARE)


def _told(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Add how many lines were dropped before, and reduce a library's line to logger, place and error type."""
    record = event.get("_record")
    if isinstance(record, logging.LogRecord):
        if not event.get("_from_structlog") and not _is_told_as_it_is(record.name):
            event["event"] = FOREIGN_EVENT
            event["at"] = f"{record.filename}:{record.lineno}"
        exc_info = event.get("exc_info")
        if isinstance(exc_info, tuple) and exc_info[1] is not None:
            event.update(error_facts(exc_info[1]))
        if hasattr(record, "held_back"):
            event["held_back"] = record.held_back
    event.pop("exc_info", None)
    return event


def configure(level: str, *, process: str, log_format: LogFormat = "auto") -> None:
    """Route structlog and the standard library's loggers to standard error. `auto`: readable on a terminal."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    is_readable = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if is_readable
        else structlog.processors.JSONRenderer()
    )
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
            processors=[_told, structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    sys.excepthook = crash
    threading.excepthook = _thread_crash
    sys.unraisablehook = _ignored
    logging.captureWarnings(True)  # noqa: FBT003
    handler.addFilter(RateLimit())
    for name in ("aiokafka", "asyncio", "grpc", "h2", "hpack", "asyncpg", "opentelemetry"):
        logging.getLogger(name).setLevel("WARNING")
