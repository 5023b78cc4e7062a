"""A forwarder that writes down what it is sent, and that some events break; another process can make it too."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from formats.event import Event
from forwarders.contract import Refused, Unavailable


class Deadly:
    """Appends ids to a file. The name of an event says what it does instead: "kill", "raise", "later" or "never"."""

    identical_repeats = True

    def __init__(self, path: Path) -> None:
        self.name = "deadly"
        self._path = path

    def send(self, batch: Sequence[Event]) -> None:
        names = [event.name for event in batch]
        if "kill" in names:
            os.kill(os.getpid(), signal.SIGKILL)
        if "raise" in names:
            raise ValueError("not this one")
        if "later" in names:
            raise Unavailable("come back", 7.5)
        with self._path.open("a") as file:
            file.writelines(f"{event.id}\n" for event in batch if event.name != "never")
        if "never" in names:
            raise Refused([at for at, name in enumerate(names) if name == "never"], "not that: \ud800")

    def close(self) -> None:
        with self._path.open("a") as file:
            file.write("closed\n")


def cannot_be_made(path: Path) -> Deadly:
    raise PermissionError(path)
