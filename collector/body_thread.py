"""The one thread that handles large and compressed bodies, so that decoding 8 MiB does not stop everybody else.

It runs the application and makes the reply; the commit and the sending stay on the loop. Started at the first
large body.

Python lets a waiting thread have the interpreter after 5 ms, and the loop waits once for each connection that it
reads: beside a busy helper that is next to standing still. Measured with 32 clients while the helper decoded
without pause, requests a second: no helper 840; 5 ms 7,000; 0.5 ms 17,000; 0.1 ms 18,000, large bodies a third
fewer.
"""

import queue
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from collector.environ import Environ

if TYPE_CHECKING:
    from collector.http_protocol import Connection
    from collector.hub import Hub

SWITCH_INTERVAL_S = 0.0001


class BodyThread:
    """Owner: the hub. Everything but `_run` is called on the loop."""

    def __init__(self, hub: "Hub") -> None:
        self._hub = hub
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.pending = 0  # submitted, and not yet back on the loop
        self._large = 0  # of these, those above thread_body_bytes

    def submit(self, connection: "Connection", environ: Environ, keep_alive: bool, body_bytes: int) -> bool:
        """Queue a request; its reply comes to ``connection.answered``. False: too many large ones are waiting."""
        hub = self._hub
        large = body_bytes > hub.limits.thread_body_bytes
        if large and self._large >= hub.limits.thread_queue:
            return False
        if self._thread is None:
            sys.setswitchinterval(SWITCH_INTERVAL_S)
            self._thread = threading.Thread(target=self._run, name="large-bodies", daemon=True)
            self._thread.start()
        self.pending += 1
        self._large += large
        hub.buffered_bytes += body_bytes

        def back(held: list[Any], reply: bytes, stays: bool) -> None:
            self.pending -= 1
            self._large -= large
            hub.buffered_bytes -= body_bytes
            connection.answered(environ, held, reply, stays, keep_alive)

        def job() -> None:
            held, reply, stays = hub.call(environ, keep_alive)
            hub.loop.call_soon_threadsafe(back, held, reply, stays)

        self._jobs.put(job)
        return True

    def stop(self) -> None:
        """Let the thread end after what is queued."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except RuntimeError:
                return  # the loop is closed: the worker was told to end at once
