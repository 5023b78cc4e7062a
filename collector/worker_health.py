"""The health report of an event worker: does it take messages, does its destination take the events."""

import time
from typing import Any

from collector.health import RETRY_ERROR_S, Code, entry, iso, report_of
from collector.tables import redact
from collector.worker_tables import WorkerTable
from forwarders.worker_report import WorkerReport

_NS_PER_S = 1_000_000_000


class WorkerHealth:
    """Makes the report from what the worker's thread notes."""

    def __init__(self, worker: WorkerTable, noted: WorkerReport) -> None:
        self._worker = worker
        self._noted = noted

    def report(self, location: str) -> dict[str, Any]:
        """As `collector.health.Health.report`, with one item."""
        worker, noted = self._worker, self._noted
        cells = noted.figures()
        state, since_ms, error = noted.state, noted.since_ms, redact(noted.last_error)
        figures = {
            "name": worker.name,
            "destination": worker.type,
            "queue": worker.queue.queue,
            "state": state,
            "taken": cells["taken_messages_total"],
            "delivered": cells["delivered_events_total"],
            "deadLetters": cells["dead_letters_total"],
            "retried": cells["retries_total"],
            "queueFailures": cells["queue_failures_total"],
            "lastSuccessMs": cells["last_success_ms"],
            "lastError": error,
            "lastErrorMs": cells["last_error_ms"],
        }
        message = f"queue: {worker.queue.queue}, " + ", ".join(
            f"{each}: {figures[each]}" for each in ("taken", "delivered", "deadLetters", "retried")
        )
        code: Code = "OK"
        if state != "ok":
            code = "ERROR" if time.time_ns() / _NS_PER_S - since_ms / 1000 > RETRY_ERROR_S else "WARN"
            message += f", {state} since {iso(since_ms)}: {error or 'not connected yet'}"
        return report_of([entry("WorkerHealthCheck", code, message, figures)], location)
