"""What the connections of one worker share: the application, the clock, and the end of a tick.

A *tick* is one iteration of the event loop. All requests that were read in it are handed to the application
one after the other; an application that defers its commit puts what it wants stored into
``environ["collector.held"]``. At the end of the tick everything held is committed at once (one write, at most
one fdatasync), and only then the replies go, one write per connection:

    read, read, read … → app, app, app … → end_tick: commit → flush, flush, flush …

If the commit fails, the replies of those requests that held something are replaced by the application's 503;
the others stand. All keep their places, so that every connection gets its replies in order.

While the disk is slow a thread commits, for which the loop waits (disk_thread.py). What takes longer than its patience
makes the tick *late*: its replies stay, and whoever waits for no commit is served meanwhile. What is held by then
gathers for the next commit. After 5 s all are answered 503, though what the disk is working at may become stored.

Why not a future per tick: it costs more than it saves. A client that has gone changes nothing: what it sent is stored,
and there is nobody to tell.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

from collector.access import AccessLog
from collector.body_thread import BodyThread
from collector.disk_thread import DiskThread
from collector.environ import Environ, HeaderKeys
from collector.limits import Limits
from collector.repeated_head import Shortcut
from collector.replies import UNAVAILABLE, Replies, WsgiApp
from spool.condition import SYNC_STALL_S

if TYPE_CHECKING:
    from collector.http_protocol import Connection

log = logging.getLogger(__name__)

DEFAULT_MAX_BODY_BYTES = 8 * 1024 * 1024
_NONE: frozenset["Connection"] = frozenset()

#: A request whose reply depends on a commit: whose it is, which of its replies, and whether the connection stays.
Waiting = tuple["Connection", int, Environ, bool]


class DeferringApp(Protocol):
    """A WSGI application that leaves the commit to the worker. Without ``commit`` it is an ordinary one.

    One that has ``common_headers(environ)`` is asked for the headers of the worker's own answers too, and one that has
    ``shortcut(environ)`` for what answers further requests like this one (repeated_head.py), or None. Without
    ``refuse_all()`` those that it does not take are not refused before the application is called.
    """

    max_body_bytes: int

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]: ...

    def commit(self, held: list[Any]) -> str | None:
        """Make everything held durable. None: done; a sentence: why nothing of it is promised."""

    def waits_for_disk(self, held: list[Any]) -> bool:
        """Whether `commit` will wait for the disk, so that it is not called on the loop while the disk is slow."""

    def unavailable(self, environ: Mapping[str, Any], reason: str) -> tuple[str, Sequence[tuple[str, str]], bytes]:
        """Status, headers and body of the reply to a request whose commit failed."""

    def unwanted(self, environ: Mapping[str, Any]) -> str | None:
        """Why this request's body is not to be read, or None. Asked when the headers are complete.

        A request whose body is not wanted comes to the application with an empty one, to be refused; then the
        connection is closed.
        """

    def refuse_all(self) -> str | None:
        """Why all are refused that a shortcut could take, or None. Asked for one that is told so; counts it by reason.

        Its answer is counted by `unavailable`, or by `refused` when it was made before and is sent again.
        """

    def maintain(self) -> None:
        """Called every 0.1 s, not during a commit; where there is `waits_for_disk`, by the disk's thread."""

    def observe(self, connections: int, buffered_bytes: int) -> None:
        """How many clients are connected, and how many bytes of their bodies are in memory; before ``maintain``."""

    def refused(self, environ: Mapping[str, Any], status: str) -> None:
        """The worker has answered this itself: a request that could not be read, or a refusal once more."""

    def close(self) -> None:
        """Called once when the worker ends."""


