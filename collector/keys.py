"""API keys as the doors see them: is this request's key one of ours, and may it do this.

A key comes as ``Authorization: Bearer KEY`` or as ``X-API-Key: KEY`` (which counts when both are there: the other
may be meant for a proxy), never in the query, which others log. It is found by its prefix; then its SHA-256 is
compared in constant time, also when nobody has that prefix. No key is ever logged, nor a part of one.

The file is looked at once a second, so a command's change holds within that time, in every process, without a
restart. A file that cannot be read, or that is broken, changes nothing: the last good one holds, and the log says
so. Where there was no good one yet, requests are answered 503 and not 401, for a client drops its events on 401.
"""

import hashlib
import hmac
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from collector.api_key_file import KEY, ApiKey, ApiKeyFileError, Scope, read_keys
from forwarders.flush_settings import Names
from spool.watermark import retry_after_s

log = logging.getLogger(__name__)

LOOK_S = 1.0
_NOBODYS = hashlib.sha256(b"").hexdigest()

Headers = list[tuple[str, str]]


class KeyRefused(Exception):
    """The request may not go on: a status line, a sentence for the client, and headers for the answer."""

    def __init__(self, status: str, reason: str, headers: Headers) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers


@dataclass(frozen=True)
class Admitted:
    """A key that was found good: its prefix, to be spoken of, and the events it may send."""

    prefix: str
    names: Names


#: What a door asks before it reads a body: who is it; None where no key is asked for. Errors: KeyRefused.
Guard = Callable[[Mapping[str, Any]], Admitted | None]


def no_guard(environ: Mapping[str, Any]) -> None:
    """An open door's guard."""


class Keys:
    """The keys that are valid now. One per process; any thread may ask."""

    def __init__(
        self, path: Path, *, wall_s: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._wall_s = wall_s
        self._monotonic = monotonic
        self._keys: dict[str, tuple[ApiKey, Admitted]] | None = None
        self._seen: tuple[int, ...] = ()
        self._failure = ""
        self._look_at = -math.inf
        self.look()

    def judge(self, environ: Mapping[str, Any], scope: Scope) -> Admitted:
        """The request's key, when it may do what ``scope`` says; nothing but headers is looked at.

        Errors: KeyRefused: 401 without a valid key, 403 when it lacks the scope, 503 while no key can be known.
        """
        self.look()
        keys = self._keys
        if keys is None:
            retry = [("Retry-After", str(retry_after_s()))]
            raise KeyRefused("503 Service Unavailable", "the API keys cannot be read", retry)
        given = _given(environ)
        if not given:
            raise _unauthorized("an API key is needed, in the header Authorization (Bearer KEY) or X-API-Key")
        match = KEY.fullmatch(given)
        key, admitted = keys.get(match[1], (None, None)) if match else (None, None)
        digest = hashlib.sha256(given.encode()).hexdigest()
        same = hmac.compare_digest(digest, key.sha256 if key else _NOBODYS)
        if not same or key is None or admitted is None:
            raise _unauthorized("the API key is not valid", "invalid_token")
        if key.is_expired(self._wall_s()):
            raise _unauthorized("the API key has expired", "invalid_token")
        if scope not in key.scopes:
            challenge = _challenge(f'error="insufficient_scope", scope="{scope}"')
            raise KeyRefused("403 Forbidden", f"the API key does not have the scope {scope}", challenge)
        return admitted

    def guard(self, scope: Scope) -> Guard:
        """The guard of a door for which a key needs this scope."""
        return partial(self.judge, scope=scope)

    @property
    def state(self) -> int:
        """0: the file is read; 1: it cannot be, the last good one holds; 2: there has been no good one."""
        return (1 if self._keys is not None else 2) if self._failure else 0

    def look(self) -> None:
        """Read the file when it is time to look, and when it is not the one that was read last."""
        now = self._monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_S
        try:
            found = self._path.stat()
            seen = (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
            if seen == self._seen:
                return
            keys = read_keys(self._path)
        except (OSError, ApiKeyFileError) as exc:
            reason = f"{self._path}: {exc.strerror}" if isinstance(exc, OSError) else str(exc)
            if reason != self._failure:
                held = "requests that need one get 503" if self._keys is None else "the last good ones hold"
                log.error("the API keys cannot be read", extra={"reason": reason, "until_then": held})
            self._failure = reason
            return
        self._seen, self._failure = seen, ""
        self._keys = {prefix: (key, Admitted(prefix, Names(key.names or ["*"]))) for prefix, key in keys.items()}
        log.info("API keys read", extra={"path": str(self._path), "count": len(keys)})


def _given(environ: Mapping[str, Any]) -> str:
    """The key that a request brings, or ""."""
    own: str = environ.get("HTTP_X_API_KEY", "")
    if own:
        return own.strip()
    scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _unauthorized(reason: str, error: str = "") -> KeyRefused:
    return KeyRefused("401 Unauthorized", reason, _challenge(f'error="{error}"' if error else ""))


def _challenge(details: str) -> Headers:
    return [("WWW-Authenticate", f'Bearer realm="collector"{", " if details else ""}{details}')]
