"""Compact archives beside the flusher, again and again, as ``compact`` in their settings says.

Each time is a process of its own (`collector archive compact`): what it decodes and compresses takes no time from the
threads that forward, its memory goes with it, and a fault in it is not ours. It goes on when the flusher is killed; a
second one finds the lock taken.

It looks at the hours that have become due within the last two days; once a day, and the first time, at all of them: for
events that came later than that.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from collector.settings import Settings
from forwarders.archive import Settings as ArchiveSettings

log = logging.getLogger(__name__)

_NICE: Final = 10
_LOCKED: Final = 75
_END_S: Final = 1.0
_POLL_S: Final = 0.2
_SHOWN: Final = 5
_LATE_S: Final = 2 * 86_400.0
_ALL_EVERY_S: Final = 86_400.0


@contextmanager
def compacting(settings: Settings) -> Iterator[None]:
    """Compact for as long as the context lasts."""
    stop = threading.Event()
    scheduled = [
        (command_for(settings, each.name), each.own)
        for each in settings.forwarders
        if isinstance(each.own, ArchiveSettings) and each.own.compact != "off" and each.flush.enabled
    ]
    threads = [threading.Thread(target=_run, args=(*each, stop), daemon=True) for each in scheduled]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(_END_S)


def command_for(settings: Settings, forwarder: str) -> list[str]:
    """What is run for one forwarder."""
    config = ["--config", str(settings.path)] if settings.path else []
    return [sys.executable, "-m", "collector", *config, "archive", "compact", "--forwarder", forwarder, "--json"]


def choice_for(own: ArchiveSettings, now_s: float) -> list[str]:
    """The options for the hours that have become due lately."""
    return ["--since", str(max(0, int((now_s - own.compact_after_s - _LATE_S) * 1000)))]


def _run(command: Sequence[str], own: ArchiveSettings, stop: threading.Event) -> None:
    all_at = time.monotonic()
    while not stop.wait(own.compact_every_s):
        all_of_it = time.monotonic() >= all_at
        choice = [] if all_of_it else choice_for(own, time.time())
        try:
            exit_code, answer = _once([*command, *choice], stop)
        except OSError as exc:  # no memory, no process to be had, or no program while it is being replaced
            log.error("archive not compacted", extra={"error": str(exc)})
            continue
        if all_of_it and exit_code != _LOCKED:
            all_at = time.monotonic() + _ALL_EVERY_S
        left: list[str] = []
        with contextlib.suppress(ValueError, LookupError, TypeError):  # it was killed, or is of another version
            done = json.loads(answer)
            left = done["left"]
            if done["directories"]:
                log.info("archive compacted", extra={key: done[key] for key in ("directories", "files", "events")})
        if left:
            log.error("archive not compacted in places", extra={"places": len(left), "first": left[:_SHOWN]})
        elif exit_code not in (0, _LOCKED) and not stop.is_set():
            log.warning("archive not compacted", extra={"exit_code": exit_code})


def _once(command: Sequence[str], stop: threading.Event) -> tuple[int, bytes]:
    """The exit code and answer of a compaction; it is interrupted, as it can be at any moment, when the flusher stops.

    Errors: OSError, it could not be started.
    """
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:  # noqa: S603  our own
        with contextlib.suppress(OSError):  # it has ended
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
        while True:
            try:
                answer = process.communicate(timeout=_POLL_S)[0]
                return process.returncode, answer
            except subprocess.TimeoutExpired:
                if stop.is_set():
                    process.terminate()
