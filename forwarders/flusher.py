"""The way out of the spool: one process that hands sealed segments to every forwarder's queue and works the queues.

    every 0.15 s   hand sealed segments out, as hard links, to the queue of every configured forwarder
    every 5 s      make whole, or remove, what dead processes left; measure the backlog; look after the ballast
    all the time   one thread per enabled forwarder (lane.py); one that died is started again

There is one flusher per spool: it holds LOCK (flock), and a second one ends with exit code 75. Disabled forwarders
get their segments too, and keep them. A forwarder that is taken out of the settings keeps its queue until
``collector spool forget``; it gets nothing new.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Final

from forwarders.flush_settings import Configured, Counters, FlushSettings
from forwarders.lane import Lane
from forwarders.lane_thread import LaneThread
from forwarders.orders import Gone
from forwarders.relief import Relief
from forwarders.skipping import Choice, Skipped
from forwarders.status import Gauges, StatusFile
from spool.ballast import Ballast
from spool.directory import SEALED_SUFFIX, SpoolDirectory, SpoolError
from spool.flusher_lock import Locked, flusher_lock
from spool.ledger import Ledger
from spool.oddities import Oddities
from spool.queue import Queue, distribute, start_queue
from spool.recovery import salvage_orphans, sweep_tmp
from spool.retention import Retention, is_from_retention

__all__ = ["EXIT_LOCKED", "Configured", "Counters", "FlushSettings", "Flusher", "Locked"]

log = logging.getLogger(__name__)

EXIT_LOCKED: Final = 75
DISTRIBUTE_S: Final = 0.15
SALVAGE_S: Final = 5.0
STOP_S: Final = 4.5
_MEASURE_SHARE: Final = 50  # measuring a long backlog may take a fiftieth of the time


class Flusher:
    """The flusher of one spool.

    Owner:   one thread; `run` or `flush_once`, once.
    Threads: one per enabled forwarder, all daemons: one that hangs in a send does not keep the process.
    ``hangs``: a forwarder's thread was left behind, and with it whatever its destination's library has running.
    """

    def __init__(
        self,
        directory: SpoolDirectory,
        forwarders: Sequence[Configured],
        *,
        counters: Counters,
        retention: Retention | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._retention = retention
        self._relief = Relief(directory, forwarders, self._give_up, monotonic=monotonic)
        self._directory = directory
        self._working: list[Configured] = []  # those that have a queue
        self._waiting = list(forwarders)  # for one that cannot be made now
        self._counters = counters
        self._counters_lock = threading.Lock()
        self._monotonic = monotonic
        self._wall_ns = wall_ns
        self._oddities = Oddities()
        self._ballast = Ballast(directory)
        self._ledger = Ledger(directory, wall_ns=wall_ns)
        self._partly: dict[str, set[str]] = {}
        self.hangs = False
        self._runs = False
        self._alone = threading.Lock()
        self._threads: dict[str, LaneThread] = {}
        self._idle_queues: dict[str, Queue] = {}
        self._salvage_at = self._measure_at = monotonic()
        self._complaints: set[str] = set()

    def run(self, stop: threading.Event, *, beside: contextlib.AbstractContextManager[object] | None = None) -> int:
        """Work until ``stop`` is set; the exit code, 75 when another flusher works here.

        ``beside`` is entered for as long as LOCK is held. It is over at most about 5 s after ``stop``, also when a
        destination hangs: what was being sent is sent again.
        """
        self._runs = True
        try:
            with self.locked(), beside or contextlib.nullcontext():
                self._begin()
                log.info("flusher started", extra={"forwarders": len(self._working)})
                while True:
                    self._look_after_threads()  # first of all: handing out a long backlog takes seconds
                    self._tick()
                    if stop.wait(DISTRIBUTE_S):
                        break
                self._end()
                return 0
        except Locked as exc:
            log.error("another flusher works on this spool", extra={"lock": str(exc)})
            return EXIT_LOCKED

    def flush_once(self, only: str | None = None) -> bool:
        """Send what lies in the spool now, one attempt for each batch; whether all of it was delivered.

        ``only``: by this forwarder alone. Segments that a living process is writing stay with it. Errors: Locked.
        """
        with self.locked():
            self._begin()
            self._tick()
            working = [each for each in self._working if each.flush.enabled and only in (None, each.name)]
            lanes = [self._lane(each, self._status(each)) for each in working]
            threads = [threading.Thread(target=each.drain, name=f"forward-{each.name}", daemon=True) for each in lanes]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for lane in lanes:
                if lane.death is not None:
                    log.error("forwarder thread died", extra={"forwarder": lane.name}, exc_info=lane.death)
            return not self._waiting and all(lane.delivered_all and lane.death is None for lane in lanes)

    # For people, from other threads

    def hurry(self, name: str) -> bool:
        """Have a forwarder send what waits now; False when none of that name is at work."""
        thread = self._threads.get(name)
        if thread is None or thread.lane is None:
            return False
        thread.lane.hurry()
        return True

    def skip(self, name: str, choice: Choice, *, timeout_s: float) -> Skipped:
        """Take segments out of a forwarder's queue unsent. LOCK is held, by `run` or by the caller.

        Errors: OSError, SpoolError, Gone; TimeoutError: a send is under way that takes longer.
        """
        thread = self._threads.get(name)
        if thread is not None:
            lane = thread.lane
            if lane is None:
                raise Gone("the forwarder's thread is being started again; try once more")
            future = lane.skip(choice)
            try:
                return future.result(timeout_s)
            finally:
                future.cancel()
        configured = next(each for each in (*self._working, *self._waiting) if each.name == name)
        if self._runs and configured.flush.enabled:
            raise Gone("the flusher is starting; try once more")
        with self._lane_of_nobody(configured) as lane:
            return lane.drop(choice)

    def _give_up(self, configured: Configured, segments: Sequence[str]) -> Future[None]:
        """Have an optional forwarder give up segments. Errors: OSError, SpoolError."""
        thread = self._threads.get(configured.name)
        if thread is not None and thread.lane is not None:
            return thread.lane.relieve(segments)
        done: Future[None] = Future()
        if thread is None and not (self._runs and configured.flush.enabled):
            with self._lane_of_nobody(configured) as lane:
                lane.give_up(segments)
        done.set_result(None)
        return done

    @contextlib.contextmanager
    def _lane_of_nobody(self, configured: Configured) -> Iterator[Lane]:
        """A lane for a queue that no thread works on."""
        with self._alone:
            lane = self._lane(configured, self._status_file(configured))
            try:
                yield lane
            finally:
                lane.close()

    # Start and end

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold LOCK. Errors: Locked, with its path."""
        with flusher_lock(self._directory):
            yield

    def _begin(self) -> None:
        """Clean up after the dead, and make the queues of new forwarders."""
        self._salvage()
        with self._tolerating("queues"):
            self._start_queues()

    def _start_queues(self) -> None:
        """Take in the forwarders whose queue is there or can be made; the others wait for the next time."""
        known = set(self._directory.queues())
        late = [each for each in self._waiting if each.flush.start == "now" and each.name not in known]
        for each in [each for each in self._waiting if each not in late]:
            self._start_queue(each)
        if late:
            self._distribute()  # what is sealed by now is for those that are there by now
        for each in late:
            self._start_queue(each)

    def _start_queue(self, configured: Configured) -> None:
        with self._tolerating(f"queue of {configured.name}"):
            start_queue(self._directory, configured.name, start=configured.flush.start, ledger=self._ledger)
            self._waiting.remove(configured)
            self._working.append(configured)

    def _end(self) -> None:
        """Stop the threads; give up on those that hang."""
        for thread in self._threads.values():
            thread.stop()
        deadline = time.monotonic() + STOP_S
        for thread in self._threads.values():
            if not thread.end(max(0.0, deadline - time.monotonic())):
                self.hangs = True
        log.info("flusher stopped")

    # What it does again and again

    def _look_after_threads(self) -> None:
        for each in self._working:
            if each.flush.enabled:
                with self._tolerating(f"queue of {each.name}"):
                    if each.name not in self._threads:
                        self._threads[each.name] = LaneThread(each, self._status(each), self._lane, self._monotonic)
                    self._threads[each.name].look_after()

    def _tick(self) -> None:
        if self._distribute():
            for thread in self._threads.values():
                thread.notify()
        if self._retention is not None:
            with self._tolerating("retention"):
                self._retention.step()
            if self._retention.exhausted and self._relief.optional:
                with self._tolerating("room"):
                    self._relief.make_room()
        now = self._monotonic()
        if now >= self._salvage_at:
            self._salvage_at = now + SALVAGE_S
            self._salvage()
            with self._tolerating("queues"):
                self._start_queues()
            with self._tolerating("ballast"):
                self._ballast.refill()
            self._ledger.retry()
        if now >= self._measure_at:
            with self._tolerating("measure"):
                self._measure()
            self._measure_at = self._monotonic() + max(SALVAGE_S, _MEASURE_SHARE * (self._monotonic() - now))

    def _distribute(self) -> int:
        handed_out = 0
        with self._tolerating("distribute"):
            names = [each.name for each in self._working]
            handed_out = distribute(
                self._directory,
                names,
                ballast=self._ballast,
                oddities=self._oddities,
                released=lambda size: self._count("released_bytes_total", size),
                partly=self._partly,
                ledger=self._ledger,
                optional=self._relief.optional,
                retain=self._retention is not None and self._retention.keeps,
            )
            self._count("segments_distributed_total", handed_out)
        return handed_out

    def _salvage(self) -> None:
        with self._tolerating("sweep"):
            sweep_tmp(self._directory, oddities=self._oddities)
        with self._tolerating("salvage"):
            for each in salvage_orphans(self._directory, ballast=self._ballast, oddities=self._oddities):
                self._count("segments_salvaged_total", int(each.segment is not None))
                self._count("quarantined_ranges_total", each.damaged_ranges)

    def _measure(self) -> None:
        """Add up the bytes of all segments that a required forwarder, also a former one, still has to do; look after
        the queues that nobody works on."""
        seen: dict[int, int] = {}
        required = (name for name in self._directory.queues() if name not in self._relief.optional)
        for path in (self._directory.sealed, *(self._directory.queue_root / name for name in required)):
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.endswith(SEALED_SUFFIX) and not is_from_retention(self._directory, entry.name):
                        with contextlib.suppress(FileNotFoundError):  # it was finished a moment ago
                            seen[entry.inode()] = entry.stat(follow_symlinks=False).st_size
        with self._counters_lock:
            self._counters.set("backlog_measured_bytes", sum(seen.values()))
        for each in self._working:
            if not each.flush.enabled:
                queue = self._idle_queues.get(each.name) or Queue(self._directory, each.name)
                self._idle_queues[each.name] = queue
                queue.refresh()
                Gauges(queue, each.counters).show(None, (), None)
        self._relief.keep_limits()

    # For the lanes

    def _status(self, configured: Configured) -> StatusFile:
        status = self._status_file(configured)
        status.put("ok")
        return status

    def _status_file(self, configured: Configured) -> StatusFile:
        queue = self._directory.queue(configured.name)
        return StatusFile(queue, keyring=self._directory.keyring, wall_ns=self._wall_ns)

    def _lane(self, configured: Configured, status: StatusFile) -> Lane:
        return Lane(
            self._directory,
            configured,
            status=status,
            ballast=self._ballast,
            released=lambda size: self._count("released_bytes_total", size),
            range_quarantined=lambda: self._count("quarantined_ranges_total", 1),
            optional=self._relief.optional,
            monotonic=self._monotonic,
            wall_ns=self._wall_ns,
        )

    def _count(self, name: str, n: int) -> None:
        if n:
            with self._counters_lock:  # the lanes count here too
                self._counters.add(name, n)

    @contextlib.contextmanager
    def _tolerating(self, what: str) -> Iterator[None]:
        """Log an error of the disk once, and go on: the next round tries again."""
        try:
            yield
        except (OSError, SpoolError) as exc:
            complaint = f"{what}: {exc}"
            if complaint not in self._complaints:
                self._complaints.add(complaint)
                log.error("the spool cannot be worked on", extra={"step": what, "error": str(exc)})
        else:
            self._complaints = {each for each in self._complaints if not each.startswith(f"{what}:")}
