"""Find the records that kill the process which sends them, by letting other processes do it.

A fault in a codec, or memory that is not there, takes a process away without a word. Afterwards it cannot be told
from a kill by a person, so counting deaths alone would sooner or later blame a record that has done nothing. A child
that dies while its parent lives is proof.
"""

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from formats.event import Event
from forwarders.batch import Piece
from forwarders.contract import Forwarder
from forwarders.delivery import Delivery
from spool.item import item_of_link

TRIAL_S: Final = 60.0
_ASK_S: Final = 0.01
_STDERR: Final = 2
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)


def find_killers(pieces: list[Piece], survived: Callable[[list[Piece]], bool]) -> tuple[list[Piece], bool]:
    """The records that are not survived, and whether all of them together are.

    Neither of both: it takes several together (memory). Found by halves: 2 log2(n) trials for one among n.
    """
    killers: list[Piece] = []
    innocent = True
    parts = [pieces]
    while parts:
        part = parts.pop()
        if survived(part):
            continue
        innocent = False
        if len(part) > 1:
            middle = len(part) // 2
            parts += [part[middle:], part[:middle]]
        elif not survived(part):  # somebody may have killed the first one
            killers += part
    return killers, innocent


def decode_and_send(
    pieces: Sequence[Piece], choose: Callable[[list[Event]], list[Event]], make: Callable[[], Forwarder]
) -> None:
    """Do all that a lane would do with these records, whatever becomes of each. Errors: those of the forwarder."""
    events: list[Event] = []
    for piece in pieces:
        with contextlib.suppress(Exception):  # it does not decode, which is another matter
            decoded = [event for event in piece.decode() if not event.set_aside]
            events += decoded if item_of_link(piece.segment) else choose(decoded)
    forwarder, delivery = make(), Delivery(events)
    while not delivery.settled and not delivery.hopeless:
        delivery.attempt(forwarder.send)


def survives(work: Callable[[], object], cancelled: Callable[[], bool], *, limit_s: float = TRIAL_S) -> bool:
    """Whether a child of this process lives through ``work``, whatever exception that ends in.

    One that is not over after ``limit_s``, or when ``cancelled``, is killed and counts as alive. The child has none of
    this process's descriptors but the standard ones (a lock of ours must not outlive us in it), and dies with
    the thread that called. Errors: OSError when there can be no child now.
    """
    parent = os.getpid()
    child = os.fork()
    if not child:
        _be_the_child(work, parent)
    deadline = time.monotonic() + limit_s
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        if cancelled() or time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(_ASK_S)


def _be_the_child(work: Callable[[], object], parent: int) -> NoReturn:
    try:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            for descriptor in map(int, os.listdir("/proc/self/fd")):
                if descriptor > _STDERR:
                    with contextlib.suppress(OSError):  # the one that listed them
                        os.close(descriptor)
            with contextlib.suppress(Exception):  # what the parent will see again, and deal with
                work()
        os._exit(0)
    finally:
        os._exit(1)
