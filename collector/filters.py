"""Which events are dropped at the door, by the operator's regular expressions."""

import re
from collections.abc import Sequence

from collector.settings import FilterSettings
from formats.event import Event
from formats.pixel import Sender, header_text, split_referer


class Filters:
    """The lists of ``[filters]``. A match anywhere in the text drops the event; a missing text never matches.

    ``event_name_only`` turns the list of names around: only events whose name matches are kept.
    Source: Ning collector, collector.filters.*.
    """

    def __init__(self, settings: FilterSettings) -> None:
        self._host = _compiled(settings.referer_host)
        self._path = _compiled(settings.referer_path)
        self._ip = _compiled(settings.ip)
        self._agent = _compiled(settings.user_agent)
        self._names = _compiled(settings.event_name)
        self._name_only = settings.event_name_only
        self._by_sender = any((self._host, self._path, self._ip, self._agent))
        self.idle = not self._by_sender and not self._names

    def keep(self, events: list[Event], sender: Sender) -> list[Event]:
        """The events that pass."""
        if self._by_sender and self._drops(sender):
            return []
        if not self._names:
            return events
        return [event for event in events if _matches(self._names, event.name) is self._name_only]

    def _drops(self, sender: Sender) -> bool:
        host, path = split_referer(sender.referer)
        return (
            _matches(self._host, host)
            or _matches(self._path, path)
            or _matches(self._ip, sender.client_ip)
            or _matches(self._agent, header_text(sender.user_agent))
        )


def _compiled(patterns: Sequence[str]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern) for pattern in patterns)


def _matches(patterns: tuple[re.Pattern[str], ...], text: str) -> bool:
    return bool(text) and any(pattern.search(text) for pattern in patterns)
