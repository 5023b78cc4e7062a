"""What state a forwarder is in and why, for a person: ``_queue/FORWARDER/.status.json``.

    {"state": "retrying", "reason": "rabbitmq: connection refused", "since_ms": 1795342500000, "attempts": 4,
     "last_error": "rabbitmq: connection refused", "last_error_ms": 1795342503000}

Figures are counters; this is the one sentence that no counter holds. It may be a destination's word on an event, so in
a spool with a key it is a box (`spool.box`). Written by the flusher when it changes, read by
health and by commands of any process.
"""

import logging
import os
import time
from collections.abc import Callable, Container
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from forwarders.flush_settings import Counters
from spool import box, drafts
from spool.directory import FILE_MODE, SpoolDirectory
from spool.key_name import KeyMissing
from spool.queue import Queue

if TYPE_CHECKING:
    from spool.cipher import Keyring

log = logging.getLogger(__name__)

State = Literal["ok", "retrying", "stopped", "paused"]
STATES: Final[tuple[State, ...]] = ("ok", "retrying", "stopped", "paused")  # as the counter ``state`` has them
REASON_MAX_CHARS: Final = 500
STATUS_NAME: Final = ".status.json"


class ForwarderStatus(msgspec.Struct, frozen=True):
    """``since_ms`` is when the state began, ``attempts`` how many sends failed since; ``last_error`` is kept also when
    it works again, "" while there was none."""

    state: State
    reason: str
    since_ms: int
    attempts: int
    last_error: str = ""
    last_error_ms: int = 0


def read_status(directory: SpoolDirectory, name: str) -> ForwarderStatus | None:
    """What the flusher last wrote about a forwarder; None: nothing, or nothing that can be read."""
    return _read(directory.queue_root / name / STATUS_NAME, directory.keyring)


def _read(path: Path, keyring: "Keyring | None") -> ForwarderStatus | None:
    try:
        text = b"".join(box.read(path, keyring))
        return msgspec.json.decode(text, type=ForwarderStatus)
    except (OSError, msgspec.DecodeError, KeyMissing, box.BoxDamaged):
        return None


def silence(directory: SpoolDirectory, queue: Path) -> None:
    """Take out of a status what the destination said: it may have quoted an event. Errors: OSError.

    ``queue`` may be one that is being made or forgotten. For when no flusher works.
    """
    path = queue / STATUS_NAME
    path.with_name(f"{STATUS_NAME}.new").unlink(missing_ok=True)
    status = _read(path, directory.keyring)
    if status is not None and (status.reason or status.last_error):
        quiet = msgspec.structs.replace(status, reason="", last_error="(removed with an erased event)")
        drafts.replace(directory, path, b"".join(box.seal([msgspec.json.encode(quiet)], directory.keyring)))


class StatusFile:
    """The status of one forwarder, as it is written.

    Owner:  the forwarder's thread.
    Errors: none: a status that cannot be written is logged once, and written with the next change.
    """

    def __init__(
        self, queue: Path, *, keyring: "Keyring | None" = None, wall_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._path = queue / STATUS_NAME
        self._keyring = keyring
        self._wall_ns = wall_ns
        self._written = True
        self.current: ForwarderStatus | None = None

    def put(self, state: State, reason: str = "", attempts: int = 0) -> None:
        """Say what state it is in now; nothing is written when that is known already."""
        reason = reason[:REASON_MAX_CHARS]
        known = self.current
        if known and self._written and (known.state, known.reason, known.attempts) == (state, reason, attempts):
            return
        now_ms = self._wall_ns() // 1_000_000
        since_ms = known.since_ms if known and known.state == state else now_ms
        before = known or _read(self._path, self._keyring)
        error = (before.last_error, before.last_error_ms) if before else ("", 0)
        if state in ("retrying", "stopped"):
            error = (reason, now_ms)
        status = ForwarderStatus(state, reason, since_ms, attempts, *error)
        self.current = status
        draft = self._path.with_name(f"{STATUS_NAME}.new")
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
            with os.fdopen(descriptor, "wb") as file:
                file.writelines(box.seal([msgspec.json.encode(status)], self._keyring))
            draft.replace(self._path)
            self._written = True
        except OSError as exc:
            if self._written:
                log.warning(
                    "the status of a forwarder cannot be written", extra={"path": str(self._path)}, exc_info=exc
                )
            self._written = False


class Gauges:
    """The figures of one forwarder that say how it is, and not what happened."""

    def __init__(self, queue: Queue, counters: Counters) -> None:
        self._queue = queue
        self._counters = counters
        self._head: str | None = None
        self._head_ms = 0

    def show(
        self, begun: str | None, finishing: Container[str], status: ForwarderStatus | None, *, done_events: int = 0
    ) -> None:
        """Set them. ``begun`` is the segment that is partly done, ``finishing`` those that are done but still there,
        and ``done_events`` are those of both that something has become of."""
        head = begun or self._queue.next_segment(finishing)
        if head != self._head:
            self._head, self._head_ms = head, created_ms(head) if head else 0
        self._counters.set("queue_segments", self._queue.count)
        self._counters.set("queue_bytes", self._queue.size)
        self._counters.set("queue_events", max(0, self._queue.events - done_events))
        self._counters.set("oldest_pending_ms", self._head_ms)
        self._counters.set("state", STATES.index(status.state) if status else 0)


def created_ms(segment: str) -> int:
    """When a segment was begun, as its name says; 0 when it says nothing."""
    try:
        created = datetime.strptime(segment[:23], "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC)
    except ValueError:
        return 0
    return int(created.timestamp() * 1000)
