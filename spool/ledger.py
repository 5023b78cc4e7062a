"""What became of every event, per segment and forwarder: append-only files ``_ledger/FORWARDER.rows``.

A file is rows of 80 bytes (`spool.outcome`). A segment has at most two that count: the one written when it was put
into the forwarder's queue, and the one written before it leaves it. The last row of a kind and segment counts, so
that what is done again after a crash replaces what it did before, and adds nothing.

    handed to the queue:  link, HANDED row, unlink from ``_spool``
    finished:             DONE row, fdatasync, unlink from the queue

So every segment that was handed out is in its queue or has a DONE row; one that has neither was taken away by
somebody else. A HANDED row is synced by the DONE row of any segment after it.

An item of the quarantine likewise has two (`spool.account` says what they count for):

    refused:             item, KEPT row, fdatasync, cursor
    replayed, dropped:   REPLAY_ENDED or LEFT row, fdatasync, unlink

So every item is there, or has the row of its end; and one without a row KEPT is in no account: its batch is not
acknowledged, and comes again.

Bounded: when a file has grown to 65,536 rows, all but the newest 16,384 ends are folded into totals, and the file is
replaced (whole, by rename). By then a crash cannot bring those segments back.

Appending takes the file's lock (flock); a row that a crash cut short is cut off by the next one who appends, a
damaged row is passed over. Readers need no lock. While the disk takes no rows they are kept in memory, and appended
with the next ones: the ledger never stops the way out. A process that dies meanwhile takes them along.
"""

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from spool import drafts
from spool.account import Account
from spool.directory import FILE_MODE, SpoolDirectory, SpoolError, fsync_directory
from spool.outcome import ROW_BYTES, Held, Outcome, Row, RowKind

log = logging.getLogger(__name__)

SUFFIX: Final = ".rows"
FOLD_ROWS: Final = 65_536
KEEP_ROWS: Final = 16_384

_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_ROWS: Final = 8192


