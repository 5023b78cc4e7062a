"""Whether the doors are open: what a person switched, then room on the disk and what waits there.

Every request asks, so both are looked at ten times a second at most, and nothing else is touched: a refusal costs no
more than that.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

from collector.metrics import Backlog
from collector.settings import SpoolSettings
from spool.directory import SpoolDirectory
from spool.switch import Switch, SwitchedOff
from spool.watermark import CACHE_S, Refusal, Watermark

log = logging.getLogger(__name__)

OFF: Final = "collection is switched off"


class Gate:
    """What keeps events out of the spool before they are read. Owner: one process, one thread."""

    def __init__(
        self, switch: Switch, watermark: Watermark, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._switch = switch
        self._watermark = watermark
        self._monotonic = monotonic
        self._off: Refusal | None = None
        self._found: Refusal | None = None
        self._looked_at = float("-inf")

    def refusal(self) -> Refusal | None:
        """Why no event can be taken now; None when it can."""
        now = self._monotonic()
        if now - self._looked_at >= CACHE_S:
            self._looked_at = now
            self._look()
            self._found = self._off or self._watermark.refusal()
        return self._found

    @property
    def is_off(self) -> bool:
        """Whether collection was switched off, as last looked at."""
        return self._off is not None

    def _look(self) -> None:
        try:
            off = self._switch.read()
        except OSError:
            return  # as it was: the watermark says what is wrong with the disk
        refusal = Refusal("collection_off", off_sentence(off)) if off else None
        if refusal != self._off:
            if off and self._off:
                log.warning("collection stays switched off, for another reason", extra={"reason": off.reason})
            elif off:
                log.warning("collection is switched off", extra={"reason": off.reason})
            else:
                log.info("collection is switched on")
        self._off = refusal


def off_sentence(off: SwitchedOff) -> str:
    """What a client and a person are told while collection is off."""
    return f"{OFF}: {off.reason}" if off.reason else OFF


def watermark(directory: SpoolDirectory, settings: SpoolSettings) -> Watermark:
    """The marks of a spool, as its settings want them."""
    return Watermark(
        directory.path,
        min_free_bytes=settings.min_free_bytes,
        max_spool_bytes=settings.max_spool_bytes,
        backlog_bytes=Backlog(directory.metrics),
    )
