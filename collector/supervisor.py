"""`collector serve`: HTTP workers, listeners and the flusher as children of one small process.

A child that dies is started again, after 0.5 s at first and up to 30 s when it keeps dying. The supervisor
touches no event and no open segment, so it has nothing to lose: killed with -9 it takes its children along
(parent.py), and what they had answered is in the spool.

    signal         what happens
    SIGTERM, INT   the doors first: they answer what they have; then the flusher; within the time-out all are gone
    SIGHUP         settings are read again; sound ones reach HTTP by its own SIGHUP, the others by a restart
    SIGCHLD        a child ended

Why no threads: children are forked, and ask for their parent's death signal between fork and exec.
Why signals are blocked and waited for (sigtimedwait), not handled: nothing can interrupt the loop, so
there is no moment at which a signal is lost or comes twice.
"""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from collector import ports, systemd
from collector.children import Child, Patience, Program
from collector.settings import ScribeSettings, Settings, load
from collector.spool_door import open_spool
from collector.tables import SettingsError
from spool.directory import SpoolError

log = logging.getLogger(__name__)

SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})
PATIENCE = Patience()
STOP_MARGIN_S = 2.0  # beyond the graceful time-out of HTTP: the flusher's share, and gunicorn's own rounding
FAILED = 1
LOCKED = 75
BAD_SETTINGS = 78
#: glibc keeps what a tick of batches took and gave back, some MB, for the next tick. By itself it gives it back to the
#: system each time: pages that have to be found and cleared again, a tenth of the worker's work and more in a VM.
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(16 << 20), "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


