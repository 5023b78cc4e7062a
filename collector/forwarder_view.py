"""How every forwarder is, for people and programs: from the settings, the queues, the status files and the counters.

Only reads; works beside everything that runs, and when nothing does.
"""

import os
import time
from contextlib import suppress
from typing import Any

from collector.metrics import read_all
from collector.settings import ForwarderSettings, Settings
from collector.tables import redact
from forwarders.status import read_status
from spool.directory import SEALED_SUFFIX, SpoolDirectory
from spool.quarantine import Quarantine
from spool.switch import Switch


def forwarder_rows(directory: SpoolDirectory, settings: Settings) -> list[dict[str, Any]]:
    """One row for each forwarder of the settings, as JSON values. Errors: OSError."""
    totals = read_all(directory.metrics)
    runs = totals.is_live("flusher")
    quarantined: dict[str, int] = {}
    for item in Quarantine(directory).items():
        quarantined[item.owner] = quarantined.get(item.owner, 0) + 1
    rows = []
    for each in settings.forwarders:
        counted = totals.forwarders.get(each.name, {})
        row = _state(directory, each, runs=runs) | _queue(directory, each.name)
        row["lag_s"] = round(time.time() - row["oldest_s"], 1) if row["oldest_s"] else 0
        del row["oldest_s"]
        row |= {
            "quarantined_items": quarantined.get(each.name, 0),
            "sent_events": counted.get("sent_events_total", 0),
            "skipped_events": counted.get("skipped_events_total", 0),
            "dropped_events": counted.get("dropped_events_total", 0),
            "last_success_ms": counted.get("last_success_ms", 0),
            "failed_sends": counted.get("failures_total", 0),
        }
        rows.append(row)
    return rows


def _state(directory: SpoolDirectory, settings: ForwarderSettings, *, runs: bool) -> dict[str, Any]:
    paused = Switch.forwarder(directory, settings.name).read()
    said = read_status(directory, settings.name)
    state, reason, since_ms = ("ok", "", 0) if said is None else (said.state, said.reason, said.since_ms)
    if paused:
        state, reason, since_ms = "paused", paused.reason, paused.since_ms
    elif not settings.flush.enabled:
        state, reason, since_ms = "disabled", "", 0
    elif not runs:
        state, reason, since_ms = "not running", "", 0
    elif state == "paused":  # it has been resumed just now
        state, reason = "ok", ""
    return {
        "forwarder": settings.name,
        "type": settings.type,
        "state": state,
        "reason": redact(reason),
        "since_ms": since_ms,
        "required": settings.flush.required,
        "last_error": redact(said.last_error) if said else "",
        "last_error_ms": said.last_error_ms if said else 0,
    }


def _queue(directory: SpoolDirectory, name: str) -> dict[str, Any]:
    segments = size = 0
    oldest_s = 0.0
    with suppress(FileNotFoundError), os.scandir(directory.queue_root / name) as entries:
        for entry in entries:
            if entry.name.endswith(SEALED_SUFFIX):
                with suppress(FileNotFoundError):  # finished a moment ago
                    status = entry.stat(follow_symlinks=False)
                    segments += 1
                    size += status.st_size
                    oldest_s = min(oldest_s or status.st_mtime, status.st_mtime)
    return {"segments": segments, "bytes": size, "oldest_s": oldest_s}