class Ledger:
    """The ledger of a spool.

    Owner:   one thread; any number of threads and processes may have their own at the same time.
    Durable: `add` returned: its rows survive a power cut, unless the disk does not take them. `handed`: see above.
    Errors:  none from the disk: rows wait in memory, with one line in the log. ``waiting`` is how many do, ``failure``
             what went wrong last: that, or that the file could not be folded.
    """

    def __init__(self, directory: SpoolDirectory, *, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self._directory = directory
        self._wall_ns = wall_ns
        self._waiting: dict[str, list[bytes]] = {}
        self._descriptors: dict[str, int] = {}
        self._fold_at: dict[str, int] = {}
        self.failure: OSError | SpoolError | None = None

    @property
    def waiting(self) -> int:
        """Rows that are not on the disk."""
        return sum(map(len, self._waiting.values()))

    def handed(self, forwarder: str, segments: Iterable[tuple[bytes, int]], *, replay: bool = False) -> None:
        """Segments, by uuid and number of events, were put into the queue of ``forwarder``."""
        kind = RowKind.REPLAYED if replay else RowKind.HANDED
        now = self._wall_ns() // 1_000_000
        self._append(forwarder, [Row(kind, uuid, events, written_ms=now) for uuid, events in segments], sync=False)

    def add(self, segment_uuid: bytes, forwarder: str, events: int, outcome: Outcome) -> None:
        """A segment of ``events`` is about to leave the queue of ``forwarder``: what became of them."""
        self.add_all(forwarder, [(segment_uuid, events, outcome)])

    def add_all(self, forwarder: str, ends: Iterable[tuple[bytes, int, Outcome]]) -> None:
        """`add` for several segments at once."""
        self.enter(forwarder, [Row(RowKind.DONE, *end) for end in ends])

    def kept(self, forwarder: str, items: Iterable[Held]) -> None:
        """Items are in the quarantine of ``forwarder``, and in its account."""
        self.enter(forwarder, map(Row.kept, items))

    def left(self, forwarder: str, item_uuid: bytes, events: int) -> None:
        """An item is about to leave the quarantine of ``forwarder``, and not by a replay of its own."""
        self.enter(forwarder, [Row(RowKind.LEFT, item_uuid, events, Outcome(dropped=events))])

    def replay_ended(self, forwarder: str, owner: str, item_uuid: bytes, events: int, outcome: Outcome) -> None:
        """A replay of an item of ``owner`` is about to leave the queue of ``forwarder``: what became of its events."""
        if forwarder == owner:
            self.enter(owner, [Row(RowKind.REPLAY_ENDED, item_uuid, events, outcome)])
        else:
            self.replayed(forwarder, item_uuid, events, outcome)
            self.left(owner, item_uuid, events)

    def replayed(self, forwarder: str, uuid: bytes, events: int, outcome: Outcome) -> None:
        """So many events came to ``forwarder`` besides, and this became of them. Both at once, and the end first: what
        came and has no end is missing."""
        self.enter(forwarder, [Row(RowKind.DONE, uuid, events, outcome), Row(RowKind.REPLAYED, uuid, events)])

    def enter(self, forwarder: str, rows: Iterable[Row]) -> None:
        """Rows as they are, but for the time, and for damage of which nobody knows how much it was."""
        now = self._wall_ns() // 1_000_000
        dated = [row._replace(outcome=row.outcome.of(row.events), written_ms=now) for row in rows]
        if dated:
            self._append(forwarder, dated, sync=True)

    def retry(self) -> None:
        """Append the rows that wait in memory, where the disk takes them now."""
        for forwarder in [name for name, rows in self._waiting.items() if rows]:
            self._append(forwarder, [], sync=True)

    def close(self) -> None:
        """Close the files; calling it again does nothing."""
        self.retry()
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _append(self, forwarder: str, rows: Sequence[Row], *, sync: bool) -> None:
        waiting = self._waiting.setdefault(forwarder, [])
        waiting += [row.encode() for row in rows]
        if not waiting:
            return
        try:
            with self._locked(forwarder) as descriptor:
                count = _write(descriptor, b"".join(waiting), sync=sync)
                waiting.clear()
                if count > self._fold_at.get(forwarder, FOLD_ROWS):
                    self._fold(forwarder)
            self.failure = None
        except (OSError, SpoolError) as exc:
            if self.failure is None:
                log.error(
                    "the ledger cannot be written; forwarding goes on, its rows wait in memory",
                    extra={"forwarder": forwarder, "rows": len(waiting), "error": str(exc)},
                )
            self.failure = exc

    @contextlib.contextmanager
    def _locked(self, forwarder: str) -> Iterator[int]:
        """The file of a forwarder, locked, and no other than the one that has its name now."""
        path = ledger_path(self._directory, forwarder)
        while True:
            descriptor = self._descriptors.get(forwarder)
            if descriptor is None:
                descriptor = self._descriptors[forwarder] = _open(path)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.lstat(path), os.fstat(descriptor)):
                    break
            os.close(self._descriptors.pop(forwarder))  # somebody folded it
        try:
            yield descriptor
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    def _fold(self, forwarder: str) -> None:
        path = ledger_path(self._directory, forwarder)
        rows = read_account(self._directory, forwarder).fold(KEEP_ROWS, self._wall_ns() // 1_000_000)
        drafts.replace(self._directory, path, b"".join(row.encode() for row in rows))
        self._fold_at[forwarder] = max(FOLD_ROWS, 2 * len(rows))


def ledger_path(directory: SpoolDirectory, forwarder: str) -> Path:
    """The file of one forwarder."""
    return directory.ledger / (forwarder + SUFFIX)


def forwarders_in(directory: SpoolDirectory) -> list[str]:
    """Whose rows there are, sorted. Errors: OSError."""
    return sorted(name.removesuffix(SUFFIX) for name in os.listdir(directory.ledger) if name.endswith(SUFFIX))


def read_account(directory: SpoolDirectory, forwarder: str) -> Account:
    """What a forwarder's file says now; nothing where there is none. Errors: OSError."""
    account = Account()
    try:
        descriptor = os.open(ledger_path(directory, forwarder), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return account
    with open(descriptor, "rb") as file:
        while data := file.read(_READ_ROWS * ROW_BYTES):
            whole = memoryview(data)[: len(data) // ROW_BYTES * ROW_BYTES]
            for at in range(0, len(whole), ROW_BYTES):
                row = Row.decode(whole[at : at + ROW_BYTES])
                if row is None:
                    account.damaged_rows += 1
                else:
                    account.take(row)
    return account


def _open(path: Path) -> int:
    new = not path.exists()
    descriptor = os.open(path, _FLAGS, FILE_MODE)
    if new:
        try:
            fsync_directory(path.parent)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def _write(descriptor: int, data: bytes, *, sync: bool) -> int:
    """Append whole rows, or none; returns how many the file has then."""
    size = os.fstat(descriptor).st_size
    if size % ROW_BYTES:
        size -= size % ROW_BYTES
        os.ftruncate(descriptor, size)
    try:
        if os.write(descriptor, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if sync:
            os.fdatasync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise
    return (size + len(data)) // ROW_BYTES
