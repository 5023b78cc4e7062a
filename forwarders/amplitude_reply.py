"""What Amplitude's answers say about the events of a request. Pure.

200   ``code``: 200, ``events_ingested``: how many of the request. Whether repeats are among them nothing says
400   ``events_with_invalid_fields`` {field: [index, …]}, ``events_with_missing_fields``,
      ``events_with_invalid_id_lengths`` likewise, ``silenced_events`` [index, …]: these are never taken, and none of
      the others was. ``missing_field``, or "Invalid API key": the request is wrong, no event is
429   ``throttled_events`` [index, …] of the ``throttled_users`` and ``throttled_devices`` {id: events a second};
      ``exceeded_daily_quota_users`` and ``_devices`` {id: events}; none of the others was taken either
"""

import re
from typing import Any, Final

import msgspec

REASON_MAX_CHARS: Final = 300

_INDEXED: Final = {
    "events_with_invalid_fields": "{} is not valid",
    "events_with_missing_fields": "{} is missing",
    "events_with_invalid_id_lengths": "{} is too short",
}
_ABOUT_THE_KEY: Final = re.compile(r"api[ _]?key", re.IGNORECASE)


class Answer:
    """A reply's body. What is not as documented counts as absent."""

    def __init__(self, text: str) -> None:
        try:
            self._body = msgspec.json.decode(text, type=dict[str, Any])
        except msgspec.DecodeError:
            self._body = {"error": text}  # proxies answer with HTML or plain text
        self.error = " ".join(str(self._body.get("error") or "").split())[:REASON_MAX_CHARS]

    @property
    def code(self) -> int | None:
        """The status that Amplitude says itself; None: somebody else speaks."""
        code = self._body.get("code")
        return code if type(code) is int else None

    def ingested(self, count: int) -> int:
        """How many of the ``count`` events of the request were taken, where it is one that was."""
        ingested = self._body.get("events_ingested")
        return ingested if type(ingested) is int else count

    @property
    def is_about_events(self) -> bool:
        """It is Amplitude that speaks, and neither of the key nor of what is missing beside the events."""
        about_the_request = self._body.get("missing_field") or _ABOUT_THE_KEY.search(self.error)
        return "code" in self._body and not about_the_request

    def invalid(self, count: int) -> dict[int, str]:
        """Which of the ``count`` events of the request are never taken, by index, and why."""
        found: dict[int, str] = {}
        for key, sentence in _INDEXED.items():
            for field, indexes in self._table(key).items():
                found.update((index, sentence.format(field)) for index in _indexes(indexes, count))
        silenced = _indexes(self._body.get("silenced_events"), count)
        found.update((index, "its device is silenced") for index in silenced)
        return found

    @property
    def throttled(self) -> set[str]:
        """Ids of users and devices that have to wait."""
        return {*self._table("throttled_users"), *self._table("throttled_devices")} - self.exhausted

    @property
    def exhausted(self) -> set[str]:
        """Ids of users and devices that have had their events of this day."""
        return {*self._table("exceeded_daily_quota_users"), *self._table("exceeded_daily_quota_devices")}

    def throttled_events(self, count: int) -> list[int]:
        """Indexes of events that have to wait, or have no part of this day left."""
        return _indexes(self._body.get("throttled_events"), count)

    def _table(self, key: str) -> dict[str, Any]:
        table = self._body.get(key)
        return table if isinstance(table, dict) else {}


def _indexes(value: object, count: int) -> list[int]:
    if not isinstance(value, list):
        return []
    return [each for each in value if type(each) is int and 0 <= each < count]
