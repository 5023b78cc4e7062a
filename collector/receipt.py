"""What became of one request's events: what a door's answer is made of."""

from typing import Self

import msgspec

from formats.event import FormatError


class Receipt(msgspec.Struct, frozen=True):
    """The outcome of a request's events, each of which is accepted, filtered or failed.

    ``accepted`` events are in the spool, or held for it: the answer waits for that. ``filtered`` ones were dropped
    on the operator's wish, and their sender is told that they were accepted. ``failed`` counts the others;
    ``failures`` holds the first of them, in order: ``at`` is the event's position in the body, from 0. When there are
    as many failures as ``failed`` says, all other positions up to ``offered`` are events that were taken.
    """

    accepted: int
    filtered: int
    failed: int
    failures: list[FormatError]

    def then(self, later: Self, kept: int) -> Self:
        """The outcome of these events and of the request's next ones, with the first ``kept`` failures."""
        failures = self.failures
        if later.failures and len(failures) < kept:
            shifted = [FormatError(each.reason, self.offered + each.at) for each in later.failures]
            failures = (failures + shifted)[:kept]
        return type(self)(
            self.accepted + later.accepted, self.filtered + later.filtered, self.failed + later.failed, failures
        )

    @property
    def taken(self) -> int:
        """How many events the sender need not send again."""
        return self.accepted + self.filtered

    @property
    def offered(self) -> int:
        """How many events the request had."""
        return self.accepted + self.filtered + self.failed


NOTHING = Receipt(0, 0, 0, [])
