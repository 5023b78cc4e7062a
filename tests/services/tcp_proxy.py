"""A TCP proxy that does to a connection what networks do: swallow, reset, cut in the middle.

It runs in a thread of its own, so that a test which blocks in send() can have it changed by another thread.
"""

import asyncio
import socket
import struct
import threading
from typing import Self


class TcpProxy:
    """In front of one server on 127.0.0.1.

    ``blackhole``: connections stay open and deliver nothing, in both directions.
    ``refuse``: new connections are reset at once.
    ``cut_after_bytes``: a connection is reset after that many bytes from the server; what the client asked
    for may have been done, and its answer is lost.
    ``accepted``: connections so far.
    """

    def __init__(self, port: int) -> None:
        self.blackhole = False
        self.refuse = False
        self.cut_after_bytes: int | None = None
        self.accepted = 0
        self._server_port = port
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()

    def start(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        assert not self._thread.is_alive()

    def reset_all(self) -> None:
        """Reset every open connection."""
        done = threading.Event()

        def reset() -> None:
            for pair in list(self._pairs):
                for writer in pair:
                    _reset(writer)
            done.set()

        self._loop.call_soon_threadsafe(reset)
        assert done.wait(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)

        async def listen() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = int(server.sockets[0].getsockname()[1])
            self._ready.set()

        self._loop.run_until_complete(listen())
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refuse:
            _reset(writer)
            return
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            _reset(writer)
            return
        pair = (writer, server_writer)
        self._pairs.add(pair)
        try:
            await asyncio.gather(
                self._pump(reader, server_writer, pair, False),
                self._pump(server_reader, writer, pair, True),
                return_exceptions=True,
            )
        finally:
            self._pairs.discard(pair)
            for each in pair:
                each.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        from_server: bool,
    ) -> None:
        total = 0
        while data := await reader.read(65536):
            while self.blackhole:
                await asyncio.sleep(0.02)
            total += len(data)
            if from_server and self.cut_after_bytes is not None and total > self.cut_after_bytes:
                for each in pair:
                    _reset(each)
                return
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, as a server does that has lost its state."""
    plug = writer.get_extra_info("socket")
    if plug is not None:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