class Supervisor:
    """Keeps programs running until it is told to stop.

    Owner: the main thread of a process without other threads; it waits for every child of that process.
    ``is_ready`` is asked until it says yes once; then ``on_ready`` is called.
    ``reread`` is asked at SIGHUP for the programs that are wanted from now on; None leaves everything as it is.
    ``on_stop`` is called when the end begins. The last program is stopped last.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        environ: Mapping[str, str],
        is_ready: Callable[[], bool],
        on_ready: Callable[[], None],
        reread: Callable[[], Sequence[Program] | None],
        on_stop: Callable[[], None] = lambda: None,
        patience: Patience = PATIENCE,
    ) -> None:
        self._programs = programs
        self._environ = environ
        self._is_ready = is_ready
        self._on_ready = on_ready
        self._reread = reread
        self._on_stop = on_stop
        self._patience = patience
        self._children: list[Child] = []
        self._ready = False
        self._watchdog_s = systemd.watchdog_interval_s()
        self._watchdog_at = 0.0

    def run(self) -> None:
        """Start the programs and keep them running until SIGTERM or SIGINT; when it returns they are gone."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._children = [Child(program, self._environ, self._patience, before) for program in self._programs]
            while (number := self._turn()) not in (signal.SIGTERM, signal.SIGINT):
                if number == signal.SIGHUP and (wanted := self._reread()) is not None:
                    self._reload(wanted, before)
            log.info("stopping", extra={"received": signal.Signals(number).name})
        finally:
            self._stop()
            while signal.sigtimedwait(SIGNALS, 0) is not None:
                continue  # told twice: the second must not kill us once the mask is gone
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _turn(self) -> int:
        """Do what is due, then wait for a signal or for the next thing to do; returns the signal's number or 0."""
        self._reap()
        now = time.monotonic()
        for child in self._children:
            if child.kill_at is not None and now >= child.kill_at:
                child.kill_at = None
                child.send(signal.SIGKILL)
            if child.start_at is not None and now >= child.start_at:
                child.start(now)
        if not self._ready and self._is_ready():
            self._ready = True
            systemd.notify("READY=1")
            self._on_ready()
        if self._watchdog_s is not None and now >= self._watchdog_at:
            self._watchdog_at = now + self._watchdog_s
            systemd.notify("WATCHDOG=1")
        received = signal.sigtimedwait(SIGNALS, self._wait_s())
        return received.si_signo if received is not None else 0

    def _wait_s(self) -> float:
        due = [at for child in self._children for at in (child.start_at, child.kill_at) if at is not None]
        if self._watchdog_s is not None:
            due.append(self._watchdog_at)
        wait = max(0.0, min(due) - time.monotonic()) if due else 3600.0
        return wait if self._ready else min(wait, self._patience.look_s)

    def _reap(self) -> None:
        """Wait for all that ended, adopted processes too: as process 1 of a container we are given those."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self._children:
                if child.process is not None and child.process.pid == pid:
                    child.process.returncode = os.waitstatus_to_exitcode(status)
                    child.ended(child.process.returncode, time.monotonic())
            self._children = [child for child in self._children if child.wanted or child.process is not None]

    def _reload(self, wanted: Sequence[Program], mask: set[int]) -> None:
        log.info("reloading")
        names = {program.name: program for program in wanted}
        running = {child.program.name for child in self._children if child.wanted}
        for child in self._children:
            child.wanted = child.wanted and child.program.name in names
            child.program = names.get(child.program.name, child.program)
            if child.program.reload is not None and child.wanted:
                child.send(child.program.reload)
            elif child.process is not None:
                child.stop(time.monotonic() + self._patience.stop_s)
            elif not child.wanted:
                child.start_at = None
        new = [program for program in wanted if program.name not in running]
        self._children[-1:-1] = [Child(program, self._environ, self._patience, mask) for program in new]

    def _stop(self) -> None:
        """Stop all children but the last, then that one; whatever is left at the time-out is killed."""
        self._on_stop()
        systemd.notify("STOPPING=1")
        end = time.monotonic() + self._patience.stop_s
        for child in self._children:
            child.may_end = True
        for some, until in ((self._children[:-1], end - self._patience.keep_s), (self._children[-1:], end)):
            for child in some:
                child.stop()
            self._await(some, until)
        for child in self._children:
            if child.process is not None:
                log.warning("did not stop in time and is killed", extra={"child": child.program.name})
                child.send(signal.SIGKILL)
        self._await(self._children, float("inf"))

    def _await(self, children: Sequence[Child], until: float) -> None:
        self._reap()
        while any(child.process for child in children) and (left := until - time.monotonic()) > 0:
            signal.sigtimedwait({signal.SIGCHLD}, min(left, 3600.0))
            self._reap()


class Doorstep:
    """The sockets that Scribe's clients connect to, held while listeners come and go: between two of them clients wait
    in the queue instead of being refused. A socket file is made anew when it has gone.
    """

    def __init__(self) -> None:
        self._bind: str | None = ""
        self._file: Path | None = None
        self._sockets: list[socket.socket] = []

    def move(self, settings: ScribeSettings) -> list[int]:
        """Hold what these settings want, and nothing else; returns descriptors. Errors: OSError: all is as before."""
        bind = settings.bind if settings.enabled else ""
        if self._file is not None and not self._file.exists():
            self._bind = self._file = None
        if bind != self._bind:
            sockets = ports.listeners(bind) if bind else []
            self.close()
            self._bind, self._sockets = bind, sockets
            self._file = Path(bind.removeprefix("unix:")) if bind.startswith("unix:") else None
        return [each.fileno() for each in self._sockets]

    def close(self) -> None:
        """Hold nothing; a listener that has them goes on."""
        for each in self._sockets:
            each.close()
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        self._bind, self._file, self._sockets = "", None, []


def programs(settings: Settings, listening: Sequence[int]) -> list[Program]:
    """What `collector serve` runs with these settings; the last is stopped last.

    ``listening``: descriptors of the sockets for Scribe.
    """
    python = [sys.executable, "-m"]
    bad_settings = "its settings will not do, as it says above; mend them and send SIGHUP to this process"
    return [
        Program(
            "http", [*python, "collector.http_server"], reload=signal.SIGHUP, meanings={BAD_SETTINGS: bad_settings}
        ),
        *(
            [
                Program(
                    "listen",
                    [*python, "collector", "listen", *(f"--descriptor={each}" for each in listening)],
                    meanings={BAD_SETTINGS: bad_settings},
                    descriptors=listening,
                )
            ]
            if settings.scribe.enabled
            else []
        ),
        Program(
            "flusher",
            [*python, "collector", "flush"],
            meanings={
                LOCKED: "another flusher works on this spool; events are taken, and forwarded by that one",
                BAD_SETTINGS: bad_settings,
            },
        ),
    ]


def serve(settings: Settings, config_path: Path | None) -> int:
    """Run the collector until it is told to stop; returns the exit code."""
    try:
        open_spool(settings.spool)
        for bind in settings.http.binds + ([settings.scribe.bind] if settings.scribe.enabled else []):
            ports.check(bind)
        doorstep = Doorstep()
        listening = doorstep.move(settings.scribe)
    except (SpoolError, ports.CannotListen, OSError) as exc:
        print(f"collector serve: {exc}", file=sys.stderr)
        return FAILED
    environ = _MALLOC | {name: value for name, value in os.environ.items() if name not in systemd.VARIABLES}
    if config_path is not None:
        environ["COLLECTOR_CONFIG"] = str(config_path)
    bind = settings.http.binds[0]
    Supervisor(
        programs(settings, listening),
        environ=environ,
        is_ready=lambda: ports.speaks_http(bind, tls=bool(settings.http.certfile)),
        on_ready=lambda: print(_welcome(settings), flush=True),
        reread=lambda: _reread(config_path, doorstep),
        on_stop=doorstep.close,
        patience=Patience(stop_s=settings.http.graceful_timeout_s + STOP_MARGIN_S),
    ).run()
    return 0


def _reread(config_path: Path | None, doorstep: Doorstep) -> list[Program] | None:
    """What is to run with the settings as they are now; None when they will not do, which is said."""
    try:
        settings = load(config_path, os.environ)
        return programs(settings, doorstep.move(settings.scribe))
    except OSError as exc:
        log.error("settings not reloaded", extra={"reason": f"scribe.bind: {exc}"})
        return None
    except SettingsError as exc:
        for error in exc.errors:
            log.error("settings not reloaded", extra={"reason": error})
        return None


def _welcome(settings: Settings) -> str:
    """What a person wants to know first: where it listens, where events go, what to try."""
    tls = bool(settings.http.certfile)
    urls = [ports.url(bind, tls=tls) for bind in settings.http.binds]
    goals = [
        f"{each.name} ({each.own.path})" if hasattr(each.own, "path") else each.name for each in settings.forwarders
    ]
    if settings.scribe.enabled:
        urls.append(f"{settings.scribe.bind} (Scribe)")
    door = urls[0]
    if door.startswith("unix:"):
        door = f"--unix-socket {door.removeprefix('unix:')} http://localhost"
    return "\n".join(
        (
            f"listening on  {' '.join(urls)}",
            f"events go to  {', '.join(goals) or 'no forwarder is configured: they stay in the spool'}",
            f"by way of     {settings.spool.path}",
            f"try           curl -i {door}/1 -G -d v=Hello,sWorld",
        )
    )
