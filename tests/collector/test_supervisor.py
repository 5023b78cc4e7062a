"""The supervisor over real processes: what it starts, restarts, stops, and takes along when it dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from collector import ports
from collector.children import Child, Patience, Program

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

STEADY = """
on(signal.SIGTERM, lambda: (say("ends"), sys.exit(0)))
say(f"runs {os.getpid()}")
while True:
    signal.pause()
"""


def until(condition: Callable[[], object], what: str, limit_s: float = 20.0) -> None:
    """Wait for other processes to get there."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"not within {limit_s} s: {what}"
        time.sleep(0.01)


class Run:
    """A supervisor at work, and what its children said so far."""

    def __init__(self, tmp_path: Path, spec: dict[str, object], environ: dict[str, str]) -> None:
        self._said = tmp_path / "said"
        self.errors = tmp_path / "errors"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "supervised.py"), json.dumps(spec)],
                env={**os.environ, "SAID": str(self._said), "PYTHONPATH": str(ROOT), **environ},
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    def said(self) -> list[str]:
        return self._said.read_text().splitlines() if self._said.exists() else []

    def pids(self, name: str) -> list[int]:
        return [int(line.split()[2]) for line in self.said() if line.startswith(f"{name} runs ")]

    def wait_for(self, name: str, starts: int = 1) -> int:
        """The pid of the program's nth process."""
        until(lambda: len(self.pids(name)) >= starts, f"{name} started {starts} times")
        return self.pids(name)[starts - 1]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    runs: list[Run] = []

    def begin(*programs: tuple[str, str, int | None], environ: dict[str, str] | None = None, **spec: object) -> Run:
        runs.append(Run(tmp_path, {"programs": programs, **spec}, environ or {}))
        return runs[-1]

    yield begin
    for run in runs:
        run.process.kill()
        run.process.wait()
        assert run.process.stdout
        run.process.stdout.close()


