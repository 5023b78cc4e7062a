"""One commit for the records of many threads: a leader commits for all that came while the disk was busy.

    thread     put: joins the batch that gathers. The first of a batch is its leader.
    leader     waits for the disk to be free, closes the batch, commits it (one write, one fdatasync), wakes the rest
    the rest   wait for their batch; its result is theirs

While a leader waits for the disk the next batch gathers, so a batch holds whatever came during one sync: the slower
the disk, the larger the batches. Nobody waits for company: alone, a thread commits at once. Joining a batch takes a
lock of its own that is never held over a disk call. Whoever else uses the writer (`maintain`, `close`) takes
`exclusive` first.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

from spool.condition import SYNC_STALL_S

_T = TypeVar("_T")
_UNSETTLED: Final = "the commit failed"


class DiskStalled(TimeoutError):
    """The disk has not answered for too long; whether the record is stored will be known later, or never."""

    def __init__(self) -> None:
        """Say so in words for a client."""
        super().__init__("the spool's disk does not answer")


class _Batch(Generic[_T]):
    """Records that are committed together. ``reason`` counts once ``settled`` is set; None: they are stored."""

    def __init__(self) -> None:
        self.records: list[_T] = []
        self.reason: str | None = _UNSETTLED
        self.stalled = False  # the disk was not free in time: nothing of it was tried
        self.settled = threading.Event()


class GroupCommit(Generic[_T]):
    """Commits what several threads put, one commit at a time.

    ``commit`` takes the records of a batch, in the order in which they were put; it returns None when all of them
    are stored, or the reason why none of them is. It is called by one thread at a time.
    """

    def __init__(self, commit: Callable[[Sequence[_T]], str | None], *, stall_s: float = SYNC_STALL_S) -> None:
        """Gather the first batch. A thread gives up after ``stall_s`` seconds."""
        self._commit = commit
        self._stall_s = stall_s
        self._batch: _Batch[_T] = _Batch()
        self._gathering = threading.Lock()  # guards _batch
        self._disk = threading.Lock()

    def put(self, record: _T) -> str | None:
        """Store a record together with those of other threads; None, or the reason why nothing of the batch is stored.

        Errors: DiskStalled; the record may still become stored. Whatever ``commit`` raises goes to its leader, and
        the others hear that the commit failed.
        """
        with self._gathering:
            batch = self._batch
            batch.records.append(record)
            leads = len(batch.records) == 1
        if leads:
            self._lead(batch)
        if not batch.settled.wait(self._stall_s) or batch.stalled:
            raise DiskStalled
        return batch.reason

    @contextmanager
    def exclusive(self, patience_s: float = -1) -> Iterator[bool]:
        """Keep commits out, once a running one is done. False: it was not within ``patience_s`` (-1: for ever)."""
        taken = self._disk.acquire(timeout=patience_s)
        try:
            yield taken
        finally:
            if taken:
                self._disk.release()

    def _lead(self, batch: _Batch[_T]) -> None:
        try:
            with self.exclusive(self._stall_s) as is_free:
                with self._gathering:  # from here on others gather the next one
                    self._batch = _Batch()
                if is_free:
                    batch.reason = self._commit(batch.records)
                else:
                    batch.stalled = True
        finally:
            batch.settled.set()
