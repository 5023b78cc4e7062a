"""What people want of a forwarder that runs: a pause, everything sent now, segments left out.

A pause is a file (spool/switch.py), looked at before each step, so it holds over restarts and takes effect within a
second. The rest is asked for in the flusher's own process and done by the forwarder's thread between two sends.
"""

import contextlib
import logging
import queue
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

from spool.switch import Switch, SwitchedOff

log = logging.getLogger(__name__)

T = TypeVar("T")


class Gone(Exception):
    """The forwarder's thread ended before it could do what it was asked."""


class Orders:
    """The orders for one forwarder.

    Owner: the forwarder's thread; `ask` is for others.
    ``hurry``: what waits is sent without waiting for full or old batches, until nothing waits.
    """

    def __init__(self, switch: Switch) -> None:
        self.hurry = False
        self._switch = switch
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._off: SwitchedOff | None = None
        self._closed = False

    def ask(self, work: Callable[[], T]) -> Future[T]:
        """Have ``work`` done by the forwarder's thread before its next step. Errors in the future: its own, Gone."""
        answer: Future[T] = Future()
        self._asked.put((work, answer))
        if self._closed:
            self._dismiss()
        return answer

    def obey(self) -> None:
        """Do what was asked since."""
        while not self._asked.empty():
            work, answer = self._asked.get()
            if not answer.set_running_or_notify_cancel():
                continue  # whoever asked has not waited for it
            try:
                answer.set_result(work())
            except Exception as exc:  # noqa: BLE001  it is the concern of whoever asked
                answer.set_exception(exc)

    def pause(self) -> SwitchedOff | None:
        """Who paused it, in a way: why and since when; None when it is to work."""
        with contextlib.suppress(OSError):  # as it was
            self._off = self._switch.read()
        return self._off

    def close(self) -> None:
        """Nothing will be done any more."""
        self._closed = True
        self._dismiss()

    def _dismiss(self) -> None:
        while True:
            try:
                _, answer = self._asked.get_nowait()
            except queue.Empty:
                return
            with contextlib.suppress(InvalidStateError):  # it was given up
                answer.set_exception(Gone("the forwarder's thread has ended; it is started again, try once more"))