def is_gone(pid: int) -> bool:
    """Whether no process runs under ``pid`` (a dead one that nobody waited for counts as gone)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_killed_child_is_started_again(start: Start) -> None:
    run = start(("http", STEADY, None), ("flusher", STEADY, None))

    os.kill(run.wait_for("http"), signal.SIGKILL)
    second = run.wait_for("http", starts=2)

    assert not is_gone(second)
    assert len(run.pids("flusher")) == 1
    assert "killed by SIGKILL" in run.errors.read_text()


def test_a_child_that_keeps_dying_is_started_ever_more_slowly() -> None:
    for failures, limit_s in [(1, 1.0), (2, 2.0), (5, 16.0), (6, 30.0), (5000, 30.0)]:
        delays = [Patience().restart_s(failures) for _ in range(300)]

        assert min(delays) >= 0.5
        assert 0.9 * limit_s < max(delays) <= limit_s


def test_a_child_that_lived_for_a_minute_is_started_again_soon() -> None:
    child = Child(Program("true", ["true"]), {}, Patience(), set())
    for _ in range(20):
        child.ended(1, now=0.0)

    child.start(now=100.0)
    assert child.process is not None
    child.process.wait()
    child.ended(1, now=160.0)

    assert child.start_at is not None
    assert 160.5 <= child.start_at <= 161.0


def test_a_program_that_does_not_exist_is_reported_and_the_others_run(start: Start) -> None:
    run = start(("http", "", None), ("flusher", STEADY, None))

    run.wait_for("flusher")
    until(lambda: "could not be started" in run.errors.read_text(), "the report")

    assert run.stop() == 0


def test_an_exit_code_is_reported_with_its_meaning(start: Start) -> None:
    run = start(("http", STEADY, None), ("flusher", "say('runs 0'); sys.exit(75)", None))

    run.wait_for("flusher", starts=3)

    assert "flusher exit 75: somebody else has the lock" in run.errors.read_text()
    assert not is_gone(run.wait_for("http"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_http_is_gone_before_the_flusher_is_told_to_stop(start: Start, number: signal.Signals) -> None:
    slow = STEADY.replace('say("ends")', 'time.sleep(0.3), say("ends")')
    run = start(("http", slow, None), ("flusher", STEADY, None))
    pids = [run.wait_for("http"), run.wait_for("flusher")]

    assert run.stop(number) == 0

    assert [line for line in run.said() if line.endswith("ends")] == ["http ends", "flusher ends"]
    assert all(map(is_gone, pids))


def test_being_told_twice_to_stop_is_being_told(start: Start) -> None:
    slow = STEADY.replace('say("ends")', 'say("ending"), time.sleep(0.3)')
    run = start(("http", slow, None))
    run.wait_for("http")

    run.process.send_signal(signal.SIGTERM)
    until(lambda: "http ending" in run.said(), "the child is ending")

    assert run.stop() == 0


def test_a_child_that_does_not_stop_is_killed_at_the_time_out(start: Start) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); say(f'runs {os.getpid()}'); time.sleep(60)"
    run = start(("http", deaf, None), ("flusher", STEADY, None), patience={"stop_s": 1.0, "keep_s": 0.5})
    pids = [run.wait_for("http"), run.wait_for("flusher")]
    began = time.monotonic()

    assert run.stop() == 0

    assert time.monotonic() - began < 10
    assert all(map(is_gone, pids))
    assert "flusher ends" in run.said()


def test_no_child_outlives_a_supervisor_that_is_killed(start: Start) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); say(f'runs {os.getpid()}'); time.sleep(60)"
    run = start(("http", STEADY, None), ("flusher", deaf, None))
    pids = [run.wait_for("http"), run.wait_for("flusher")]

    run.stop(signal.SIGKILL)

    until(lambda: all(map(is_gone, pids)), "both children are gone")


def test_a_child_whose_parent_is_already_gone_does_not_start() -> None:
    source = "import signal; from collector.parent import end_with; end_with(1 << 30, signal.SIGKILL); print('lives')"

    ended = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, check=False)

    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout == b""


def test_a_reload_reaches_http_as_a_signal_and_the_flusher_as_a_restart(start: Start) -> None:
    reloading = "on(signal.SIGHUP, lambda: say('reloads'))" + STEADY
    run = start(("http", reloading, signal.SIGHUP), ("flusher", STEADY, None))
    run.wait_for("http")
    run.wait_for("flusher")

    run.process.send_signal(signal.SIGHUP)
    run.wait_for("flusher", starts=2)
    until(lambda: "http reloads" in run.said(), "http was told")

    assert len(run.pids("http")) == 1
    assert "flusher ends" in run.said()
    assert run.errors.read_text() == ""


def test_a_reload_of_settings_that_will_not_do_changes_nothing(start: Start) -> None:
    run = start(("http", STEADY, signal.SIGHUP), ("flusher", STEADY, None), may_reload=False)
    run.wait_for("http")
    run.wait_for("flusher")

    run.process.send_signal(signal.SIGHUP)

    assert run.stop() == 0
    assert Counter(line.split()[1] for line in run.said()) == {"runs": 2, "ends": 2}


def test_a_reload_starts_what_is_wanted_now_and_stops_what_is_not(start: Start) -> None:
    run = start(
        *((name, STEADY, None) for name in ("http", "listen", "udp", "flusher")),
        at_first=["http", "udp", "flusher"],
        after_reload=["http", "listen", "flusher"],
    )
    gone = run.wait_for("udp")
    run.wait_for("flusher")  # one that is told to end before it has said that it runs would say so once only

    run.process.send_signal(signal.SIGHUP)
    run.wait_for("listen")
    run.wait_for("flusher", starts=2)
    until(lambda: is_gone(gone), "what is not wanted has ended")

    assert run.stop() == 0
    assert len(run.pids("udp")) == 1
    assert run.said()[-1] == "flusher ends"


def test_systemd_is_told_of_readiness_life_and_the_end(start: Start, tmp_path: Path) -> None:
    source = "say(os.environ.get('NOTIFY_SOCKET'))" + STEADY
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(20)
        receiver.bind(str(tmp_path / "notify"))
        run = start(
            ("http", source, None), environ={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"}
        )
        run.wait_for("http")
        told = {receiver.recv(100) for _ in range(10)}
        run.stop()
        while b"STOPPING=1" not in told:
            told.add(receiver.recv(100))

    assert told == {b"READY=1", b"WATCHDOG=1", b"STOPPING=1"}
    assert "http None" in run.said()


def test_a_child_does_not_hear_the_terminal_and_can_be_signalled(start: Start) -> None:
    """Ctrl-C goes to the supervisor's process group, which its children are not in; no signal is blocked in them."""
    run = start(("http", STEADY, None))
    pid = run.wait_for("http")

    blocked = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigBlk"))

    assert os.getpgid(pid) != os.getpgid(run.process.pid)
    assert int(blocked.split()[1], 16) == 0


def test_an_address_in_use_is_refused_with_advice() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"

        assert ports.answers(bind)
        assert not ports.speaks_http(bind, tls=False, wait_s=0.05)
        with pytest.raises(ports.CannotListen, match=rf"cannot listen on {bind}: another process listens there"):
            ports.check(bind, wait_s=0.0)


def test_an_address_that_becomes_free_in_time_is_taken() -> None:
    source = """
import socket, time
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
time.sleep(0.3)
"""
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE) as dying:
        assert dying.stdout
        port = int(dying.stdout.readline())

        ports.check(f"127.0.0.1:{port}", wait_s=20.0)


def test_addresses_that_cannot_be_had_are_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for bind, advice in [
        ("192.0.2.1:8080", "this machine has no such address"),
        ("127.0.0.1:0", "port 0 is a different one for every worker"),
        (f"unix:{tmp_path}/file", "a file that is no socket is there"),
        (f"unix:{tmp_path}/missing/socket", "no socket can be made in"),
    ]:
        with pytest.raises(ports.CannotListen, match=advice):
            ports.check(bind, wait_s=0.0)


def test_a_socket_file_is_taken_unless_somebody_listens_on_it(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    ports.check(f"unix:{path}", wait_s=0.0)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        ports.check(f"unix:{path}", wait_s=0.0)
        listener.listen()

        with pytest.raises(ports.CannotListen, match="another process listens there"):
            ports.check(f"unix:{path}", wait_s=0.0)


def test_a_url_names_a_host_that_can_be_asked() -> None:
    assert ports.url("0.0.0.0:8080") == "http://127.0.0.1:8080"
    assert ports.url("[::]:8443", tls=True) == "https://[::1]:8443"
    assert ports.url("[::1]:80") == "http://[::1]:80"
    assert ports.url("unix:/run/collector.sock") == "unix:/run/collector.sock"
