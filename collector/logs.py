"""What the log looks like: one line a record, to standard error, as text or as JSON.

    2026-11-22T10:15:00.123Z WARNING spool.recovery a torn tail was cut off segment=7f3a.seg bytes=812
    {"time": "2026-11-22T10:15:00.123Z", "level": "WARNING", "logger": "spool.recovery", "message": ..., "segment": ...}

A call gives constant text, and its data in ``extra``; both end up as fields. Line breaks and control characters
are escaped, tracebacks too: part of what is logged comes from clients, and a client must not be able to write a line.
"""

import codecs
import json
import logging
import sys
import time
from typing import Any

from collector.settings import LogSettings

_OWN = frozenset((*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName", "color_message"))


def setup(settings: LogSettings) -> None:
    """Send everything that is logged in this process to standard error. May be called again."""
    codecs.lookup("unicode_escape")  # loads it: when descriptors run out there is none to load it with
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TextFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.level.upper())
    for name in ("gunicorn.error", "gunicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in ("pika", "urllib3"):  # they tell each connection's life; our own messages say what matters of it
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(capture=True)


class TextFormatter(logging.Formatter):
    """``<time> <level> <logger> <message> key=value ...``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its end."""
        head = f"{_time(record)} {record.levelname} {record.name} {_escaped(record.getMessage())}"
        return head + "".join(f" {key}={_text(value)}" for key, value in _fields(self, record).items())


class JsonFormatter(logging.Formatter):
    """One JSON object with ``time``, ``level``, ``logger``, ``message`` and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its end."""
        own = {
            "time": _time(record), "level": record.levelname, "logger": record.name, "message": record.getMessage()
        }  # fmt: skip
        return json.dumps({**own, **_fields(self, record), **own}, default=str)  # own ones stand first, and win


def _fields(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, Any]:
    fields = {key: value for key, value in record.__dict__.items() if key not in _OWN}
    if record.exc_info:
        fields["exception"] = formatter.formatException(record.exc_info)
    if record.stack_info:
        fields["stack"] = record.stack_info
    return fields


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _text(value: object) -> str:
    text = str(value)
    if text and text.isprintable() and not any(char in ' "=\\' for char in text):
        return text
    return '"' + _escaped(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
