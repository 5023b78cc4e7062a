"""What a person needs to know in the night: does it take events, do they get out, is there room, what needs a hand.

Everything is read from what the processes share (counters, status files, the spool), so it works when none of them
runs, and says so.
"""

from collections.abc import Callable
from typing import Any

from msgspec import structs

from collector import ports
from collector.gate import watermark
from collector.health import Health
from collector.metrics import read_all
from collector.settings import Settings
from collector.spool_door import open_spool
from collector.spool_view import place_sums
from collector.tables import redact
from forwarders.status import ForwarderStatus, read_status
from spool.directory import SpoolDirectory
from spool.quarantine import Quarantine
from spool.switch import Switch


def gather(settings: Settings, *, answers: Callable[[str], bool] = ports.answers) -> dict[str, Any]:
    """The state of the collector as JSON values; ``worst`` is OK, WARN or ERROR. Errors: SpoolError, OSError.

    ``answers`` says whether somebody accepts connections at an address.
    """
    directory = open_spool(settings.spool, create=False)
    marks = watermark(directory, settings.spool)
    items = Health(directory, marks, settings).report("")["items"]
    listening = {bind: _answers(bind, answers) for bind in settings.http.binds}
    if not all(listening.values()):
        silent = ", ".join(bind for bind, answered in listening.items() if not answered)
        items.append({"type": "ListenerHealthCheck", "code": "ERROR", "message": f"nobody answers at {silent}"})
    totals = read_all(directory.metrics)
    refusal = marks.refusal()
    off = Switch.collection(directory).read()
    codes = [item["code"] for item in items]
    said = {each.name: read_status(directory, each.name) for each in settings.forwarders}
    return {
        "worst": next(code for code in ("ERROR", "WARN", "OK") if code in codes),
        "spool": str(directory.path),
        "listening": listening,
        "processes": [{"kind": each.kind, "number": each.number, "pid": each.pid} for each in totals.live],
        "refusing": refusal.sentence if refusal else None,
        "collection_off": off._asdict() if off else None,
        "backlog_bytes": totals.backlog_bytes,
        "max_spool_bytes": settings.spool.max_spool_bytes,
        "free_bytes": marks.free_bytes(),
        "min_free_bytes": marks.min_free_bytes(),
        "items": items,
        "places": place_sums(directory),
        "forwarders": {name: structs.asdict(_redacted(status)) for name, status in said.items() if status is not None},
        "quarantine": _quarantined(directory),
        "unclaimed_queues": sorted(set(directory.queues()) - {each.name for each in settings.forwarders}),
    }


def _redacted(status: ForwarderStatus) -> ForwarderStatus:
    return structs.replace(status, reason=redact(status.reason), last_error=redact(status.last_error))


def _answers(bind: str, answers: Callable[[str], bool]) -> bool:
    try:
        return answers(bind)
    except OSError:
        return False


def _quarantined(directory: SpoolDirectory) -> dict[str, dict[str, int]]:
    held: dict[str, dict[str, int]] = {}
    for item in Quarantine(directory).items():
        counts = held.setdefault(item.owner, {"items": 0, "events": 0})
        counts["items"] += 1
        counts["events"] += item.description.events or 0
    return held
