"""A forwarder in a process of its own, for the flusher's lane as any other: ``process = true``.

    lane ── batch ─► OtherProcess ══ a pair of sockets ══► serve ─► the forwarder ─► its destination
                                  ◄═════ what became of it ═════

A client library that is written in Python keeps the interpreter for itself while it works, and the other forwarders'
threads wait; here only the events go across, packed. The lane keeps the books as ever: reading, cursor, quarantine.

    flusher to process     first what to make, by pickle; then each batch, msgpack: an array of events
    process to flusher     msgpack: first, and after each batch, an array that begins with one of

    "made"         identical_repeats
    "sent"
    "unavailable"  reason, retry_after_s
    "refused"      positions, reason
    "failed"       an exception that the contract does not know, as text

The process ends when its end of the pair does, after what it is sending, and at once when the thread dies that started
it. A process that dies while it sends has failed as a forwarder does that raises: its batch is tried again by the next
one, and in halves when that dies too, so that an event which kills it ends in quarantine.
"""

import pickle
import subprocess
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any, Final

import msgspec

from formats.event import Event
from forwarders.contract import Forwarder, Refused, Unavailable, why_not_made

END_S: Final = 2.0
STARTS: Final = 3

_encode = msgspec.msgpack.Encoder().encode
_decode_reply = msgspec.msgpack.Decoder(list[Any]).decode
_decode_batch = msgspec.msgpack.Decoder(list[Event]).decode


class ProcessFailed(Exception):
    """Its forwarder cannot be made, or raised what the contract does not know."""


class ProcessDied(Exception):
    """It is gone, and not because its work was over."""


class OtherProcess:
    """The lane's end. Used by one thread, which also starts the process.

    ``command`` is run with one more argument, the number of its descriptor, and calls `serve` with it.
    ``what`` makes the forwarder there; it is pickled.
    Errors: ProcessFailed when that fails, ProcessDied when it dies of it, several times.
    """

    def __init__(self, name: str, command: Sequence[str], what: object) -> None:
        self.name = name
        self._command = command
        for left in reversed(range(STARTS)):
            self._start()
            try:
                self.identical_repeats = bool(self._ask(pickle.dumps(what))[0])
                return
            except ProcessDied:
                if not left:
                    raise
            except BaseException:
                self.close()
                raise

    def _start(self) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  ours
                [*self._command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the flusher
            )

    def send(self, batch: Sequence[Event]) -> None:
        """See the contract; the time-out is the forwarder's own. Errors: ProcessFailed and ProcessDied, too."""
        self._ask(_encode(batch))

    def close(self) -> None:
        """End the process, after what it is sending."""
        self._pipe.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, message: bytes) -> list[Any]:
        try:
            self._pipe.send_bytes(message)
            kind, *rest = _decode_reply(self._pipe.recv_bytes())
        except (EOFError, OSError) as exc:
            self.close()
            code = self._process.returncode
            raise ProcessDied(f"by signal {-code}" if code < 0 else f"with exit code {code}") from exc
        if kind == "unavailable":
            raise Unavailable(*rest)
        if kind == "refused":
            raise Refused(*rest)
        if kind == "failed":
            raise ProcessFailed(*rest)
        return rest


def serve(descriptor: int, prepare: Callable[[Any], Callable[[], Forwarder]]) -> None:
    """The other end: send batches until the flusher's end is closed.

    ``prepare`` is given what `OtherProcess` was given, and returns what makes the forwarder.
    """
    with Connection(descriptor) as pipe:
        try:
            forwarder = prepare(pickle.loads(pipe.recv_bytes()))()  # noqa: S301  from our own parent
        except EOFError:
            return
        except Exception as exc:  # noqa: BLE001  the flusher says it, as of a forwarder in its own process
            pipe.send_bytes(_encode(["failed", _text(why_not_made(exc))]))
            return
        try:
            pipe.send_bytes(_encode(["made", forwarder.identical_repeats]))
            while True:
                try:
                    batch = _decode_batch(pipe.recv_bytes())
                except EOFError:
                    return
                pipe.send_bytes(_encode(_outcome(forwarder, batch)))
        except BrokenPipeError:
            return
        finally:
            forwarder.close()


def _outcome(forwarder: Forwarder, batch: list[Event]) -> list[object]:
    try:
        forwarder.send(batch)
    except Unavailable as exc:
        return ["unavailable", _text(exc.reason), exc.retry_after_s]
    except Refused as exc:
        return ["refused", exc.positions, _text(exc.reason)]
    except Exception as exc:  # noqa: BLE001  see `OtherProcess`
        return ["failed", _text(f"{type(exc).__name__}: {exc}")]
    return ["sent"]


def _text(reason: str) -> str:
    """What msgpack can carry: a server's words may hold half of a surrogate pair."""
    return reason.encode(errors="backslashreplace").decode()
