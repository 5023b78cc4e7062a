"""The one thread that waits for a slow disk, so that the event loop need not wait for it for ever.

    loop     run: hand over the job, wait for it as for a call of its own, at most PATIENCE_S
    thread   does the job
    loop     in time: go on with the outcome, as if it had done the job itself
             not in time: see to clients, and hear of the outcome when there is one

Used for maintenance (the interval's sync among it) always, and for commits once the disk has been slow: for SLOW_FOR_S
after a call that took longer than PATIENCE_S. On a healthy disk the loop commits by itself: a hand-over was measured to
cost 85 µs of processor time with one client, and a seventh of all requests with 32. Why the loop waits at all for the
thread: going on at once was slower still, it splits the clients into two alternating groups.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, Final

POLL_S: Final = 0.02
SLOW_FOR_S: Final = 60.0
PATIENCE_S: Final = 0.25  # above what a healthy disk takes, below what a health check waits


class DiskThread:
    """Does one job at a time. Owner: the hub; everything but `_run` happens on the loop. Started at the first job."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, on_late: Callable[[], None], patience_s: float = PATIENCE_S
    ) -> None:
        """``on_late`` is called on the loop after a job that came back late."""
        self._loop = loop
        self._on_late = on_late
        self._patience_s = patience_s
        self._thread: threading.Thread | None = None
        self._given, self._finished = threading.Lock(), threading.Lock()  # released to wake the other side
        self._given.acquire()
        self._finished.acquire()
        self._turn = threading.Lock()  # guards _is_finished and _is_late
        self._job: Callable[[], Any] | None = None
        self._outcome: Any = None
        self._is_finished = self._is_late = False
        self._done: Callable[[Any], None]
        self._since: float | None = None
        self._slow_until = float("-inf")

    def is_slow(self) -> bool:
        """Whether the disk made somebody wait lately."""
        return time.monotonic() < self._slow_until

    def note(self, seconds: float) -> None:
        """A call of the disk, made here or by the loop itself, took this long."""
        if seconds > self._patience_s:
            self._slow_until = time.monotonic() + SLOW_FOR_S

    def run(self, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Do ``job``, which must not raise, and call ``done`` with what it returned: before this returns, or late.

        Not to be called while `busy_s` says that there is one.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="disk", daemon=True)
            self._thread.start()
        self._job, self._done = job, done
        self._is_finished = self._is_late = False
        self._since = time.monotonic()
        self._given.release()
        if not self._finished.acquire(timeout=self._patience_s):
            with self._turn:
                if not self._is_finished:
                    self._is_late = True
                    self.note(float("inf"))
                    return
            self._finished.acquire()
        self._end()

    def busy_s(self) -> float | None:
        """For how many seconds a job has been under way; None: there is none."""
        return None if self._since is None else time.monotonic() - self._since

    def wait(self, patience_s: float) -> bool:
        """Wait for a late job, when the loop does not run any more; False if it is not done by then."""
        deadline = time.monotonic() + patience_s
        while self._since is not None:
            if self._is_finished:
                self._end()
            elif time.monotonic() >= deadline:
                return False
            else:
                time.sleep(POLL_S)
        return True

    def _end(self) -> None:
        self.note(time.monotonic() - self._since if self._since is not None else 0.0)
        self._since = None
        self._done(self._outcome)

    def _end_late(self) -> None:
        try:
            self._end()
        finally:
            self._on_late()

    def _run(self) -> None:
        while True:
            self._given.acquire()
            assert self._job is not None
            outcome = self._job()
            with self._turn:
                self._outcome = outcome
                self._is_finished = True
                is_late = self._is_late
            if is_late:
                try:
                    self._loop.call_soon_threadsafe(self._end_late)
                except RuntimeError:
                    return  # the loop is closed: the worker has ended
            else:
                self._finished.release()
