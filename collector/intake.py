"""The one way in: events → rules, stamp, encode → one spool record → commit.

Every door hands its events to `Intake.accept`. What the rules leave of them becomes one record, so a
request is stored whole or not at all. The record is then either *held*, when the server asked to commit
for all requests of an event-loop tick at once (``environ["collector.held"]``), or committed here and now.
Nothing is counted as accepted, and no reply says 202, before its commit has returned.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from collector.gate import Gate
from collector.metrics import Counters
from collector.privacy import coarse
from collector.receipt import NOTHING, Receipt
from collector.rules import Rules
from collector.settings import DurabilitySettings
from formats.envelope import EnvelopeWriter, encode_envelope
from formats.event import Decoded, Event
from formats.pixel import Sender
from spool.condition import SYNC_STALL_S
from spool.group_commit import DiskStalled, GroupCommit
from spool.record import EVENTS_MAX, PAYLOAD_MAX_BYTES
from spool.watermark import Refusal
from spool.writer import SpoolUnavailable, SpoolWriter

log = logging.getLogger(__name__)

MAINTAIN_S = 0.1
READY_STALL_S = 4.0
DISK_STALLED = "the spool's disk does not answer"
TOO_MUCH = (
    f"more than {EVENTS_MAX} events, or more than {PAYLOAD_MAX_BYTES} bytes of them, are too much for one request"
)


class Held(msgspec.Struct, gc=False):
    """One request's record, on its way to the spool."""

    path: str
    source: str
    payload: bytes
    received_ns: int
    accepted: int
    filtered: int
    rejected: int
    durability: str


class Unavailable(Exception):
    """Nothing of the request is promised: 503."""


class TooMuch(ValueError):
    """One request's events do not fit into one record: 413."""


