"""What must hold for every forwarder: one suite, run against each destination.

A forwarder's test module says what its destination is and takes the tests over:

    @pytest.fixture
    def destination(tmp_path: Path) -> Iterator[Destination]:
        yield RabbitDestination(...)

    class TestRabbitmqContract(ForwarderContract):
        pass

The fixture gives an empty destination, or one in which ids of other runs do no harm: every call of `make_events`
uses a uuid of its own.
"""

import gc
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import Protocol

import msgpack
import pytest

from formats.event import Event, Granularity, PayloadKind
from forwarders.contract import Forwarder, Refused, Unavailable

TIME_MS = 1_795_342_500_000  # 2026-11-22T10:15:00Z


class Destination(Protocol):
    """A destination under test: what the suite cannot know by itself.

    ``ordered``: `delivered` lists the events in the order in which they were sent.
    ``shows_repeats``: a reader sees an event twice that was sent twice (it must tell them apart by the id).
    """

    ordered: bool
    shows_repeats: bool

    def forwarder(self) -> Forwarder:
        """A new forwarder to the destination, as a process that has just started would make it. The suite closes it."""

    def delivered(self) -> list[str]:
        """The ids of the events that a reader finds there now. Called while the destination is not broken."""

    def break_down(self) -> None:
        """Make the destination unable to take anything, also through connections that are open."""

    def restore(self) -> None:
        """Undo `break_down`; what was delivered before is still there."""

    def poison(self) -> Callable[[Event], Event] | None:
        """Turn an event into one with the same id that the destination refuses for good; None: it takes everything."""


def make_events(count: int, *, name: str = "contract", first: int = 0, origin: uuid.UUID | None = None) -> list[Event]:
    """``count`` events as the spool would give them: a hundred a record, with ids nobody else has."""
    origin = origin or uuid.uuid4()
    return [
        Event(
            name, TIME_MS + n, Granularity.HOURLY, PayloadKind.JSON, b'{"n":%d,"text":"a b"}' % n,
            "json", TIME_MS + 1000 + n, f"{origin.hex}-{64 + n // 100 * 4096:x}-{n % 100:x}",
        )
        for n in range(first, first + count)
    ]  # fmt: skip


def ids(events: list[Event]) -> list[str]:
    return [event.id for event in events]


class ForwarderContract:
    """Subclass it in a module that has a fixture ``destination``."""

    def test_send_returns_when_every_event_is_with_the_destination(self, destination: Destination) -> None:
        events = make_events(250)
        forwarder = destination.forwarder()
        forwarder.send(events)
        forwarder.close()

        assert_delivered(destination, events)

    def test_batches_follow_each_other_through_one_forwarder(self, destination: Destination) -> None:
        origin = uuid.uuid4()
        batches = [make_events(size, first=1000 * n, origin=origin) for n, size in enumerate((1, 7, 120, 1))]
        forwarder = destination.forwarder()
        for batch in batches:
            forwarder.send(batch)
        forwarder.close()

        assert_delivered(destination, [event for batch in batches for event in batch])

    def test_every_kind_of_payload_and_name_arrives(self, destination: Destination) -> None:
        events = odd_events()
        forwarder = destination.forwarder()
        forwarder.send(events)
        forwarder.close()

        assert sorted(set(destination.delivered())) == sorted(ids(events))

    def test_what_is_unavailable_loses_nothing_and_keeps_the_order(self, destination: Destination) -> None:
        first, second, third = (make_events(20, name=f"contract{n}") for n in range(3))
        forwarder = destination.forwarder()
        forwarder.send(first)
        destination.break_down()
        for _ in range(2):  # at first the connection breaks, then none can be made
            with pytest.raises(Unavailable) as caught:
                forwarder.send(second)
            assert caught.value.reason
            assert "\n" not in caught.value.reason
        destination.restore()
        send_until_taken(forwarder, second)
        forwarder.send(third)
        forwarder.close()

        assert_delivered(destination, first + second + third)

    def test_a_destination_that_is_down_from_the_start_is_unavailable(self, destination: Destination) -> None:
        """Making a forwarder needs no destination: the collector starts before its broker."""
        events = make_events(5)
        destination.break_down()
        forwarder = destination.forwarder()
        with pytest.raises(Unavailable):
            forwarder.send(events)
        destination.restore()
        send_until_taken(forwarder, events)
        forwarder.close()

        assert_delivered(destination, events)

    def test_refused_names_exactly_the_bad_events_and_the_rest_is_delivered(self, destination: Destination) -> None:
        poison = poison_of(destination)
        events = make_events(300)
        bad = [0, 7, 150, 151, 299]
        batch = [poison(event) if n in bad else event for n, event in enumerate(events)]
        forwarder = destination.forwarder()
        with pytest.raises(Refused) as caught:
            forwarder.send(batch)
        forwarder.close()

        assert caught.value.positions == bad
        assert caught.value.reason
        assert_delivered(destination, [event for n, event in enumerate(events) if n not in bad])

    def test_a_bad_event_alone_is_refused(self, destination: Destination) -> None:
        poison = poison_of(destination)
        forwarder = destination.forwarder()
        with pytest.raises(Refused) as caught:
            forwarder.send([poison(make_events(1)[0])])
        forwarder.send(after := make_events(3))
        forwarder.close()

        assert caught.value.positions == [0]
        assert_delivered(destination, after)

    def test_a_batch_that_is_sent_again_does_no_harm(self, destination: Destination) -> None:
        """By the same process, as after a lost answer, and by the next one, as after a kill."""
        events = make_events(250)
        forwarder = destination.forwarder()
        forwarder.send(events)
        forwarder.send(events)
        forwarder.close()
        restarted = destination.forwarder()
        restarted.send(events)
        restarted.close()

        found = destination.delivered()
        assert set(found) == set(ids(events))
        assert destination.shows_repeats or len(found) == len(events)

    def test_close_leaves_nothing_behind(self, destination: Destination) -> None:
        """No thread and no descriptor, whether it was used, never used, or is broken; twice is once."""
        destination.forwarder().close()  # what a library keeps for the process is there from now on
        used = destination.forwarder()
        used.send(make_events(3))
        used.close()
        gc.collect()  # what earlier tests have left open
        before = open_things()
        unused = destination.forwarder()
        unused.close()
        unused.close()
        used = destination.forwarder()
        used.send(make_events(3))
        used.close()
        broken = destination.forwarder()
        broken.send(make_events(3))
        destination.break_down()
        with pytest.raises(Unavailable):
            broken.send(make_events(3))
        broken.close()
        destination.restore()

        deadline = time.monotonic() + 5  # a proxy in this process ends its side of a connection when it hears of it
        while any(now > then for now, then in zip(open_things(), before, strict=True)) and time.monotonic() < deadline:
            time.sleep(0.01)
        threads, descriptors = open_things()
        assert threads <= before[0]
        assert descriptors <= before[1]


