"""Processes that stand still, are killed by those above them, are replaced, or run out of memory."""

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.injection import (
    children,
    is_alive,
    master_of,
    needs_root,
    needs_strace,
    traced,
    worker_of,
    workers_of,
)
from tests.faults.load import Load, archived, assert_delivered, flush_once, numbered, quick
from tests.services.child import wait_until
from tests.services.collector import REPOSITORY, RunningCollector

pytestmark = pytest.mark.slow


class Gunicorn(RunningCollector):
    """The application under gunicorn's own command, with these arguments and no flusher."""

    def __init__(self, base: Path, *arguments: str) -> None:
        super().__init__(
            base,
            spool={"segment_max_age_s": 3600},
            forwarders__archive={"path": str(base / "events"), "batch_max_age_s": 0.1},
        )
        self.arguments = arguments

    def start(self) -> "Gunicorn":
        command = [sys.executable, "-m", "gunicorn", "-c", str(REPOSITORY / "etc/gunicorn.conf.py"), *self.arguments]
        environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLLECTOR_CONFIG": str(self.config)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "collector.app:create_app()"], cwd=self.base, env=environ, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_until(self.answers, 30, "gunicorn answers")
        return self

    def answers(self) -> bool:
        try:
            return self.get("/livez")[0] == 200
        except OSError:
            return False

    @property
    def workers(self) -> list[int]:
        assert self.process is not None
        return children(self.process.pid)


def test_nobody_takes_the_segment_of_a_worker_that_stands_still(
    tmp_path: Path, full: bool, seen: Callable[..., None]
) -> None:
    """Not even a flusher that looks for orphans; when the worker goes on it seals the segment itself."""
    with Gunicorn(tmp_path) as collector:
        (worker,) = collector.workers
        assert collector.post(numbered([1]))[0] == 202
        (segment,) = collector.spool.glob("_open/*.open")
        os.kill(worker, signal.SIGSTOP)
        try:
            for _ in range(6 if full else 1):
                time.sleep(10 if full else 0)
                flush_once(collector)
        finally:
            stolen = not segment.exists()
            os.kill(worker, signal.SIGCONT)
        assert collector.post(numbered([2]))[0] == 202
        assert collector.workers == [worker]
        assert collector.stop() == 0
        sealed = [path.stem for path in collector.spool.glob("_spool/*.seg")]
        flush_once(collector)

    seen(sealed_by_its_owner=sealed)
    assert not stolen
    assert sealed == [segment.stem]
    assert archived(tmp_path).keys() == {1, 2}


@needs_root
@needs_strace
def test_what_a_worker_had_answered_is_salvaged_when_gunicorn_kills_it_in_mid_append(
    tmp_path: Path, seen: Callable[..., None]
) -> None:
    """One of gunicorn's own workers, whose write to the segment takes longer than gunicorn's time-out."""
    with Gunicorn(tmp_path, "--worker-class", "sync", "--timeout", "1") as collector:
        (worker,) = collector.workers
        answered = [number for number in range(20) if collector.post(numbered([number]))[0] == 202]
        (segment,) = collector.spool.glob("_open/*.open")
        options = ("-P", str(segment), "-e", "trace=write", "-e", "inject=write:delay_enter=3000000")
        with traced(worker, tmp_path / "calls", *options):
            status = 0
            with contextlib.suppress(OSError, http.client.HTTPException):  # depends on who closes the connection
                status = collector.post(numbered([99]))[0]
            wait_until(lambda: not is_alive(worker), 30, "the worker is killed")
        wait_until(lambda: collector.post(numbered([100]))[0] == 202, 30, "its successor answers")
        assert collector.stop() == 0
        flush_once(collector)

    seen(answered=len(answered), status_of_the_last=status)
    assert status != 202
    assert {*answered, 100} <= archived(tmp_path).keys()
    assert list(collector.spool.glob("_open/*")) == []


