"""The health report: is it taking events, is each destination getting them, is there room.

Every HTTP worker can answer it, because all figures come from what the processes share: the counters in the
spool's ``_metrics`` (collector/metrics.py), the forwarders' status files, and the disk.

Source: Ning collector, /1.0/healthcheck. Its messages are kept, because scripts of its users read them; the same
figures stand as JSON numbers in ``figures``.
"""

import time
from collections.abc import Mapping
from typing import Any, Literal, cast

from collector.gate import off_sentence
from collector.metrics import OUTCOMES, REFUSALS, SOURCES, WRITER_STATES, Totals, lag_s, read_all
from collector.settings import ForwarderSettings, Settings
from collector.tables import redact
from forwarders.status import ForwarderStatus, read_status
from spool.directory import SpoolDirectory
from spool.switch import Switch
from spool.watermark import Watermark

FORMAT_VERSION = "1"
#: A forwarder that retries for longer than this is an ERROR, not a WARN.
RETRY_ERROR_S = 300
_STATES = ("running", "retrying", "stopped", "paused")

Code = Literal["OK", "WARN", "ERROR"]
Item = dict[str, Any]


class Health:
    """Makes the report. One per process; holds nothing but where to look."""

    def __init__(self, directory: SpoolDirectory, watermark: Watermark, settings: Settings) -> None:
        self._directory = directory
        self._watermark = watermark
        self._forwarders = settings.forwarders
        self._scribe = settings.scribe
        self._keys_file = settings.auth.keys_file

    def report(self, location: str) -> dict[str, Any]:
        """The report as JSON values. ``location`` is the address it was asked for under."""
        totals = read_all(self._directory.metrics)
        items = [self._writer(totals)]
        if self._scribe.enabled:
            items.append(self._scribe_listener(totals))
        items += [self._forwarder(each, totals) for each in self._forwarders]
        if not self._forwarders:
            items.append(entry("ForwarderHealthCheck", "WARN", "no forwarder is configured: events stay in the spool"))
        items += [self._disk(totals), self._collection(totals)]
        if self._keys_file is not None:
            items.append(self._api_keys(totals))
        return report_of(items, location)

    def _writer(self, totals: Totals) -> Item:
        http = totals.http
        events = {each: sum(http[f"events_total/{source}/{each}"] for source in SOURCES) for each in OUTCOMES}
        workers = [each for each in totals.live if each.kind == "http"]
        broken = {
            each.number: WRITER_STATES[min(state, len(WRITER_STATES) - 1)]
            for each in workers
            if (state := each.values.get("writer_state", 0))
        }
        figures = {
            "running": bool(workers) and not broken,
            "workers": len(workers),
            "openFiles": sum(1 for each in workers if each.values.get("open_segment_bytes")),
            "enqueued": events["accepted"],
            "written": events["accepted"],
            "dropped": http["spool_commit_failed_requests_total"],
            "errored": http["spool_commit_failures_total"],
            "ignored": events["filtered"],
            "rejected": events["rejected"],
            "pendingFiles": max((each["queue_segments"] for each in totals.forwarders.values()), default=0),
            "flushes": http["sealed_segments_total"],
        }
        message = (
            f"running: {_word(figures['running'])}, local files: {{open: {figures['openFiles']}}}, "
            + ", ".join(f"{each}: {figures[each]}" for each in ("enqueued", "written", "dropped", "errored", "ignored"))
            + f", pendingFiles: {figures['pendingFiles']}, flushes: {figures['flushes']}"
        )
        if broken:
            states = ", ".join(f"{number} ({state})" for number, state in broken.items())
            message += f", workers that cannot write: {states}"
        return entry("WriterHealthCheck", "ERROR" if not figures["running"] else "OK", message, figures)

    def _scribe_listener(self, totals: Totals) -> Item:
        counted = totals.http
        listeners = [each for each in totals.live if each.kind == "listen"]
        broken = any(each.values.get("writer_state") for each in listeners)
        figures: dict[str, Any] = {
            "address": self._scribe.bind,
            "running": bool(listeners),
            "connections": sum(each.values.get("connections", 0) for each in listeners),
            **{outcome: counted[f"events_total/scribe/{outcome}"] for outcome in OUTCOMES},
            "triedLater": counted["answers_total/scribe/503"],
            "refusedConnections": counted["refused_connections_total"],
        }
        message = f"running: {_word(figures['running'])}, " + ", ".join(
            f"{each}: {figures[each]}" for each in ("connections", *OUTCOMES, "triedLater", "refusedConnections")
        )
        if broken:
            message += ", the spool cannot be written"
        return entry("ScribeHealthCheck", "OK" if listeners and not broken else "ERROR", message, figures)

    def _forwarder(self, settings: ForwarderSettings, totals: Totals) -> Item:
        counted = totals.forwarders.get(settings.name, {})
        status = read_status(self._directory, settings.name)
        running = totals.is_live("flusher")
        figures: dict[str, Any] = {
            "name": settings.name,
            "destination": settings.type,
            "enabled": settings.flush.enabled,
            "running": running,
            "state": "paused" if self._is_paused(settings.name) else _STATES[min(counted.get("state", 0), 3)],
            "queueSegments": counted.get("queue_segments", 0),
            "queueBytes": counted.get("queue_bytes", 0),
            "oldestPendingMs": counted.get("oldest_pending_ms", 0),
            "lagEvents": counted.get("queue_events", 0),
            "lagSeconds": lag_s(counted.get("oldest_pending_ms", 0)),
            "lastSuccessMs": counted.get("last_success_ms", 0),
            "enqueued": counted.get("sent_events_total", 0) + counted.get("quarantined_events_total", 0),
            "sent": counted.get("sent_events_total", 0),
            "dropped": counted.get("dropped_events_total", 0),
            "errored": counted.get("quarantined_events_total", 0),
            "ignored": counted.get("skipped_events_total", 0),
            "retried": counted.get("retries_total", 0),
            "failed": counted.get("failures_total", 0),
            "quarantined": counted.get("quarantined_events_total", 0),
            "required": settings.flush.required,
            "lastError": redact(status.last_error) if status else "",
            "lastErrorMs": status.last_error_ms if status else 0,
        }
        names = ", ".join(settings.flush.names)
        message = (
            f"enabled: {_word(settings.flush.enabled)}, running: {_word(running)}, types: [{names}], "
            f"queue sizes: {{{settings.name}: {figures['queueSegments']}}}, "
            + ", ".join(f"{each}: {figures[each]}" for each in ("enqueued", "sent", "dropped", "errored", "ignored"))
        )
        code = _forwarder_code(settings, figures, status)
        if status is not None and code != "OK" and status.reason:
            message += f", {status.state} since {iso(status.since_ms)}: {redact(status.reason)}"
        return entry("ForwarderHealthCheck", code, message, figures)

    def _is_paused(self, forwarder: str) -> bool:
        """The file says it at once, and also when no flusher runs."""
        try:
            return Switch.forwarder(self._directory, forwarder).read() is not None
        except OSError:
            return False

    def _disk(self, totals: Totals) -> Item:
        found = self._watermark.refusal()
        refusal = found.sentence if found else None
        try:
            free = self._watermark.free_bytes()
        except OSError as exc:
            free, refusal = 0, f"the spool is not there: {exc.strerror}"
        figures = {"freeBytes": free, "backlogBytes": totals.backlog_bytes, "accepting": refusal is None}
        message = f"free: {free}, backlog: {totals.backlog_bytes}"
        return entry(
            "DiskHealthCheck", "ERROR" if refusal else "OK", f"{message}, {refusal}" if refusal else message, figures
        )

    def _collection(self, totals: Totals) -> Item:
        """Whether a person has switched it off, and how many requests each reason has kept out so far."""
        try:
            off = Switch.collection(self._directory).read()
        except OSError:
            off = None  # the disk's own item says what is wrong with it
        figures: dict[str, Any] = {
            "on": off is None,
            "sinceMs": off.since_ms if off else 0,
            "refusedRequests": {kind: totals.http[f"refused_requests_total/{kind}"] for kind in REFUSALS},
        }
        message = f"on: {_word(off is None)}, refused: {sum(figures['refusedRequests'].values())}"
        if off:
            message += f", {off_sentence(off)}"
        return entry("CollectionHealthCheck", "WARN" if off else "OK", message, figures)

    def _api_keys(self, totals: Totals) -> Item:
        """What the workers make of the file of API keys, the worst of them."""
        state = max((each.values.get("api_keys_state", 0) for each in totals.live if each.kind == "http"), default=0)
        code, message = (
            ("OK", "the API keys are read"),
            ("WARN", "the API keys cannot be read: the last good ones hold"),
            ("ERROR", "the API keys cannot be read: requests that need one are answered 503"),
        )[min(state, 2)]
        return entry("ApiKeysHealthCheck", cast("Code", code), f"{message}, file: {self._keys_file}", {"state": state})


def _forwarder_code(settings: ForwarderSettings, figures: Mapping[str, Any], status: ForwarderStatus | None) -> Code:
    if not settings.flush.enabled:
        return "WARN"
    if figures["running"] and figures["state"] == "paused":
        return "WARN"
    if not figures["running"] or figures["state"] == "stopped":
        return "ERROR"
    if figures["state"] == "retrying":
        for_s = (time.time_ns() // 1_000_000 - status.since_ms) / 1000 if status else 0
        return "ERROR" if for_s > RETRY_ERROR_S else "WARN"
    return "OK"


def report_of(items: list[Item], location: str) -> dict[str, Any]:
    """The report that has these items."""
    return {
        "location": location,
        "size": len(items),
        "formatVersion": FORMAT_VERSION,
        "generated": iso(time.time_ns() // 1_000_000),
        "items": items,
    }


def entry(kind: str, code: Code, message: str, figures: dict[str, Any] | None = None) -> Item:
    """One part of a report."""
    return {"type": kind, "code": code, "message": message, "figures": figures or {}}


def _word(value: object) -> str:
    return "true" if value else "false"


def iso(time_ms: int) -> str:
    """A time as people read it; ms since 1970."""
    seconds, millis = divmod(time_ms, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{millis:03d}Z"
