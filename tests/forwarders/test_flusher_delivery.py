"""Finding the events that no send survives, among others that are fine."""

import random
from collections.abc import Callable, Sequence

import pytest
from contract_suite import make_events

from formats.event import Event
from forwarders.contract import Refused, Unavailable
from forwarders.delivery import SAMPLES, TRIES_BEFORE_HALVING, Delivery


class Sink:
    """Fails on any batch that holds one of ``poison``, as a forwarder with a bug does."""

    def __init__(self, events: Sequence[Event], poison: Sequence[int]) -> None:
        self._poison = {events[n].id for n in poison}
        self.taken: list[str] = []
        self.sends = 0

    def __call__(self, batch: Sequence[Event]) -> None:
        self.sends += 1
        assert len(batch) > 0
        if any(event.id in self._poison for event in batch):
            raise KeyError("a bug")
        self.taken += [event.id for event in batch]


def finish(delivery: Delivery, send: Callable[[Sequence[Event]], None]) -> None:
    while not delivery.settled and not delivery.hopeless:
        delivery.attempt(send)


def choose(low: int, high: int) -> int:
    return random.Random(low * 10_000 + high).randrange(low, high)


def test_a_good_batch_is_one_send_of_the_very_batch() -> None:
    events = make_events(100)
    sent: list[Sequence[Event]] = []
    delivery = Delivery(events)
    delivery.attempt(sent.append)

    assert sent == [events]
    assert sent[0] is events
    assert delivery.settled
    assert (delivery.delivered, delivery.refused, delivery.failed) == (100, {}, {})


def test_no_event_is_no_send() -> None:
    assert Delivery([]).settled
    assert not Delivery([]).hopeless


def test_what_is_unavailable_changes_nothing() -> None:
    delivery = Delivery(events := make_events(10))

    def down(_: Sequence[Event]) -> None:
        raise Unavailable("down")

    for _ in range(50):
        with pytest.raises(Unavailable):
            delivery.attempt(down)
    sink = Sink(events, [])
    finish(delivery, sink)

    assert sink.sends == 1
    assert delivery.delivered == 10


def test_the_whole_batch_is_tried_three_times_before_it_is_halved() -> None:
    """A bug in handling a broken connection is no fault of an event."""
    events = make_events(10)
    delivery = Delivery(events)
    failures = iter([ValueError("first"), ValueError("second")])

    def recovers(_: Sequence[Event]) -> None:
        if exc := next(failures, None):
            raise exc

    first, second, third = (delivery.attempt(recovers) for _ in range(TRIES_BEFORE_HALVING))

    assert [str(first), str(second), third] == ["first", "second", None]
    assert delivery.settled
    assert not delivery.halved
    assert delivery.delivered == 10


@pytest.mark.parametrize("poison", [[0], [4999], [2500], [7, 8], [0, 2499, 2500, 4999], list(range(100, 120))])
def test_exactly_the_poisonous_events_are_left_over(poison: list[int]) -> None:
    events = make_events(5000)
    delivery = Delivery(events, choose=choose)
    sink = Sink(events, poison)
    finish(delivery, sink)

    assert sorted(delivery.failed) == poison
    assert all(reason == "KeyError: 'a bug'" for reason in delivery.failed.values())
    assert not delivery.hopeless
    assert sorted(sink.taken) == sorted(e.id for n, e in enumerate(events) if n not in poison)
    assert delivery.delivered == 5000 - len(poison)


def test_one_poisonous_event_among_5000_takes_two_sends_for_each_halving() -> None:
    events = make_events(5000)
    sink = Sink(events, [1234])
    finish(Delivery(events), sink)

    assert sink.sends <= TRIES_BEFORE_HALVING + 2 * 13


@pytest.mark.parametrize("count", [1, 2, 31, 64, 1000, 5000])
def test_a_forwarder_that_fails_on_everything_is_found_out_in_some_dozen_sends(count: int) -> None:
    events = make_events(count)
    sink = Sink(events, range(count))
    delivery = Delivery(events, choose=choose)
    finish(delivery, sink)

    assert delivery.hopeless
    assert sink.sends <= TRIES_BEFORE_HALVING + 4 * SAMPLES


def test_a_run_of_bad_events_at_the_beginning_does_not_condemn_the_forwarder() -> None:
    """One client's request of 400 events that all set off the bug."""
    events = make_events(5000)
    delivery = Delivery(events, choose=choose)
    finish(delivery, Sink(events, range(400)))

    assert not delivery.hopeless
    assert sorted(delivery.failed) == list(range(400))


def test_bad_events_all_over_the_batch_do_not_condemn_the_forwarder() -> None:
    """Each part holds one, so nothing passes until single events are tried."""
    poison = list(range(0, 3000, 20))
    events = make_events(3000)
    delivery = Delivery(events, choose=choose)
    finish(delivery, Sink(events, poison))

    assert not delivery.hopeless
    assert sorted(delivery.failed) == poison
    assert delivery.delivered == 2850


def test_refused_events_are_noted_by_their_place_in_the_batch() -> None:
    delivery = Delivery(make_events(10))

    def refuses(_: Sequence[Event]) -> None:
        raise Refused([9, 2], "too long")

    assert delivery.attempt(refuses) is None
    assert delivery.settled
    assert delivery.refused == {2: "too long", 9: "too long"}
    assert delivery.delivered == 8


def test_refusals_inside_a_halved_batch_keep_their_places() -> None:
    events = make_events(100)
    delivery = Delivery(events)

    def send(batch: Sequence[Event]) -> None:
        if any(event.id == events[10].id for event in batch):
            raise KeyError("a bug")
        bad = [n for n, event in enumerate(batch) if event.id in (events[3].id, events[80].id)]
        if bad:
            raise Refused(bad, "refused")

    finish(delivery, send)

    assert sorted(delivery.refused) == [3, 80]
    assert sorted(delivery.failed) == [10]
    assert delivery.delivered == 97


@pytest.mark.parametrize("positions", [[], [10], [-1, 3]])
def test_a_refusal_of_events_that_are_not_in_the_batch_is_a_bug(positions: list[int]) -> None:
    delivery = Delivery(make_events(10))

    def refuses(_: Sequence[Event]) -> None:
        raise Refused(positions, "nonsense")

    assert isinstance(delivery.attempt(refuses), ValueError)
    assert not delivery.settled
    assert delivery.refused == {}
    assert delivery.delivered == 0
