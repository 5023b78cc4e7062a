"""A process that dies between any two calls that change the disk, for tests of what must then still hold.

The process is the thread that does the action: threads of others in the same real process live on.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TypeVar
from unittest import mock

_CHANGES = (
    "open", "write", "pwrite", "ftruncate", "posix_fallocate", "fdatasync", "fsync",
    "link", "rename", "replace", "unlink", "mkdir",
)  # fmt: skip
_T = TypeVar("_T")


class Killed(BaseException):
    """The process is dead; whatever it still tries to change stays as it is."""


def dying_everywhere(prepare: Callable[[], _T], action: Callable[[_T], object]) -> Iterator[_T]:
    """Do ``action`` on a freshly prepared thing, dying before its first change, its second, …; yield each remains.

    The last one yielded has not died at all.
    """
    for steps in count():
        thing = prepare()
        with _dying_after(steps) as died:
            try:
                action(thing)
            except Killed:
                assert died()
        yield thing
        if not died():
            return


@contextmanager
def _dying_after(steps: int) -> Iterator[Callable[[], bool]]:
    left = steps
    dead = False
    dying = threading.get_ident()

    def wrap(change: Callable[..., object]) -> Callable[..., object]:
        def changing(*args: object, **kwargs: object) -> object:
            nonlocal left, dead
            if threading.get_ident() != dying:
                return change(*args, **kwargs)
            if left == 0:
                dead = True
                raise Killed
            left -= 1
            return change(*args, **kwargs)

        return changing

    with mock.patch.multiple(os, **{name: wrap(getattr(os, name)) for name in _CHANGES}):
        yield lambda: dead
