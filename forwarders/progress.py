"""What the disk knows of one forwarder's progress: the cursor's marks, and the links of finished segments.

    attempt ──► "sending", one more start ──► survived (not available, a bug): "sending", no starts
                                         └──► done: "acked", then finished segments go: ledger, then unlink

Marks are written before and after each attempt without a sync: they are there to outlive the process, not the power.
A sync is due at the end of a segment, every second, after a batch of which something was refused, and before one whose
repeat must be identical. A cursor that cannot be written does not stop the way out: what is done is remembered here,
finished segments still go (an unlink says by itself that all of it is done), and the price is a repeat after a crash.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from forwarders.queue_reader import QueueReader
from spool.cursor import Cursor, Range, State
from spool.directory import uuid_of_name
from spool.item import LINK_SEPARATOR, item_of_link
from spool.ledger import Ledger
from spool.outcome import NOTHING, Held, Outcome
from spool.seal import read_seal

log = logging.getLogger(__name__)

SYNC_S: Final = 1.0
End = tuple[bytes, int, Outcome]  # segment uuid, events, what became of them
_LOCK_WAIT_S: Final = 0.5


class Progress:
    """The cursor of one forwarder, its rows in the ledger, and its unlinks.

    Owner:  the forwarder's thread; only `abandon` is for another one.
    ``deaths``: how many processes began with the batch that comes first now, and were not heard of again.
    Errors: none but what the log says.
    """

    def __init__(
        self,
        cursor: Cursor,
        reader: QueueReader,
        ledger: Ledger,
        *,
        forwarder: str,
        released: Callable[[int], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cursor = cursor
        self._reader = reader
        self._ledger = ledger
        self._forwarder = forwarder
        self._released = released
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._trying: Sequence[Range] | None = None
        self._recorded: Sequence[Range] | None = None
        self._unsaved: Sequence[Range] | None = None
        self._sync_next = False
        self._unsynced_links = False
        self._entered: set[str] = set()
        self._synced_at = monotonic()
        self._failing = False
        self.deaths = cursor.last.starts if cursor.last and cursor.last.state == "sending" else 0

    def attempt(self, ranges: Sequence[Range], *, identical: bool) -> None:
        """The batch is about to be tried. ``identical``: it must be known after a power cut which one it was."""
        with self._lock:
            if self._trying is not None:
                return
            self._trying = ranges
            sync = identical and self._recorded is not ranges
            if sync and self._unsynced_links:
                self._sync()
            if self._write("sending", ranges, self.deaths + 1, sync=sync):
                self._recorded = ranges

    def survived(self) -> None:
        """The attempt ended, without success: nobody died of it."""
        with self._lock:
            if self._trying is not None:
                self._write("sending", self._trying, 0)
                self._trying = None
            self.deaths = 0

    def done(self, ranges: Sequence[Range], kept: Sequence[Held] = ()) -> None:
        """The batch is with the destination, or in quarantine, in the items ``kept``. Call `QueueReader.advance`
        before."""
        with self._lock:
            if kept:  # before the cursor: what it says is in quarantine has to be in the account
                self._ledger.kept(self._forwarder, kept)
                self._sync_next = True  # an item can leave, and then it has to be known that it was refused
            self._trying = self._recorded = None
            self.deaths = 0
            self._unsaved = ranges
        self.tidy()

    def tidy(self) -> None:
        """Do what is due: a mark that could not be written, unlinks, syncs. Costs nothing when nothing is."""
        with self._lock:
            if self._unsaved is not None and self._write("acked", self._unsaved, 0, sync=self._sync_next):
                self._unsaved = None
                self._sync_next = False
            if self._reader.finishing:
                self._sync_cursor()
                self._enter()
                self._unlink()
            if self._monotonic() - self._synced_at >= SYNC_S:
                self._sync()

    def abandon(self) -> None:
        """The process ends on purpose while an attempt hangs: that is no death. From any thread."""
        if self._lock.acquire(timeout=_LOCK_WAIT_S):
            try:
                if self._trying is not None:
                    self._write("sending", self._trying, self.deaths)
            finally:
                self._lock.release()

    def close(self) -> None:
        """Sync what is written, and close the cursor."""
        self.tidy()
        with self._lock:
            self._sync()
            self._cursor.close()
            self._ledger.close()

    def _enter(self) -> None:
        """Say in the ledger what became of the segments that are about to be unlinked."""
        ends: list[End] = []
        for segment in self._reader.finishing - self._entered:
            end = self._end(segment)
            item = item_of_link(segment)
            if end and item:
                self._ledger.replay_ended(self._forwarder, item[0], *end)
            elif end:
                if LINK_SEPARATOR in segment:  # whoever queued the replay may have died before saying so
                    self._ledger.handed(self._forwarder, [end[:2]], replay=True)
                ends.append(end)
        self._ledger.add_all(self._forwarder, ends)
        self._entered = set(self._reader.finishing)

    def _end(self, segment: str) -> End | None:
        """What to say of one segment; None when that is for somebody else."""
        tally = self._reader.tallies.get(segment, NOTHING)
        try:
            uuid, sealed = read_seal(self._reader.queue.path / segment)
        except FileNotFoundError:  # whoever took it away has to say what became of it
            dropped = self._reader.items.get(segment)
            if dropped is None:
                return None
            uuid, sealed = dropped
        except OSError:
            uuid, sealed = uuid_of_name(segment), None
        return None if uuid is None else (uuid, tally.total if sealed is None else sealed, tally)

    def _unlink(self) -> None:
        for segment in sorted(self._reader.finishing):
            try:
                self._released(self._reader.queue.finish(segment))
            except OSError as exc:
                self._complain(exc)
                return
            self._reader.finishing.discard(segment)
            self._reader.tallies.pop(segment, None)
            self._reader.items.pop(segment, None)
            self._entered.discard(segment)
            self._unsynced_links = True

    def _write(self, state: State, ranges: Sequence[Range], starts: int, *, sync: bool = False) -> bool:
        try:
            self._cursor.write(state, ranges, starts=starts, sync=sync)
        except OSError as exc:
            self._complain(exc)
            return False
        self._failing = False
        return True

    def _sync_cursor(self) -> None:
        try:
            self._cursor.sync()
        except OSError as exc:
            self._complain(exc)

    def _sync(self) -> None:
        self._synced_at = self._monotonic()
        self._sync_cursor()
        self._ledger.retry()
        if self._unsynced_links:
            try:
                self._reader.queue.sync()
                self._unsynced_links = False
            except OSError as exc:
                self._complain(exc)

    def _complain(self, exc: OSError) -> None:
        if not self._failing:
            self._failing = True
            log.error(
                "progress cannot be written down; forwarding goes on, a crash would repeat it",
                extra={"forwarder": self._forwarder, "error": str(exc)},
            )