class Intake:
    """Takes events from the doors and puts them into the spool.

    Owner:   one process. Under the collector's own worker `commit` and `maintain` are called one at a time;
             under any other server request threads commit together (spool/group_commit.py), and a daemon
             thread, started by the first of them, does `maintain`.
    Stalls:  a disk call that hangs makes `refusal` say so after 5 s, `unready` a second earlier. Who asks must not
             be the one that hangs: the own worker has a stand-in (stand_in.py), gunicorn's threads are several, but
             a worker of one thread (``sync``) answers nobody while its disk hangs.
    Errors:  Unavailable when the spool cannot take the request now; TooMuch when it never could.
    """

    def __init__(
        self,
        writer: SpoolWriter,
        gate: Gate,
        rules: Rules,
        durability: DurabilitySettings,
        counters: Counters,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.writer = writer
        self._gate = gate
        self._rules = rules
        self._durability = {
            "get_v1": durability.pixel,
            "get_v2": durability.pixel,
            "scribe": durability.scribe,
            "udp": durability.udp,
        }
        self._post_durability = durability.post
        self._interval_s = durability.interval_ms / 1000
        self._counters = counters
        self._monotonic = monotonic
        self._unsynced_since: float | None = None
        self._at_disk_since: float | None = None  # when the call of the writer began that has not returned
        self._stalled = False
        self._group = GroupCommit(self.commit)
        self._starting = threading.Lock()
        self._maintainer: threading.Thread | None = None
        self._closed = threading.Event()

    def refusal(self) -> str | None:
        """Why nothing is taken at the moment, or None. Costs a cached look at the disk."""
        if self._at_disk_since is None and self.writer.state == "ok" and self._gate.refusal() is None:
            return None  # as nearly always, with one call
        found = self._refusal()
        return found.sentence if found else None

    def refuse(self) -> str | None:
        """As `refusal`, for a request that is answered with it: counts it by its kind."""
        found = self._refusal()
        if found is None:
            return None
        self._counters.count_refused(found.kind)
        return found.sentence

    def unready(self) -> str | None:
        """Why no more events should be sent here: `refusal`, or soon to be."""
        if self._waits_longer_than(READY_STALL_S):
            return DISK_STALLED
        return self.refusal()

    def _waits_longer_than(self, limit_s: float) -> bool:
        since = self._at_disk_since
        return since is not None and self._monotonic() - since > limit_s

    def _refusal(self) -> Refusal | None:
        if self._at_disk_since is not None and self._waits_longer_than(SYNC_STALL_S):
            return Refusal("unhealthy", DISK_STALLED)
        found = self._gate.refusal()
        if self.writer.state == "ok" or (found and found.kind == "collection_off"):
            return found
        if self.writer.state == "unhealthy":
            return Refusal("unhealthy", "the spool cannot be written")
        return Refusal("disk_full", "the spool's disk is full")

    def accept(
        self, source: str, decoded: Decoded, sender: Sender, *, path: str = "", held: list[Held] | None = None
    ) -> Receipt:
        """Store the events of a request, or arrange that they are stored before the reply goes.

        Returns what became of each of them; those that could not be read are counted as failed. When it returns and
        no event was accepted, nothing is stored. ``path`` is the door's, for counting.
        """
        events, coarse_ms, receipt = self._rules.judge(decoded, sender)
        payload = encode_envelope(source, coarse(sender.received_ms, coarse_ms), events) if events else b""
        return self._store(source, payload, receipt, path, held)

    def accept_parts(
        self, source: str, parts: Iterable[Decoded], sender: Sender, *, path: str = "", held: list[Held] | None = None
    ) -> Receipt:
        """As `accept`, for a body that may be large.

        The parts are read one at a time, and only the bytes of those before are kept: nothing is stored before the last
        one has come, and nothing at all when it does not.
        """
        envelope = EnvelopeWriter(source)
        receipt, coarsest_ms, kept = NOTHING, 0, 0
        for part in parts:
            events, coarse_ms, outcome = self._rules.judge(part, sender)
            kept = kept or part.kept
            receipt = receipt.then(outcome, kept) if receipt.offered else outcome
            coarsest_ms = max(coarsest_ms, coarse_ms)
            envelope.add(events)
            if envelope.size > PAYLOAD_MAX_BYTES or envelope.count > EVENTS_MAX:
                raise TooMuch(TOO_MUCH)
        payload = envelope.finish(coarse(sender.received_ms, coarsest_ms)) if envelope.count else b""
        return self._store(source, payload, receipt, path, held)

    def _store(self, source: str, payload: bytes, receipt: Receipt, path: str, held: list[Held] | None) -> Receipt:
        filtered, rejected = receipt.filtered, receipt.failed
        if not payload:
            self._counters.count_events(source, 0, filtered, rejected)
            return receipt
        record = self._held(path, source, payload, receipt.accepted, time.time_ns(), filtered, rejected)
        if held is not None:
            held.append(record)
            return receipt
        self._ensure_maintainer()
        try:
            reason = self._group.put(record)
        except DiskStalled as exc:
            self._counters.count_commit_failure(1)
            raise Unavailable(str(exc)) from exc
        if reason is not None:
            raise Unavailable(reason)
        return receipt

    def record(self, path: str, source: str, events: list[Event], received_ms: int, received_ns: int) -> Held:
        """What is to be held of the few events of a request that no rule has to see. Errors: TooMuch."""
        return self._held(path, source, encode_envelope(source, received_ms, events), len(events), received_ns)

    def _held(
        self, path: str, source: str, payload: bytes, count: int, received_ns: int, filtered: int = 0, rejected: int = 0
    ) -> Held:
        if len(payload) > PAYLOAD_MAX_BYTES or count > EVENTS_MAX:
            raise TooMuch(TOO_MUCH)
        durability = self._durability.get(source, self._post_durability)
        return Held(path, source, payload, received_ns, count, filtered, rejected, durability)

    @property
    def is_plain(self) -> bool:
        """Whether no rule looks at events: all that could be read are stored as they are."""
        return self._rules.idle

    @property
    def takes_all(self) -> bool:
        """Whether `accept` refuses no event that could be read."""
        return self._rules.never_refuse

    def may_refuse(self, name: str) -> bool:
        """Whether `accept` can refuse an event of this name although it could be read."""
        return self._rules.may_refuse(name)

    def reject(self, source: str, rejected: int) -> None:
        """Count the events of a request that could not be read at all."""
        self._counters.count_events(source, 0, 0, rejected)

    def count_body(self, size: int) -> None:
        """Count a request body, as it came."""
        self._counters.add("body_bytes_total", size)

    def waits_for_disk(self, records: Sequence[Held]) -> bool:
        """Whether `commit` of these will sync, and may so take as long as the disk likes."""
        for record in records:
            if record.durability == "commit":
                return True
        return self._interval_is_over() or self.writer.will_sync(sum(len(record.payload) for record in records))

    def _interval_is_over(self) -> bool:
        """Whether what was answered is so old that it must not get older: `maintain` is late.

        Half a round before its time, since threads that wait for the interpreter may be late by some 20 ms too.
        """
        since = self._unsynced_since
        return since is not None and self._monotonic() - since >= self._interval_s - MAINTAIN_S / 2

    def commit(self, records: Sequence[Held]) -> str | None:
        """Append the records of one tick, or of one group of threads, and make them as durable as their doors promise.

        Returns None when all of them are in the spool, or the reason why none of them is.
        """
        durabilities = {record.durability for record in records}
        sync = "commit" in durabilities or self._interval_is_over()
        self._at_disk_since = self._monotonic()
        append, size = self.writer.append, 0
        try:
            for record in records:
                payload = record.payload
                append(payload, record.accepted, record.received_ns)
                size += len(payload)
            started = time.perf_counter()
            self.writer.commit(sync=sync)
        except SpoolUnavailable as exc:
            self._counters.count_commit_failure(len(records), full=self.writer.state == "disk_full")
            return exc.reason
        finally:
            self._at_disk_since = None
        counters = self._counters
        counters.observe_commit(time.perf_counter() - started)
        counters.count_commit(len(records), size)
        accepted = dict.fromkeys([record.source for record in records], 0)
        for record in records:
            accepted[record.source] += record.accepted
            if record.filtered or record.rejected:
                counters.count_events(record.source, 0, record.filtered, record.rejected)
        for source, count in accepted.items():
            counters.count_events(source, count, 0, 0)
        if sync:
            self._unsynced_since = None
        elif self._unsynced_since is None and "interval" in durabilities:
            self._unsynced_since = self._monotonic()
        return None

    def maintain(self) -> None:
        """What is due by time: the interval's fdatasync, sealing by age, probing a full disk. Every MAINTAIN_S."""
        self._at_disk_since = self._monotonic()
        try:
            since = self._unsynced_since
            if since is not None and self._at_disk_since - since + MAINTAIN_S > self._interval_s:
                self._unsynced_since = None
                self.writer.sync()
            self.writer.maintain()
        finally:
            self._at_disk_since = None

    def publish(self) -> None:
        """Show what the state is, without asking the disk. Every MAINTAIN_S, also while the disk hangs."""
        stalled = self._waits_longer_than(SYNC_STALL_S)
        self._counters.publish_writer("unhealthy" if stalled else self.writer.state, self.writer.open_bytes)
        if stalled != self._stalled:
            self._stalled = stalled
            if stalled:
                log.error("the spool's disk does not answer", extra={"seconds": SYNC_STALL_S})
        self._gate.refusal()  # also without requests its changes are logged and shown
        self._counters.set("collection_off", int(self._gate.is_off))

    def close(self) -> None:
        """Seal the open segment. Where the disk hangs it is left to recovery."""
        self._closed.set()
        with self._group.exclusive(SYNC_STALL_S) as is_free:
            if is_free:
                self.writer.close()
                self._counters.publish_writer(self.writer.state, self.writer.open_bytes)

    def _ensure_maintainer(self) -> None:
        """Start the thread at the first request, after a fork (no thread survives one), and when it died of a bug."""
        if self._maintainer is None or not self._maintainer.is_alive():
            with self._starting:
                if self._maintainer is None or not self._maintainer.is_alive():
                    self._maintainer = threading.Thread(
                        target=self._maintain_until_closed, name="spool-maintainer", daemon=True
                    )
                    self._maintainer.start()

    def _maintain_until_closed(self) -> None:
        while not self._closed.wait(MAINTAIN_S):
            with self._group.exclusive(MAINTAIN_S) as is_free:
                if is_free:
                    self.maintain()
            self.publish()
