"""A program that is to run for ever, and the process it has at the moment."""

import logging
import os
import random
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from collector.parent import end_with

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Program:
    """One thing to keep running.

    ``reload``:   the signal that makes it read its settings again; None: it is stopped and started.
    ``meanings``: what its exit codes say to a person.
    ``descriptors``: those of ours that it is given, with their numbers.
    """

    name: str
    command: Sequence[str]
    reload: signal.Signals | None = None
    meanings: Mapping[int, str] = field(default_factory=dict)
    descriptors: Sequence[int] = ()


@dataclass(frozen=True)
class Patience:
    """How long things may take, in seconds. A child that lived ``steady_s`` begins again at ``first_s``."""

    first_s: float = 0.5
    last_s: float = 30.0
    steady_s: float = 60.0
    stop_s: float = 10.0
    keep_s: float = 1.5  # of stop_s, for the children that are stopped after the first
    look_s: float = 0.1  # between two looks at whether it is ready

    def restart_s(self, failures: int) -> float:
        """How long to wait after the nth failure in a row, jittered so that machines do not restart in step."""
        longest = min(self.last_s, self.first_s * 2.0 ** min(failures, 16))
        return random.uniform(self.first_s, longest)  # noqa: S311


class Child:
    """One program and its process.

    Owner: the supervisor, which alone waits for processes and says so by `ended`.
    ``wanted``: False: it is to end, and not to be started again.
    ``start_at``, ``kill_at``: monotonic seconds; when it is to be started, or killed if it still runs.
    """

    def __init__(self, program: Program, environ: Mapping[str, str], patience: Patience, mask: set[int]) -> None:
        self.program = program
        self.process: subprocess.Popen[bytes] | None = None
        self.start_at: float | None = 0.0
        self.kill_at: float | None = None
        self.may_end = False
        self.wanted = True
        self._environ = environ
        self._patience = patience
        self._mask = mask
        self._started = 0.0
        self._failures = 0

    def start(self, now: float) -> None:
        """Start it; not being able to counts as a child that died."""
        self.start_at = None
        self.may_end = False
        self._started = now
        try:
            self.process = subprocess.Popen(  # noqa: S603
                self.program.command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                pass_fds=self.program.descriptors,
                process_group=0,  # Ctrl-C is for the supervisor, which stops its children in order
                preexec_fn=partial(_before_exec, os.getpid(), self._mask),
            )
        except (OSError, subprocess.SubprocessError) as exc:
            self._again(now, f"could not be started: {exc}")
        else:
            log.info("started", extra={"child": self.program.name, "child_pid": self.process.pid})

    def ended(self, code: int, now: float) -> None:
        """Take note that the process is gone, and of when to start the next."""
        self.process = self.kill_at = None
        if self.may_end:
            log.info("stopped", extra={"child": self.program.name, "status": self._describe(code)})
            self.start_at = now if self.wanted else None
        else:
            self._again(now, self._describe(code))

    def stop(self, kill_at: float | None = None) -> None:
        """Ask it to end; `kill_at` is when asking ends."""
        self.may_end = True
        self.kill_at = kill_at
        self.send(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        """Send a signal if it runs. Its pid stays its own until the supervisor has waited for it."""
        if self.process is not None:
            os.kill(self.process.pid, number)

    def _again(self, now: float, why: str) -> None:
        self._failures = 1 if now - self._started >= self._patience.steady_s else self._failures + 1
        delay = self._patience.restart_s(self._failures)
        self.start_at = now + delay
        log.error(
            "a child ended by itself and is started again",
            extra={"child": self.program.name, "status": why, "restart_in_s": round(delay, 1)},
        )

    def _describe(self, code: int) -> str:
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        meaning = self.program.meanings.get(code)
        return f"exit {code}: {meaning}" if meaning else f"exit {code}"


def _before_exec(parent: int, mask: set[int]) -> None:
    """In the child, between fork and exec.

    SIGKILL, because without the supervisor nobody insists: a child that is slow to stop would hold the
    spool's lock against its successor. What was answered with 202 is in the spool all the same.
    """
    end_with(parent, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