def assert_delivered(destination: Destination, events: list[Event]) -> None:
    """Exactly these events are there: once each where repeats are not seen, and in order where there is one."""
    found = destination.delivered()
    first_seen = list(dict.fromkeys(found))
    assert sorted(first_seen) == sorted(ids(events))
    assert destination.shows_repeats or len(found) == len(events)
    if destination.ordered:
        assert first_seen == ids(events)


def poison_of(destination: Destination) -> Callable[[Event], Event]:
    poison = destination.poison()
    if poison is None:
        pytest.skip("this destination takes every event")
    return poison


def send_until_taken(forwarder: Forwarder, events: list[Event]) -> None:
    """Send the batch again as the flusher would, to a destination that may need a moment to come back."""
    pause = threading.Event()
    for _ in range(100):
        try:
            forwarder.send(events)
        except Unavailable:
            pause.wait(0.1)
        else:
            return
    raise AssertionError("the destination was restored and did not take the batch within 10 s of attempts")


def open_things() -> tuple[int, int]:
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def odd_events() -> list[Event]:
    """Payloads and names at the edges of what the doors accept."""
    origin = uuid.uuid4().hex
    fields = [(1, "bool", True), (2, "byte", -128), (3, "i16", 300), (4, "i32", -5), (5, "i64", 2**63 - 1),
              (6, "double", 0.5), (900, "string", "ä\n\"\\\x7f")]  # fmt: skip
    payloads: list[tuple[PayloadKind, bytes | list[tuple[int, str, bool | int | float | str]]]] = [
        (PayloadKind.JSON, b"{}"),
        (PayloadKind.JSON, b'{"a":\r\n {"b": [1, 2.5e3, null, true, "\\u00e4 \xc3\xa4"]}, "": 1}'),
        (PayloadKind.JSON, b'{"big":123456789012345678901234567890,"same":1,"same":2}'),
        (PayloadKind.JSON, b'{"text":"' + b"x" * 100_000 + b'"}'),
        (PayloadKind.MSGPACK, msgpack.packb({"a": [1, -1, 2**64 - 1], "b": None, "c": b"\x00\xff", "d": 1.25})),
        (PayloadKind.MSGPACK, msgpack.packb({})),
        (PayloadKind.FIELDS, []),
        (PayloadKind.FIELDS, fields),
    ]
    names = ["plain", "../../etc/passwd", ".hidden", "a b,c=d#*.é", "名" * 85]
    shapes = [(kind, payload, "plain") for kind, payload in payloads]
    shapes += [(PayloadKind.JSON, b'{"n":1}', name) for name in names]
    return [
        Event(name, TIME_MS, Granularity(n % 6), kind, payload, "json", TIME_MS, f"{origin}-40-{n:x}")
        for n, (kind, payload, name) in enumerate(shapes)
    ]
