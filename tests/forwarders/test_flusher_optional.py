"""Optional forwarders: how far they may lag, and that nobody's events are refused for their sake."""

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from formats.event import Event
from forwarders.contract import Unavailable
from forwarders.flush_settings import Configured, FlushSettings, Wanted
from forwarders.flusher import Flusher
from spool.directory import SpoolDirectory
from spool.ledger import read_account
from spool.retention import Retention
from spool.watermark import Watermark
from tests.forwarders.spooled import Bench, Destination, Figures, event, put
from tests.services.child import wait_until


def unavailable(_batch: Sequence[Event]) -> None:
    raise Unavailable("it is down", retry_after_s=3000)


def optional(**limits: float) -> FlushSettings:
    return FlushSettings(batch_max_age_s=0.0, required=False, **limits)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9, 1.0])
def test_a_sample_is_that_share_of_events_and_the_same_at_every_repeat(tmp_path: Path, share: float) -> None:
    bench = Bench(tmp_path, FlushSettings(batch_max_age_s=0.0, sample=share))
    wanted = bench.put([event(n) for n in range(4000)])
    bench.work()
    first = list(bench.destination.ids)

    assert abs(len(first) / len(wanted) - share) < 0.03
    assert bench.figures["sent_events_total"] + bench.figures["skipped_events_total"] == 4000
    events = [Event("e", 0, None, None, b"", id=each) for each in wanted]  # type: ignore[arg-type]
    assert [each.id for each in Wanted(FlushSettings(sample=share)).choose(events)] == first


def test_beyond_its_bytes_an_optional_forwarder_gives_up_the_oldest_segments(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.destination.answer = unavailable
    wanted = [bench.put([event(n, padding=1000)]) for n in range(6)]
    size = bench.segments()[0].stat().st_size
    bench.lane.close()
    bench.flush_with(batch_max_age_s=0.0, required=False, max_lag_bytes=2 * size)
    bench.work()

    assert len(bench.segments()) == 2
    assert bench.figures["skipped_events_total"] == 4
    bench.destination.answer = lambda _batch: None
    bench.work_for(4000)
    assert bench.destination.ids == wanted[4] + wanted[5]
    rows = read_account(bench.directory, "fake").done.values()
    assert sum(row.outcome.skipped for row in rows) == 4


def test_what_waited_too_long_is_given_up_and_a_clock_that_jumps_makes_nothing_old(tmp_path: Path) -> None:
    bench = Bench(tmp_path, optional(max_lag_s=100))
    bench.destination.answer = unavailable
    bench.put([event(1)])
    bench.work()
    bench.clock.now += 60
    bench.put([event(2)])
    bench.work()
    bench.clock.now += 50
    bench.work()
    assert (len(bench.segments()), bench.figures["skipped_events_total"]) == (1, 1)

    (left,) = bench.segments()
    left.rename(left.with_name("20160101" + left.name[8:]))  # made by a clock that was ten years behind
    bench.clock.now += 90
    bench.work()
    assert len(bench.segments()) == 1


@pytest.fixture
def directory(tmp_path: Path) -> SpoolDirectory:
    return SpoolDirectory.open(tmp_path / "spool")


def lagging(name: str, flush: FlushSettings) -> tuple[Configured, Figures]:
    destination = Destination(name)
    destination.answer = unavailable
    figures = Figures()
    return Configured(name, lambda: destination, flush, figures), figures


def working(name: str, flush: FlushSettings) -> Configured:
    return Configured(name, lambda: Destination(name), flush, Figures())


@pytest.mark.parametrize("order", [("must", "may"), ("may", "must")])
def test_the_backlog_is_what_required_forwarders_wait_for(directory: SpoolDirectory, order: tuple[str, str]) -> None:
    put(directory, [event(1)])
    size = next(directory.sealed.iterdir()).stat().st_size
    flushes = {"must": FlushSettings(batch_max_age_s=0.0), "may": optional(max_lag_bytes=10**9)}
    slow, common = order[1], Figures()
    forwarders = [working(order[0], flushes[order[0]]), lagging(slow, flushes[slow])[0]]
    Flusher(directory, forwarders, counters=common).flush_once()

    assert [path.name for path in directory.queue_root.glob("*/*.seg")] != []
    assert common["released_bytes_total"] == (size if slow == "may" else 0)
    Flusher(directory, forwarders, counters=common).flush_once()
    assert common["backlog_measured_bytes"] == (0 if slow == "may" else size)


def test_with_optional_forwarders_only_the_backlog_ends_with_handing_out(directory: SpoolDirectory) -> None:
    put(directory, [event(1)])
    size = next(directory.sealed.iterdir()).stat().st_size
    common = Figures()
    Flusher(directory, [lagging("may", optional(max_lag_bytes=10**9))[0]], counters=common).flush_once()

    assert (common["released_bytes_total"], common["backlog_measured_bytes"]) == (size, 0)


def test_a_disabled_optional_forwarder_keeps_its_limits_too(directory: SpoolDirectory) -> None:
    flush = FlushSettings(enabled=False, required=False, max_lag_bytes=1)
    configured, figures = lagging("may", flush)
    put(directory, [event(1)])
    Flusher(directory, [configured], counters=Figures()).flush_once()

    assert list(directory.queue("may").glob("*.seg")) == []
    assert figures["skipped_events_total"] == 1


def test_when_the_disk_is_low_only_what_nobody_required_waits_for_is_given_up(directory: SpoolDirectory) -> None:
    """Before the doors refuse; the segments that a required forwarder still has to send stay in both queues."""
    marks = Watermark(directory.path, min_free_bytes=10**18, max_spool_bytes=1, backlog_bytes=lambda: 0)
    retention = Retention(directory, marks, max_age_s=0, max_bytes=0)
    put(directory, [event(1)])
    must = working("must", FlushSettings(batch_max_age_s=0.0))
    may, figures = lagging("may", optional(max_lag_bytes=10**9))
    Flusher(directory, [must, may], counters=Figures()).flush_once()  # "must" has it
    put(directory, [event(2)])
    must, _ = lagging("must", FlushSettings(batch_max_age_s=0.0))
    flusher = Flusher(directory, [must, may], counters=Figures(), retention=retention)
    stop = threading.Event()
    thread = threading.Thread(target=flusher.run, args=(stop,))
    thread.start()
    try:
        wait_until(lambda: figures["skipped_events_total"] == 1, 10, "the oldest is given up")
        wait_until(lambda: len(list(directory.queue("must").glob("*.seg"))) == 1, 10, "the other is handed out")
    finally:
        stop.set()
        thread.join(10)

    assert len(list(directory.queue("may").glob("*.seg"))) == 1
    assert figures["skipped_events_total"] == 1
