"""The access log: gunicorn's, but no query ever gets into it, since a pixel's query is personal data, and no key.

Off unless gunicorn was given ``accesslog``. A request is noted when it was handled and logged when its tick's
commit is over: only then is its status known.
"""

import time
from collections.abc import Collection
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from collector.environ import Environ

SECRETS = ("HTTP_AUTHORIZATION", "HTTP_PROXY_AUTHORIZATION", "HTTP_X_API_KEY", "HTTP_COOKIE")


class AccessLog:
    """Notes of one tick. ``logger`` is gunicorn's."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._notes: list[tuple[list[bytes], int, Environ, float]] = []

    def begin(self, environ: Environ) -> None:
        """A request is about to be handled."""
        environ["collector.began"] = time.monotonic()

    def note(self, environ: Environ, replies: list[bytes]) -> None:
        """The last of these replies answers ``environ``."""
        self._notes.append((replies, len(replies) - 1, environ, environ.get("collector.began", time.monotonic())))

    def write(self, unsettled: Collection[int]) -> None:
        """Log what was noted, but for those whose list of replies (by its id) may still change."""
        notes, self._notes = self._notes, []
        for replies, position, environ, began in notes:
            if id(replies) in unsettled:
                self._notes.append((replies, position, environ, began))
                continue
            head, _, body = replies[position].partition(b"\r\n\r\n")
            status, *lines = head.decode("latin-1").split("\r\n")
            response = SimpleNamespace(
                status=status[9:],
                headers=[tuple(line.split(": ", 1)) for line in lines],
                sent=len(body),
            )
            request = SimpleNamespace(
                headers=[
                    (key[5:].replace("_", "-"), _without_query(key, value))
                    for key, value in environ.items()
                    if key.startswith("HTTP_") and key not in SECRETS
                ]
            )
            self._logger.access(response, request, _loggable(environ), timedelta(seconds=time.monotonic() - began))


def _loggable(environ: Environ) -> Environ:
    copy = {"REQUEST_METHOD": "-", "RAW_URI": "-", "SERVER_PROTOCOL": "-", **environ, "QUERY_STRING": ""}
    for key in ("RAW_URI", "HTTP_REFERER"):
        copy[key] = _without_query(key, copy.get(key, "-"))
    for key in SECRETS:
        copy.pop(key, None)
    return copy


def _without_query(key: str, value: str) -> str:
    return value.partition("?")[0] if key in ("RAW_URI", "HTTP_REFERER") else value
