"""Put the way in together: counters, writer, gate, rules, one intake. Every process with a door does it here."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from collector.filters import Filters
from collector.gate import Gate, watermark
from collector.intake import Intake
from collector.metrics import Counters
from collector.privacy import Privacy
from collector.rules import Rules
from collector.schemas import Schemas
from collector.settings import Settings
from collector.spool_door import open_spool
from spool.directory import SpoolDirectory
from spool.switch import Switch
from spool.watermark import Watermark
from spool.writer import SpoolWriter


@dataclass(frozen=True)
class Entrance:
    """What the doors of one process share."""

    directory: SpoolDirectory
    counters: Counters
    watermark: Watermark
    intake: Intake


def open_entrance(
    settings: Settings,
    counters_in: Callable[[Path], Counters] = Counters.http,
    *,
    monotonic: Callable[[], float] = time.monotonic,
) -> Entrance:
    """The entrance of this process; ``counters_in`` takes a slot of its kind of process.

    Errors: SpoolError.
    """
    directory = open_spool(settings.spool)
    counters = counters_in(directory.metrics)
    writer = SpoolWriter(
        directory,
        segment_max_bytes=settings.spool.segment_max_bytes,
        segment_max_age_s=settings.spool.segment_max_age_s,
        on_sealed=counters.count_sealed,
        on_synced=counters.count_sync,
        monotonic=monotonic,
    )
    marks = watermark(directory, settings.spool)
    gate = Gate(Switch.collection(directory), marks)
    rules = Rules(
        Filters(settings.filters),
        Schemas(settings.schemas, settings.events),
        Privacy(settings.privacy, settings.events),
    )
    intake = Intake(writer, gate, rules, settings.durability, counters, monotonic=monotonic)
    return Entrance(directory, counters, marks, intake)
