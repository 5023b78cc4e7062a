"""The names that the events of one body have, for the formats that name them alike: a text, or none."""

from typing import cast

from msgspec import UNSET, UnsetType

from formats.event import NAME_MAX_BYTES, FormatError, check_name


class EventNames:
    """Turns what events have as their name into what they are called; ``default``: how, when they have none."""

    def __init__(self, default: str | None) -> None:
        self._default = default
        self._known: dict[str, str] = {}  # one str for all events that have it

    def of(self, name: str | UnsetType) -> str:
        """The name of one event. Errors: FormatError."""
        if isinstance(name, UnsetType):
            if self._default is None:
                raise FormatError("there is no eventName")
            return self._default
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = check_name(name)
        return known

    def of_all(self, names: list[str | UnsetType]) -> list[str]:
        """The names of many events, at once. Errors: FormatError."""
        different = set(names)
        if UNSET not in different and _are_names(cast("set[str]", different)):
            return cast("list[str]", names)
        usable = {name: self.of(name) for name in different}
        return list(map(usable.__getitem__, names))


def _are_names(names: set[str]) -> bool:
    """Whether all may name events, where that is quickly seen; of others `check_name` says what is wrong, if it is."""
    text, lengths = "".join(names), [*map(len, names)]
    return text.isascii() and text.isprintable() and 0 not in lengths and max(lengths, default=0) <= NAME_MAX_BYTES
