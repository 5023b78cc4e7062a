"""What is known of a body's events: which were good, and where all of them stood."""

from hypothesis import given
from hypothesis import strategies as st

from formats.event import FAILURES_KEPT, Decoded, Event, Granularity, PayloadKind, whole

Marks = list[bool]


def event(at: int) -> Event:
    return Event(str(at), 0, Granularity.HOURLY, PayloadKind.JSON, b"{}")


def decoded(good: Marks, first: int = 0) -> Decoded:
    """A body whose events stand where ``good`` says; each is named after its position."""
    body = Decoded()
    for at, is_good in enumerate(good):
        if is_good:
            body.events.append(event(first + at))
        else:
            body.fail("bad")
    return body


def positions(body: Decoded) -> list[int]:
    return [at for _, at in zip(body.events, body.positions(), strict=False)]


@given(st.lists(st.booleans(), max_size=60), st.lists(st.booleans(), max_size=60), st.data())
def test_every_event_keeps_its_place(first: Marks, second: Marks, data: st.DataObject) -> None:
    body = decoded(first)
    body = whole([body, decoded(second, len(first))])
    good = first + second

    assert positions(body) == [at for at, is_good in enumerate(good) if is_good]

    dropped = data.draw(st.sets(st.integers(0, len(body.events) - 1))) if body.events else set()
    gone = [int(body.events[index].name) for index in dropped]
    body.refuse(dict.fromkeys(dropped, "unwanted"))

    left = [at for at, is_good in enumerate(good) if is_good and at not in gone]
    assert [int(each.name) for each in body.events] == positions(body) == left
    bad = [at for at in range(len(good)) if at not in left]
    assert [(each.at, each.reason == "unwanted") for each in body.failures] == [
        (at, at in gone) for at in bad[:FAILURES_KEPT]
    ]
    assert body.failed == len(bad)
