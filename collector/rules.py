"""What becomes of the events of a request before they are stored: filters, then privacy."""

from collections.abc import Sequence
from typing import NamedTuple

from collector.filters import Filters
from collector.privacy import Privacy
from collector.receipt import Receipt
from formats.event import FAILURES_KEPT, Decoded, Event, FormatError
from formats.pixel import Sender


class Judged(NamedTuple):
    """The events to be stored, when their record may say that they arrived, and what became of all of them."""

    events: list[Event]
    received_ms: int
    receipt: Receipt


class Rules:
    """The operator's rules for events, the same at every door. Owner: one process."""

    def __init__(self, filters: Filters, privacy: Privacy) -> None:
        self._filters = filters
        self._privacy = privacy

    def judge(self, decoded: Decoded, sender: Sender) -> Judged:
        """Those of a request's events that may be stored, as they may be stored."""
        offered = decoded.events
        events, received_ms = self._filters.keep(offered, sender), sender.received_ms
        broken: list[tuple[Event, str]] = []
        if not self._privacy.idle and events:
            events, received_ms = self._privacy.apply(events, sender, lambda *failure: broken.append(failure))
        filtered = len(offered) - len(events) - len(broken)
        failures = _in_order(decoded, broken) if broken else decoded.failures
        return Judged(events, received_ms, Receipt(len(events), filtered, decoded.failed + len(broken), failures))


def _in_order(decoded: Decoded, broken: Sequence[tuple[Event, str]]) -> list[FormatError]:
    """The first FAILURES_KEPT of all failures, by position in the body.

    Each event of ``decoded`` stands behind the ones before it and the failures among them. Of more than FAILURES_KEPT
    failures the decoder has not told where the later ones are; but then those are not among the first ones either.
    """
    reasons = {id(event): reason for event, reason in broken}
    unread = iter(decoded.failures)
    failures: list[FormatError] = []
    position = 0
    failure = next(unread, None)
    for event in decoded.events:
        while failure is not None and failure.at <= position:
            failures.append(failure)
            position += 1
            failure = next(unread, None)
        if len(failures) >= FAILURES_KEPT:
            break
        reason = reasons.get(id(event))
        if reason is not None:
            failures.append(FormatError(reason, position))
        position += 1
    failures += [each for each in (failure, *unread) if each is not None]
    return failures[:FAILURES_KEPT]
