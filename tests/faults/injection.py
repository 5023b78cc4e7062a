"""What is done to running processes and to the disks under them."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.services.child import wait_until
from tests.services.collector import RunningCollector

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to make system calls fail")


def children(pid: int) -> list[int]:
    """The processes that a process has started and that live; none when it is gone."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def master_of(collector: RunningCollector) -> int:
    """The parent of the HTTP workers; 0 while there is none."""
    assert collector.process is not None
    return next((each for each in children(collector.process.pid) if "http_server" in _command(each)), 0)


def flusher_of(collector: RunningCollector) -> int:
    """The flusher; 0 while there is none."""
    assert collector.process is not None
    return next((each for each in children(collector.process.pid) if " flush" in _command(each)), 0)


def workers_of(collector: RunningCollector) -> list[int]:
    """The HTTP workers."""
    return children(master_of(collector))


def worker_of(collector: RunningCollector) -> int:
    """The one HTTP worker, once it serves: the port is open before it has begun."""
    wait_until(lambda: collector.get("/livez")[0] == 200, 20, "the worker serves")
    (worker,) = workers_of(collector)
    return worker


def kill_everything(collector: RunningCollector) -> None:
    """SIGKILL to every process of a collector at once; they are gone when it returns."""
    assert collector.process is not None
    victims = [collector.process.pid]
    for pid in victims:  # grows while it is walked; who stands still starts no others meanwhile
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        victims += children(pid)
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    collector.process.wait(10)
    wait_until(lambda: not any(map(is_alive, victims)), 10, "all processes are gone")


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def traced(pid: int, log: Path, *arguments: str) -> Iterator[Path]:
    """Within it system calls of a process fail or are slow as the arguments tell strace; what was called is in ``log``.

    Calls are counted from here on, in each thread for itself.
    """
    command = ["strace", "-f", "-y", "-qq", "-o", str(log), "-p", str(pid), *arguments]
    with log.with_suffix(".err").open("wb") as errors:
        tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=errors)
    try:
        wait_until(lambda: tracer.poll() is not None or _tracer_of(pid) == tracer.pid, 10, "strace has begun")
        if tracer.poll() is not None:
            pytest.skip(f"strace may not trace: {log.with_suffix('.err').read_text().strip()}")
        yield log
    finally:
        tracer.terminate()
        tracer.wait(10)


def _tracer_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("TracerPid:"))


def injected(log: Path) -> int:
    """How many calls strace made fail or slow."""
    return log.read_text().count("(INJECTED)") + log.read_text().count("(DELAYED)")


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[Path]:
    """A filesystem at ``place``, with these arguments of mount; skips where that is not allowed."""
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(place)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        yield place
    finally:
        # The threads of a killed process let go of its files one by one.
        unmount = ["umount", str(place)]
        wait_until(lambda: subprocess.run(unmount, capture_output=True, check=False).returncode == 0, 10, "umount")


def make_filesystem(image: Path, kind: str, size_mib: int, *options: str) -> None:
    """Make an image of a filesystem; skips where its program is missing."""
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"needs mkfs.{kind}")
    with image.open("wb") as file:
        file.truncate(size_mib << 20)
    subprocess.run([f"mkfs.{kind}", "-q", *options, str(image)], check=True, capture_output=True)


def fill(path: Path) -> None:
    """Make ``path`` as large as the disk lets it be."""
    with path.open("ab", buffering=0) as file:
        for size in (1 << 16, 512, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue
