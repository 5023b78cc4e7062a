"""One connection that publishes to a RabbitMQ stream, from connecting to its first failure.

Life:   connect, authenticate, make the stream if wanted, then one `publish` after the other. A failure ends it; whoever
        needs it again makes a new one.
Thread: rstream is asyncio, so the connection has a thread of its own with a loop in it, which also keeps the heartbeats
        while nobody publishes. `publish` and `close` hand it work and wait, never longer than their time-out.
Repeat: each `publish` is a publisher of its own to the broker, named by its caller. The broker remembers how far a
        publisher of that name has come (the 255 latest names of a stream), and confirms what is not beyond that without
        storing it again.
"""

import asyncio
import contextlib
import logging
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from rstream import schema
from rstream.client import Client
from rstream.exceptions import ServerError, StreamAlreadyExists

from forwarders.contract import Unavailable

T = TypeVar("T")

CLOSE_TIMEOUT_S = 2.0
ANSWER_GRACE_S = 5.0  # the loop keeps the time-out itself; this is for a loop that does not run
FRAME_MAX_BYTES = 64 * 1024 * 1024  # what we offer; RabbitMQ wants 1 MiB unless configured
FRAME_BYTES = 256 * 1024  # large enough to cost nothing, small enough that confirms come meanwhile
FRAME_HEAD_BYTES = 13  # size, key, version, publisher, count
MESSAGE_HEAD_BYTES = 12  # publishing id, size

_PUBLISHER = 1  # there is one at a time
_CODES = {each.code: each.__name__ for each in ServerError.__subclasses__()}


@dataclass(frozen=True)
class Address:
    """Where a broker is, and who we are. Its text is what reasons call it: never the credentials."""

    host: str
    port: int
    user: str
    password: str
    virtual_host: str
    tls: ssl.SSLContext | None

    def __str__(self) -> str:
        return f"rabbitmq stream {self.host}:{self.port}"