def test_workers_that_are_replaced_all_the_time_lose_nothing_and_leak_nothing(
    tmp_path: Path, full: bool, seen: Callable[..., None]
) -> None:
    """By max_requests; the supervisor and the master keep their number of descriptors."""
    with quick(tmp_path, http={"workers": 2, "max_requests": 50}) as collector:
        assert collector.process is not None
        parents = [collector.process.pid, master_of(collector)]
        wait_until(lambda: len(workers_of(collector)) == 2, 20, "two workers")
        time.sleep(0.5)
        before = [len(os.listdir(f"/proc/{pid}/fd")) for pid in parents]
        met = set(workers_of(collector))
        with Load(collector.port, clients=4) as load:
            until = 1000 if full else 6
            deadline = time.monotonic() + (1800 if full else 30)
            while len(met) < until and time.monotonic() < deadline:
                met |= set(workers_of(collector))
                time.sleep(0.01)
        wait_until(lambda: len(workers_of(collector)) == 2, 20, "two workers")
        after = [len(os.listdir(f"/proc/{pid}/fd")) for pid in parents]
        assert_delivered(tmp_path, load.acknowledged)

    seen(acknowledged=len(load.acknowledged), workers=len(met), descriptors=after, answers=dict(load.statuses))
    assert len(met) >= until
    assert load.statuses.keys() <= {202, 0}  # 0: a client met a connection that was closed between two requests
    assert max(b - a for a, b in zip(before, after, strict=True)) <= 4


def test_workers_forked_from_a_preloaded_application_write_a_segment_each(tmp_path: Path) -> None:
    with Gunicorn(tmp_path, "--preload", "--workers", "2") as collector:
        wait_until(lambda: len(collector.workers) == 2, 20, "two workers")
        with Load(collector.port, clients=8) as load:

            def both_write() -> bool:
                with Load(collector.port, clients=1) as more:  # the first ones may all have one worker, and keep it
                    more.wait_for(202)
                return len(list(collector.spool.glob("_open/*.open"))) == 2

            wait_until(both_write, 20, "two open segments")
            load.wait_for(202, 50)
        owners = {pid for pid in collector.workers for path in _open_files(pid) if path.endswith(".open")}
        assert owners == set(collector.workers)
        assert collector.stop() == 0
        flush_once(collector)

    assert set(load.acknowledged) <= archived(tmp_path).keys()


def _open_files(pid: int) -> Iterator[str]:
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            yield os.readlink(each)
        except OSError:
            continue


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """A cgroup (v1 or v2) whose processes may use so much memory together; skips where none can be made."""
    name = f"collector-test-{os.getpid()}"
    for root, file in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root, name)
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / file).exists():
            break
        group.rmdir()
    else:
        pytest.skip("no cgroup for memory can be made")
    try:
        (group / file).write_text(str(limit_bytes))
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            Path(group.parent, "cgroup.procs").write_text(pid)
        group.rmdir()


@needs_root
def test_a_worker_that_the_kernel_kills_for_want_of_memory_loses_nothing_it_answered(
    tmp_path: Path, full: bool, seen: Callable[..., None]
) -> None:
    """A large body of small events takes it there; its successor comes back outside of the limit."""
    killed = 0
    many = b"[" + b'{"eventName":"e","payload":{}},' * 250_000 + b"0]"
    with memory_group(16 << 20) as group, quick(tmp_path) as collector, Load(collector.port, pause_s=0.01) as load:
        for _ in range(20 if full else 1):
            load.wait_for(202, 10)
            worker = worker_of(collector)
            (group / "cgroup.procs").write_text(str(worker))
            while is_alive(worker):
                with contextlib.suppress(OSError, http.client.HTTPException):
                    collector.post(many)
            killed += 1
        load.wait_for(202, 10)
        load.end()
        if full:
            assert_delivered(tmp_path, load.acknowledged)
        collector.kill()
        flush_once(collector)
    assert_delivered(tmp_path, load.acknowledged)

    seen(acknowledged=len(load.acknowledged), killed=killed, answers=dict(load.statuses))
    assert load.statuses.keys() <= {202, 503, 0}
