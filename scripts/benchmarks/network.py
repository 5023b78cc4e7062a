"""Machines that are network namespaces of this one: each with an address of its own on a bridge.

    this process (GATEWAY) -- bridge -- veth -- machine 1 (10.77.0.11)
                                   \\--- veth -- machine 2 (10.77.0.12)

All of it is in a namespace that nobody else sees, and vanishes with its processes. Needs root.
"""

import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

CLONE_NEWNET = 0x40000000
GATEWAY = "10.77.0.1"
NAMESPACE_MAX_S = 10


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """Within it this thread, and what it starts, are in a network of their own. Errors: RuntimeError."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(CLONE_NEWNET):
            raise RuntimeError(f"no namespace for a network (it needs root): {os.strerror(ctypes.get_errno())}")
        ip("link set lo up")
        ip("link add bridge type bridge")
        ip(f"addr add {GATEWAY}/24 dev bridge")
        ip("link set bridge up")
        yield
    finally:
        libc.setns(before, CLONE_NEWNET)
        os.close(before)


def ip(arguments: str, *, inside: int | None = None) -> None:
    """Run ip, in the network of the process ``inside``. Errors: RuntimeError."""
    enter = [] if inside is None else ["nsenter", "--net", "--target", str(inside)]
    done = subprocess.run([*enter, "ip", *arguments.split()], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {arguments}: {done.stderr.strip()}")


def address(number: int) -> str:
    """Of machine ``number``, from 1."""
    return f"10.77.0.{10 + number}"


def start_on_machine(number: int, command: Sequence[str], log: Path, cwd: Path) -> subprocess.Popen[bytes]:
    """Run a command on a new machine. Errors: RuntimeError."""
    wrapped = ["unshare", "--net", "sh", "-c", 'read -r _ && exec "$@"', "sh", *command]
    with log.open("wb") as output:
        process = subprocess.Popen(
            wrapped, cwd=cwd, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
        )
    own, deadline = os.readlink("/proc/thread-self/ns/net"), time.monotonic() + NAMESPACE_MAX_S
    while os.readlink(f"/proc/{process.pid}/ns/net") == own:
        if time.monotonic() > deadline or process.poll() is not None:
            raise RuntimeError(f"machine {number} has no network: {log.read_text()}")
        time.sleep(0.01)
    ip(f"link add machine{number} type veth peer name eth0 netns {process.pid}")
    ip(f"link set machine{number} master bridge")
    ip(f"link set machine{number} up")
    for each in ("link set lo up", f"addr add {address(number)}/24 dev eth0", "link set eth0 up"):
        ip(each, inside=process.pid)
    ip(f"route add default via {GATEWAY}", inside=process.pid)
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.close()
    return process