class StreamPublisher:
    """See the module. Used by one thread beside its own.

    ``arguments``: the stream is made with them when it is missing; None: it must be there.
    Errors: `open` and `publish` raise Unavailable, and then it is not to be used again but closed.
    """

    def __init__(
        self,
        address: Address,
        stream: str,
        arguments: Mapping[str, str] | None,
        *,
        heartbeat_s: int,
        connection_name: str,
    ) -> None:
        logging.getLogger("rstream").setLevel(logging.CRITICAL)  # Unavailable says it once
        self._stream = stream
        self._arguments = arguments
        self._address = address
        self._left = 0  # messages without a confirm
        self._count = 0
        self._failure = ""
        self._client = _Client(
            address.host,
            address.port,
            ssl_context=address.tls,
            frame_max=FRAME_MAX_BYTES,
            heartbeat=heartbeat_s,
            connection_name=connection_name,
            connection_closed_handler=lambda _: self._fail("the connection is lost"),
        )
        self._client.add_stream(stream)  # without one it would not tell that the connection is lost
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _, told: self._fail(f"{told.get('exception') or told['message']}"))
        self._settled: asyncio.Future[None] = self._loop.create_future()
        self._broken: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)
        self._thread.start()

    @property
    def is_usable(self) -> bool:
        """False once it has failed."""
        return not self._failure and self._client.is_connection_alive()

    @property
    def message_max_bytes(self) -> int:
        """What fits into one frame of this broker."""
        return (self._client.frame_max or FRAME_MAX_BYTES) - FRAME_HEAD_BYTES - MESSAGE_HEAD_BYTES

    def open(self, timeout_s: float) -> None:
        """Return when messages can be published."""
        self._wait(self._open(), timeout_s, lambda: f"not connected within {timeout_s:g} s")

    def publish(self, name: str, messages: Sequence[bytes], timeout_s: float) -> None:
        """Publish messages, none above `message_max_bytes`, and wait for all confirms.

        ``name`` stands for exactly these messages: what of them is there under this name is not stored again.
        """
        self._left = self._count = len(messages)

        def late() -> str:
            return f"{self._count - self._left} of {self._count} messages were confirmed within {timeout_s:.3g} s"

        self._wait(self._publish(name, messages), timeout_s, late)

    def close(self) -> None:
        """End the connection, politely when the broker answers. Doing it twice is harmless."""
        if self._thread.is_alive():
            ending = self._submit(self._close())
            try:
                ending.result(2 * CLOSE_TIMEOUT_S)
            except TimeoutError:
                ending.cancel()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_TIMEOUT_S)

    def _wait(self, work: Coroutine[Any, Any, None], timeout_s: float, late: Callable[[], str]) -> None:
        try:
            self._submit(self._unless_broken(work, timeout_s)).result(timeout_s + ANSWER_GRACE_S)
        except TimeoutError:
            self._failure = self._failure or late()
        except ServerError as exc:
            self._failure = f"{_words(type(exc).__name__)} (stream {self._stream})"
        except (OSError, AssertionError) as exc:  # rstream asserts what a broker should answer
            self._failure = self._failure or " ".join(f"{type(exc).__name__}: {exc}".split()).removesuffix(":")
        else:
            return
        raise Unavailable(self._failure)

    def _submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    # From here on: only in the thread of the connection.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        rest = asyncio.all_tasks(self._loop)
        for task in rest:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(asyncio.sleep(0), *rest, return_exceptions=True))
        self._loop.close()

    async def _unless_broken(self, work: Coroutine[Any, Any, None], timeout_s: float) -> None:
        """Errors: TimeoutError, ConnectionError; rstream does not tell those who wait that a connection is lost."""
        task = asyncio.ensure_future(work)
        await asyncio.wait({task, self._broken}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            raise ConnectionError(self._failure) if self._broken.done() else TimeoutError
        task.result()

    async def _open(self) -> None:
        client, address = self._client, self._address
        await client.start()
        client.add_handler(schema.Close, self._on_close, "reason")
        client.add_handler(schema.PublishConfirm, self._on_confirm)
        client.add_handler(schema.PublishError, self._on_error)
        client.add_handler(schema.MetadataUpdate, self._on_metadata_update)
        await client.authenticate(address.virtual_host, address.user, address.password)
        if self._arguments is not None:
            with contextlib.suppress(StreamAlreadyExists):
                await client.create_stream(self._stream, dict(self._arguments))

    async def _publish(self, name: str, messages: Sequence[bytes]) -> None:
        self._settled = self._loop.create_future()
        await self._client.declare_publisher(self._stream, name, _PUBLISHER)
        for frame in self._frames(messages):
            await self._client.send_publish_frame(frame)
            await asyncio.sleep(0)  # the confirms of those before
        await self._settled
        await self._client.delete_publisher(_PUBLISHER)

    def _frames(self, messages: Sequence[bytes]) -> Iterator[schema.Publish]:
        limit = min(FRAME_BYTES, self.message_max_bytes)
        frame: list[schema.Message] = []
        size = 0
        for number, message in enumerate(messages, 1):
            if frame and size + len(message) > limit:
                yield schema.Publish(publisher_id=_PUBLISHER, messages=frame)
                frame, size = [], 0
            frame.append(schema.Message(publishing_id=number, filter_value=None, data=message))
            size += len(message) + MESSAGE_HEAD_BYTES
        yield schema.Publish(publisher_id=_PUBLISHER, messages=frame)

    async def _close(self) -> None:
        self._failure = self._failure or "closed"
        with contextlib.suppress(OSError):  # it goes without a word
            await asyncio.wait_for(self._client.close(), CLOSE_TIMEOUT_S)
        self._client.abort()

    def _on_confirm(self, frame: schema.PublishConfirm) -> None:
        self._left -= len(frame.publishing_ids)
        if self._left <= 0 and not self._settled.done():
            self._settled.set_result(None)

    def _on_error(self, frame: schema.PublishError) -> None:
        code = frame.errors[0].response_code
        self._fail(f"{_words(_CODES.get(code, f'code {code}'))} (stream {self._stream})")

    def _on_metadata_update(self, _frame: schema.MetadataUpdate) -> None:
        self._fail(f"stream not available (stream {self._stream})")

    def _on_close(self, frame: schema.Close) -> None:
        self._fail(f"closed by the broker: {frame.reason}")

    def _fail(self, reason: str) -> None:
        """Let whoever waits fail. The first reason is the one that is told."""
        self._failure = self._failure or reason
        if not self._broken.done():
            self._broken.set_result(None)


class _Client(Client):  # type: ignore[misc]
    """rstream's connection, with a way to drop it: rstream keeps the socket of one that was lost."""

    def abort(self) -> None:
        writer = self._conn and self._conn._writer
        if writer is not None:
            writer.transport.abort()


def _words(name: str) -> str:
    """``StreamDoesNotExist`` in words."""
    return "".join(f" {each.lower()}" if each.isupper() else each for each in name).strip()
