"""What ends in 503, what does not, and that it ends by itself: on a whole collector."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.services.child import wait_until
from tests.services.collector import RunningCollector, archived_events
from tests.spool.plain import mounted, needs_root

pytestmark = [pytest.mark.server, pytest.mark.slow]

EVENT = json.dumps({"eventName": "Big", "payload": {"padding": "x" * 50_000}}).encode()


def order(collector: RunningCollector, name: str, paused: bool) -> None:
    """Pause or resume a forwarder, as the command does when no flusher answers."""
    switch = collector.spool / "_queue" / name / ".paused"
    switch.write_text("{}") if paused else switch.unlink()


def health(collector: RunningCollector, kind: str) -> dict[str, Any]:
    items = json.loads(collector.get("/1.0/healthcheck")[2])["items"]
    return next(item for item in items if item["type"] == kind)


def refused(collector: RunningCollector, reason: str) -> float:
    name = f'collector_refused_requests_total{{reason="{reason}"}}'
    lines = collector.get("/metrics")[2].decode().splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def fill(path: Path) -> Path:
    """Leave no room on the disk of a directory; the file that takes it."""
    filler = path / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(65_536)):
            continue
    return filler


@needs_root
def test_a_full_disk_is_counted_and_shown_and_over_as_soon_as_there_is_room(tmp_path: Path) -> None:
    collector = RunningCollector(tmp_path)
    with mounted(collector.spool, "size=24m,mode=750"), collector:
        assert collector.post(EVENT)[0] == 202
        filler = fill(collector.spool)
        wait_until(lambda: collector.post(EVENT)[0] == 503, 10, "the disk is full")
        wait_until(lambda: "0 (disk_full)" in health(collector, "WriterHealthCheck")["message"], 5, "health shows it")
        assert collector.get("/readyz")[0] == 503
        assert refused(collector, "disk_full") >= 1
        filler.unlink()
        wait_until(lambda: collector.post(EVENT)[0] == 202, 5, "there is room again")
        wait_until(lambda: health(collector, "WriterHealthCheck")["code"] == "OK", 5, "health shows it")


def test_the_backlog_of_a_required_forwarder_ends_in_503_and_that_of_an_optional_one_never(tmp_path: Path) -> None:
    archive = {"type": "archive", "batch_max_age_s": 0.0}
    collector = RunningCollector(
        tmp_path,
        spool={"segment_max_age_s": 0.2, "max_spool_bytes": 500_000},
        forwarders__must={**archive, "path": str(tmp_path / "must")},
        forwarders__may={**archive, "path": str(tmp_path / "may"), "required": False, "max_lag_bytes": 700_000},
    )
    must = tmp_path / "must"
    with collector:
        wait_until(lambda: len(list(collector.spool.glob("_queue/*/.cursor"))) == 2, what="the flusher works")
        order(collector, "may", paused=True)
        for count in range(1, 21):  # twice what may wait
            assert collector.post(EVENT)[0] == 202
            wait_until(lambda n=count: len(archived_events(must)) == n, what="the required one has it")  # type: ignore[misc]
        wait_until(lambda: len(list((collector.spool / "_queue/may").glob("*.seg"))) <= 13, 10, "it gave up the oldest")

        order(collector, "must", paused=True)
        wait_until(lambda: collector.post(EVENT)[0] == 503, 30, "too much waits")
        status, headers, body = collector.post(EVENT)
        assert (status, json.loads(body)["detail"]) == (503, "too many events wait for delivery")
        assert 5 <= int(headers["Retry-After"]) <= 30
        assert refused(collector, "backlog") == 2
        assert health(collector, "DiskHealthCheck")["code"] == "ERROR"
        assert health(collector, "CollectionHealthCheck")["figures"]["refusedRequests"]["backlog"] == 2
        assert collector.log.read_text().count("events are refused") == 1

        order(collector, "must", paused=False)
        wait_until(lambda: collector.post(EVENT)[0] == 202, 20, "they are taken again")
        assert collector.log.read_text().count("events are taken again") == 1
        taken = int(health(collector, "WriterHealthCheck")["figures"]["written"])
        wait_until(lambda: len(archived_events(must)) == taken, 20, "all are delivered")
        assert health(collector, "DiskHealthCheck")["code"] == "OK"
