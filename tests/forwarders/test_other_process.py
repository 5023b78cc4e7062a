"""forwarders/other_process.py: a forwarder in a process of its own is a forwarder as any other."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from contract_suite import Destination, ForwarderContract
from spooled import Bench, event
from test_archive import LocalDirectory

from collector.forward import COMMAND
from collector.settings import LogSettings
from formats.event import Event, Granularity, PayloadKind
from formats.event_json import EventJson
from forwarders.archive import Settings, from_settings
from forwarders.contract import Forwarder, Refused, Unavailable
from forwarders.other_process import OtherProcess, ProcessFailed
from tests.forwarders.deadly import Deadly, cannot_be_made
from tests.services.collector import RunningCollector, archived_events


def other_process(make: Callable[[], object]) -> OtherProcess:
    return OtherProcess("elsewhere", COMMAND, (LogSettings(), make))


class DirectoryElsewhere(LocalDirectory):
    def forwarder(self) -> Forwarder:
        return other_process(
            partial(from_settings, Settings(str(self.path)), name="archive", to_json=EventJson({}), instance="a" * 32)
        )


@pytest.fixture
def destination(tmp_path: Path) -> Destination:
    return DirectoryElsewhere(tmp_path / "events", "none")


class TestOtherProcessContract(ForwarderContract):
    pass


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return tmp_path / "written"


@pytest.fixture
def deadly(written: Path) -> Iterator[OtherProcess]:
    forwarder = other_process(partial(Deadly, written))
    yield forwarder
    forwarder.close()


def pid_of(forwarder: OtherProcess) -> int:
    return forwarder._process.pid


def test_what_becomes_of_a_batch_is_told_as_the_forwarder_said_it(deadly: OtherProcess, written: Path) -> None:
    assert deadly.identical_repeats
    fields = Event("f", 1, Granularity.DAILY, PayloadKind.FIELDS, [(1, "double", 1.0), (2, "string", "é")], id="x-1-2")
    deadly.send([fields])
    with pytest.raises(Unavailable, match="come back") as later:
        deadly.send([event(1, "later")])
    with pytest.raises(Refused, match=r"not that: \\ud800") as never:
        deadly.send([event(1), event(2, "never")])
    with pytest.raises(ProcessFailed, match="ValueError: not this one"):
        deadly.send([event(1, "raise")])
    deadly.close()

    assert later.value.retry_after_s == 7.5
    assert never.value.positions == [1]
    assert written.read_text().split("\n") == ["x-1-2", "", "closed", ""]


def test_a_forwarder_that_cannot_be_made_says_why(written: Path) -> None:
    with pytest.raises(ProcessFailed, match="PermissionError"):
        other_process(partial(cannot_be_made, written))


def test_an_event_that_kills_the_process_ends_in_quarantine_and_no_other(tmp_path: Path, written: Path) -> None:
    bench = Bench(tmp_path)
    bench.make = lambda: other_process(partial(Deadly, written))
    sent = bench.put([event(n, "kill" if n == 5 else "e") for n in range(16)])
    bench.work_for(60)
    bench.lane.close()

    assert set(written.read_text().split()) - {"closed"} == {*sent[:5], *sent[6:]}
    (item,) = bench.quarantine.items()
    assert item.description.events == 1
    assert "ProcessDied: by signal 9" in item.description.error


def test_a_process_that_was_killed_between_two_batches_is_started_again(
    tmp_path: Path, written: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path)
    made: list[OtherProcess] = []

    def make() -> Forwarder:
        made.append(other_process(partial(Deadly, written)))
        return made[-1]

    bench.make = make
    first = bench.put([event(1)])
    bench.work()
    os.kill(pid_of(made[0]), signal.SIGKILL)
    second = bench.put([event(2)])
    bench.work_for(60)
    bench.lane.close()

    assert [each for each in written.read_text().split() if each != "closed"] == first + second
    assert len(made) == 2
    (said,) = [each for each in caplog.records if each.name == "forwarders.standing"]
    assert (said.message, said.exc_info) == ("forwarder's process died", None)
    assert (said.levelno, vars(said)["reason"]) == (logging.WARNING, "by signal 9")


def test_the_process_goes_when_the_flusher_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from functools import partial; from pathlib import Path\n"
        "from collector.forward import COMMAND; from collector.settings import LogSettings\n"
        "from forwarders.other_process import OtherProcess; from tests.forwarders.deadly import Deadly\n"
        "forwarder = OtherProcess('n', COMMAND, (LogSettings(), partial(Deadly, Path(sys.argv[1]))))\n"
        "print(forwarder._process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "w")], stdout=subprocess.PIPE) as flusher:
        assert flusher.stdout is not None
        child = int(flusher.stdout.readline())
        assert _forwarding(child) == [child]
        flusher.kill()
    _wait(lambda: not _forwarding(child))


@pytest.mark.server
def test_no_event_is_lost_where_the_process_is_killed_again_and_again(tmp_path: Path) -> None:
    archive = {"path": str(tmp_path / "events"), "process": True, "batch_max_age_s": 0.0, "compression": "none"}
    with RunningCollector(tmp_path, forwarders__archive=archive, spool={"segment_max_age_s": 0.1}) as collector:
        assert collector.process is not None
        for begin in range(0, 40, 10):
            for n in range(begin, begin + 10):
                assert collector.get(f"/1?v=E,4{n}")[0] == 202
            _wait(lambda: len(archived_events(tmp_path / "events")) >= begin + 5)  # noqa: B023
            for child in _forwarding(collector.process.pid):
                os.kill(child, signal.SIGKILL)
        _wait(lambda: len(archived_events(tmp_path / "events")) >= 40)
    assert sorted(int(each["payload"]["1"]) for each in archived_events(tmp_path / "events")) == list(range(40))


def _wait(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _forwarding(pid: int) -> list[int]:
    """Those of a process's descendants that forward for the flusher."""
    try:
        threads = Path(f"/proc/{pid}/task").iterdir()
        children = [int(each) for thread in threads for each in (thread / "children").read_text().split()]
        found = [pid] if b"collector.forward" in Path(f"/proc/{pid}/cmdline").read_bytes() else []
    except OSError:
        return []
    return found + [each for child in children for each in _forwarding(child)]
