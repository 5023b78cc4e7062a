"""What comes first after processes died while they sent a batch.

    1, 2 deaths   the very same batch, as after any kill
    3 to 9        the same, but children of this process decode and send it first (trial.py), all of it and then in
                  halves: a record that a child dies of twice goes to quarantine undecoded
    10 and more   its records one by one: this process died of the trials as well (a memory limit that takes the
                  parent too). One that is alone and has come to ten deaths goes to quarantine

Deaths without progress only: a batch that gets through, or a send that fails in an orderly way, ends the count. So do
trials that clear all records, because then the deaths were somebody's kills.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final

from forwarders.batch import Batch, Piece
from forwarders.progress import Progress
from forwarders.queue_reader import QueueReader
from forwarders.refusals import Refusals
from forwarders.trial import find_killers
from spool.cursor import Range

log = logging.getLogger(__name__)

DEATHS_TRIAL: Final = 3
DEATHS_MAX: Final = 10


class Suspicion:
    """Which records of a batch are to blame for deaths.

    Owner: the forwarder's thread.
    ``records_alone``: so many of the next records are sent one by one.
    """

    def __init__(
        self,
        forwarder: str,
        reader: QueueReader,
        progress: Progress,
        refusals: Refusals,
        *,
        survived: Callable[[list[Piece]], bool],
    ) -> None:
        self.records_alone = 0
        self._forwarder = forwarder
        self._reader = reader
        self._progress = progress
        self._refusals = refusals
        self._survived = survived

    def repeat(self, ranges: Sequence[Range]) -> Batch | None:
        """The batch with these ranges, without the records that kill; None: see `next`. Errors: CannotQuarantine."""
        batch = self._reader.repeat(ranges)
        deaths = self._progress.deaths
        if deaths < DEATHS_TRIAL:
            return batch
        log.warning(
            "processes died while this batch was sent",
            extra={"forwarder": self._forwarder, "deaths": deaths, "records": batch.records},
        )
        self._progress.attempt(batch.ranges, identical=False)  # a death during the trials counts too
        if deaths < DEATHS_MAX:
            killers, innocent = find_killers(batch.pieces, self._survived)
        else:
            killers, innocent = (batch.pieces[:1] if batch.records == 1 else []), False
        for piece in killers:
            log.error(
                "processes die of a record, it goes to quarantine",
                extra={"forwarder": self._forwarder, "segment": piece.segment, "offset": piece.record.offset},
            )
            self._refusals.condemn(batch, piece, f"{deaths} processes in a row")
        self._progress.survived()
        if killers or innocent:
            return batch
        self.records_alone = batch.records
        return None

    def next(self) -> Batch | None:
        """The next batch of one record; None when there is nothing more."""
        batch = self._reader.next(max_records=1)
        self.records_alone = self.records_alone - 1 if batch else 0
        return batch
