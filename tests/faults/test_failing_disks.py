"""Single system calls of a running worker that fail or are slow, made so by strace."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.injection import injected, needs_root, needs_strace, traced, worker_of
from tests.faults.load import Load, assert_delivered, flush_once, numbered, quick
from tests.services.child import wait_until
from tests.services.collector import RunningCollector

pytestmark = [pytest.mark.slow, needs_root, needs_strace]


def wait_for_health(collector: RunningCollector, status: int) -> None:
    report = b""

    def is_it() -> bool:
        nonlocal report
        found, _, report = collector.get("/1.0/healthcheck")
        return found == status

    try:
        wait_until(is_it, 10)
    except AssertionError:
        raise AssertionError(f"not {status} within 10 s: {report.decode()}") from None


@pytest.mark.parametrize("fault", ["fdatasync:error=EIO", "fdatasync:error=ENOSPC", "write:error=EIO"])
def test_a_call_that_fails_once_costs_the_requests_that_waited_for_it_and_nothing_else(
    tmp_path: Path, full: bool, seen: Callable[..., None], fault: str
) -> None:
    """Others get 202, the worker lives, and a descriptor that could not be synced is left alone."""
    call = fault.partition(":")[0]
    failures = 0
    with quick(tmp_path, spool={"segment_max_age_s": 5.0}) as collector, Load(collector.port, clients=4) as load:
        worker = worker_of(collector)
        for again in range(10 if full else 1):
            if again:
                time.sleep(10.5)  # two failures within ten seconds are a sick disk
            load.wait_for(202, 10)
            refused_before = load.statuses[503]
            (segment,) = until_there(lambda: list(collector.spool.glob("_open/*.open")))
            # Of write only those to this segment: the worker also writes to sockets and to its log.
            paths = ("-P", str(segment)) if call == "write" else ()
            options = ("-e", f"trace={call},fsync", "-e", f"inject={fault}:when=1")
            with traced(worker, tmp_path / "calls", *paths, *options) as log:
                wait_until(lambda log=log: injected(log) > 0, 10, "the fault")
                load.wait_for(202, 5)
            failures += injected(log)
            # strace counts per thread: a seal may have failed beside a commit, and two failures close the door a while.
            if injected(log) == 1:
                assert load.statuses[503] - refused_before <= 4  # all clients may have waited for one commit
            assert_never_synced_again(log.read_text())
        assert worker_of(collector) == worker
        load.end()
        if full:
            assert_delivered(tmp_path, load.acknowledged)
    flush_once(collector)
    assert_delivered(tmp_path, load.acknowledged)

    seen(acknowledged=len(load.acknowledged), refused_requests=load.statuses[503], injected=failures)
    assert load.statuses.keys() <= {202, 503}


def until_there(look: Callable[[], list[Path]]) -> list[Path]:
    found: list[Path] = []
    wait_until(lambda: found.extend(look()) or found, 10, "an open segment")
    return found[:1]


def assert_never_synced_again(calls: str) -> None:
    """No fdatasync of a file follows one that failed."""
    failed: set[str] = set()
    for line in calls.splitlines():
        if match := re.search(r"f(?:data)?sync\(\d+<([^>]*)>", line):
            assert match[1] not in failed
            if "INJECTED" in line:
                failed.add(match[1])


def test_while_nothing_can_be_synced_everything_is_503_and_health_says_so(
    tmp_path: Path, full: bool, seen: Callable[..., None]
) -> None:
    options = ("-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO")
    with quick(tmp_path) as collector:
        worker = worker_of(collector)
        with traced(worker, tmp_path / "calls", *options):
            wait_until(lambda: collector.post(numbered([0]))[0] == 503, 10, "the first refusal")
            with Load(collector.port, pause_s=0.01) as load:
                load.wait_for(503, 1000 if full else 20)
                wait_for_health(collector, 500)
                assert collector.get("/livez")[0] == 200
        wait_until(lambda: collector.post(numbered([1]))[0] == 202, 20, "the next 202")
        wait_for_health(collector, 200)
        assert worker_of(collector) == worker
        assert_delivered(tmp_path, [1])

    seen(refused_requests=load.statuses[503])
    assert load.statuses.keys() == {503}


def test_on_a_slow_disk_answers_wait_for_one_or_two_syncs_and_share_them(
    tmp_path: Path, full: bool, seen: Callable[..., None]
) -> None:
    """Of clients that are connected already."""
    clients, delay_s = 16, 0.2
    options = ("-e", "trace=fdatasync", "-e", f"inject=fdatasync:delay_enter={int(delay_s * 1e6)}")
    with quick(tmp_path) as collector, Load(collector.port, clients) as load:
        load.wait_for(202, 2 * clients)
        with traced(worker_of(collector), tmp_path / "calls", *options) as log:
            before, _ = load.statuses[202], load.seconds.clear()
            load.wait_for(202, clients * (30 if full else 3), 60)
            answered, seconds = load.statuses[202] - before, sorted(load.seconds)
            syncs = injected(log)
        load.end()
        assert_delivered(tmp_path, load.acknowledged)
    p99_s = seconds[int(len(seconds) * 0.99) - 1]

    seen(requests=answered, syncs=syncs, p99_s=round(p99_s, 2), delay_s=delay_s)
    assert load.statuses.keys() == {202}
    assert answered > 2 * syncs
    assert p99_s < 10 * delay_s