class Hub:
    """Shared state of one worker's connections. Lives on the loop's thread, as everything it holds."""

    def __init__(self, app: WsgiApp, limits: Limits, loop: asyncio.AbstractEventLoop, access: AccessLog | None) -> None:
        self._app = cast(DeferringApp, app)
        self.limits = limits
        self.loop = loop
        self.replies = Replies(app, lambda exc: loop.call_soon_threadsafe(_raise, exc))
        self.keys = HeaderKeys()
        self.defers = hasattr(app, "commit")
        self.unwanted = getattr(app, "unwanted", _nothing)
        self._observe = getattr(app, "observe", _nothing)
        self.refused = getattr(app, "refused", _nothing)
        self.refuse_all: Callable[[], str | None] = getattr(app, "refuse_all", _nothing)
        self._maintain = getattr(app, "maintain", _nothing)
        self._waits_for_disk: Callable[[list[Any]], bool] | None = getattr(app, "waits_for_disk", None)
        self.max_body_bytes: int = getattr(app, "max_body_bytes", DEFAULT_MAX_BODY_BYTES)
        self.max_connections = limits.connections()
        self.connections: set[Connection] = set()
        self.now = loop.time()  # coarse: as of the last `beat`
        self.stopping = False
        self.served = 0
        self.buffered_bytes = 0
        self.bodies = BodyThread(self)
        self.access = access
        self.shortcut: Callable[[Environ], Shortcut | None] = _nothing if access else getattr(app, "shortcut", _nothing)
        self._due = False
        self._dirty: list[Connection] = []
        self._held: list[Any] = []
        self._waiting: list[Waiting] = []
        self._under_way: list[Waiting] = []  # those of the commit that the disk has not answered yet
        self._gathered = self._gathered_bytes = 0  # of _waiting, while the disk is at work; bytes of their bodies
        self.at_disk_since: float | None = None  # when the loop itself began to commit, while it does
        self._disk = DiskThread(loop, on_late=self.end_tick)

    def beat(self, wall_s: float) -> None:
        """To be called at least every second: the clock of timeouts and of the Date header."""
        self.now = self.loop.time()
        self.replies.now(wall_s)

    def maintain(self) -> None:
        """To be called every 0.1 s: the application's own upkeep, unless the disk is at work; then a look at that."""
        self.observe()
        if self._disk.busy_s() is not None:
            self._give_up_late()
            self._flush()
        elif self._waits_for_disk is None:
            self._maintain()
        else:
            self._disk.run(self._maintain_there, self._maintained)

    def observe(self) -> None:
        """Let the application show its state."""
        self._observe(len(self.connections), self.buffered_bytes)

    def _maintain_there(self) -> Exception | None:
        try:
            self._maintain()
        except Exception as exc:  # noqa: BLE001 - it is raised again, on the loop
            return exc
        return None

    def _maintained(self, failure: Exception | None) -> None:
        if failure is not None:
            raise failure

    def call(self, environ: Environ, keep_alive: bool) -> tuple[list[Any], bytes, bool]:
        """Let the application answer: what it holds, its reply, and whether the connection stays.

        Called on the loop and by the helper thread.
        """
        held: list[Any] = []
        if self.defers:
            environ["collector.held"] = held
        if self.stopping:
            environ["collector.stopping"] = True
        if self.access is not None:
            self.access.begin(environ)
        reply, stays = self.replies.respond(environ, held, keep_alive and not self.stopping)
        return held, reply, stays

    def hold(self, connection: "Connection", environ: Environ, held: list[Any], keep_alive: bool) -> None:
        """Let the last reply of this connection depend on the tick's commit."""
        self._held += held
        self._waiting.append((connection, len(connection.replies) - 1, environ, keep_alive))

    def touch(self, connection: "Connection") -> None:
        """This connection has replies to be flushed at the end of the tick."""
        self._dirty.append(connection)
        if not self._due:
            self._due = True
            self.loop.call_soon(self.end_tick)

    def end_tick(self) -> None:
        """Commit what is held, then let the replies go."""
        self._due = False
        if self._waiting:
            self._commit()
        self._flush()

    def finish(self, patience_s: float) -> bool:
        """The last tick, when the loop does not run any more; False if the disk is still at work after that."""
        if not self._disk.wait(patience_s):
            return False
        self.end_tick()
        return self._disk.wait(patience_s)

    def _flush(self) -> None:
        """Let the replies go that depend on nothing any more."""
        late = self._late()
        if self.access is not None:
            self.access.write({id(connection.replies) for connection in late})
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            if connection in late:
                self._dirty.append(connection)
                continue
            try:
                connection.flush()
            except Exception:  # one connection must never keep the others from their replies
                log.exception("a connection failed while its replies were sent")
                connection.abort()

    def _commit(self) -> None:
        """Commit what is held, if the disk is free; what comes of it is seen by `_settle`."""
        if self._disk.busy_s() is not None:
            self._give_up_late()
            return
        self._gathered = self._gathered_bytes = 0
        held, self._held = self._held, []
        self._under_way, self._waiting = self._waiting, []
        if self._disk.is_slow() and self._waits_for_disk is not None and self._waits_for_disk(held):
            self._disk.run(partial(self._commit_there, held), self._settle)
            return
        began = self.at_disk_since = time.monotonic()
        reason = self._commit_there(held)
        self.at_disk_since = None
        self._disk.note(time.monotonic() - began)
        self._settle(reason)

    def _commit_there(self, held: list[Any]) -> str | None:
        try:
            return self._app.commit(held)
        except Exception:
            log.exception("the commit failed unexpectedly")
            return "the commit failed"

    def unavailable(self, environ: Environ, reason: str, keep_alive: bool) -> bytes:
        """The 503 for a request of which nothing is stored."""
        if self.defers:
            try:
                status, headers, body = self._app.unavailable(environ, reason)
                return self.replies.encode(environ, status, headers, body, keep_alive)[0]
            except Exception:
                log.exception("the application has no answer for a failed commit")
        return self.replies.refusal(environ, UNAVAILABLE, reason)

    def refuse(self, environ: Environ, status: str, detail: str) -> bytes:
        """The reply to what cannot be read as a request; the application hears of it."""
        self.refused(environ, status)
        return self.replies.refusal(environ, status, detail)

    def _late(self) -> Collection["Connection"]:
        """Connections of which a reply still depends on the disk."""
        if not self._under_way and not self._waiting:
            return _NONE
        return {connection for connection, *_ in self._under_way + self._waiting}

    def _settle(self, reason: str | None) -> None:
        """The commit under way has ended: with None, or with the reason why nothing of it is promised."""
        under_way, self._under_way = self._under_way, []
        if reason is not None:
            self._refuse_all(under_way, reason)

    def _refuse_all(self, waiting: list[Waiting], reason: str) -> None:
        for connection, position, environ, keep_alive in waiting:
            connection.replies[position] = self.unavailable(environ, reason, keep_alive)

    def _give_up_late(self) -> None:
        """The disk is still at work: answer 503 once that takes too long, or once too much has gathered."""
        for _, _, environ, _ in self._waiting[self._gathered :]:
            self._gathered_bytes += 512 + int(environ.get("CONTENT_LENGTH") or 0)
        self._gathered = len(self._waiting)
        if (self._disk.busy_s() or 0.0) > SYNC_STALL_S:
            given_up, self._under_way = self._under_way + self._waiting, []
        elif self._gathered_bytes > self.limits.max_buffered_bytes:
            given_up = self._waiting
        else:
            return
        self._waiting, self._held = [], []
        self._gathered = self._gathered_bytes = 0
        self._refuse_all(given_up, "the spool's disk does not answer")

    def is_busy(self) -> bool:
        """Whether a connection is open or a request not yet answered."""
        return bool(self.connections) or self.bodies.pending > 0

    def close_quiet(self, for_s: float) -> None:
        """Close the connections that have been between two requests for so long; no request is under way there."""
        for connection in tuple(self.connections):
            connection.close_quiet(for_s)

    def check_timeouts(self) -> None:
        """One pass over all connections, about once a second: cheaper than a timer for each request."""
        for connection in tuple(self.connections):
            connection.check_timeout(self.now)


def _raise(exc: BaseException) -> None:
    raise exc


def _nothing(*_: object) -> None:
    return None
