"""What becomes of the events of a request before they are stored: filters, then schemas, then privacy."""

from collector.filters import Filters
from collector.privacy import Privacy
from collector.receipt import Receipt
from collector.schemas import Schemas
from formats.event import Decoded, Event
from formats.pixel import Sender

#: The events to be stored, how coarse the time must be at which they are said to have arrived (ms; 0: as it is), and
#: what became of all of them.
Judged = tuple[list[Event], int, Receipt]


class Rules:
    """The operator's rules for events, the same at every door. Owner: one process.

    ``never_refuse``: no event can fail here. ``idle``: nor is any filtered or changed.
    """

    def __init__(self, filters: Filters, schemas: Schemas, privacy: Privacy) -> None:
        self._filters = filters
        self._schemas = schemas
        self._privacy = privacy
        self.never_refuse = schemas.idle and privacy.idle
        self.idle = self.never_refuse and filters.idle

    def may_refuse(self, name: str) -> bool:
        """Whether an event of this name can fail here although it could be read."""
        return self._schemas.may_refuse(name)

    def judge(self, decoded: Decoded, sender: Sender) -> Judged:
        """Those of the events of a request, or of a part of it, that may be stored, as they may be stored."""
        offered = decoded.events
        events, coarsest_ms = self._filters.keep(offered, sender), 0
        if self.never_refuse or not events:
            filtered = len(offered) - len(events)
            return events, 0, Receipt(len(events), filtered, decoded.failed, decoded.failures)
        broken: list[tuple[Event, str]] = []
        if not self._schemas.idle:
            events = self._schemas.judge(events, lambda *failure: broken.append(failure))
        if events and not self._privacy.idle:
            events, coarsest_ms = self._privacy.apply(events, sender, lambda *failure: broken.append(failure))
        filtered = len(offered) - len(events) - len(broken)
        if broken:
            reasons = {id(event): reason for event, reason in broken}
            decoded.refuse({i: reasons[id(event)] for i, event in enumerate(offered) if id(event) in reasons})
        return events, coarsest_ms, Receipt(len(events), filtered, decoded.failed, decoded.failures)
