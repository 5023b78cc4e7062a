"""One Scribe client's connection: frames in, replies in order out, time-outs, a clean end.

    frame   length i32 (big-endian), that many bytes: one Thrift message (formats/thrift_call.py)

Memory is taken for bytes that have come, never for what a length announces. Reading pauses while the helper thread has
a frame of this connection and while the client does not take its replies, so that replies keep their order.
"""

import asyncio
from typing import Any

from collector.scribe_hub import ScribeHub
from collector.unread import has_unread

_LENGTH_BYTES = 4


class ScribeConnection(asyncio.Protocol):
    """One client's connection.

    ``replies``: frames made and not yet sent, in order; the hub replaces those whose commit failed.
    """

    def __init__(self, hub: ScribeHub) -> None:
        self._hub = hub
        self._transport: Any = None
        self.client_ip = ""
        self.replies: list[bytes] = []
        self._unread = bytearray()
        self._since = hub.now  # when the frame that is coming began, or the silence
        self._busy = False  # the helper thread has a frame of ours
        self._write_paused = False
        self._reading = True
        self._dirty = False  # the hub knows that there are replies
        self._eof = False

    # The connection

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        peer = transport.get_extra_info("peername")
        if not self._hub.admit(self, str(peer[0]) if isinstance(peer, tuple) else ""):
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._hub.leave(self, len(self._unread))
        self._unread.clear()

    def eof_received(self) -> bool:
        """The client sends no more; what it has sent is still answered: True keeps the connection for that."""
        self._eof = True
        return self._busy or bool(self.replies)

    def pause_writing(self) -> None:
        self._write_paused = True
        self._since = self._hub.now
        self._set_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._since = self._hub.now
        self._take_frames()

    def close_quiet(self) -> None:
        """Close, if it is between two calls and nothing is left to send."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._busy or self._unread or self.replies:
            return
        if transport.get_write_buffer_size() == 0 and not has_unread(transport):
            transport.close()

    def close(self) -> None:
        """Close when everything written has gone."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # Reading

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if not self._unread:
            self._since = self._hub.now
        self._unread += data
        if self._hub.buffer(self, len(data)):
            self._take_frames()

    def _take_frames(self) -> None:
        """Hand on every frame that has come, as far as it is its turn."""
        unread, hub = self._unread, self._hub
        while self._transport is not None and not (self._busy or self._write_paused or self._transport.is_closing()):
            if len(unread) < _LENGTH_BYTES:
                break
            length = int.from_bytes(unread[:_LENGTH_BYTES], "big", signed=True)
            if not 0 < length <= hub.max_frame_bytes:
                hub.refuse(self, "a frame is larger than allowed, or the client sends none")
                break
            end = _LENGTH_BYTES + length
            if len(unread) < end:
                break
            with memoryview(unread) as view:
                frame = bytes(view[_LENGTH_BYTES:end])
            del unread[:end]
            self._since = hub.now
            hub.unbuffer(end)
            self._busy = hub.take(self, frame)
        self._set_reading()

    def _set_reading(self) -> None:
        reading = not (self._busy or self._write_paused)
        if reading != self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # Answering

    def reply(self, message: bytes | None) -> int:
        """Put a reply in its place among the others, and say which it is; None needs no place: -1."""
        if message is None:
            return -1
        self.replies.append(framed(message))
        if not self._dirty:
            self._dirty = True
            self._hub.touch(self)
        return len(self.replies) - 1

    def replace(self, position: int, message: bytes) -> None:
        """Put another reply in the place of one that has not been sent."""
        self.replies[position] = framed(message)

    def done(self) -> None:
        """The helper thread is done with our frame, and its reply has its place."""
        self._busy = False
        self._since = self._hub.now
        self._take_frames()
        if self._eof and not (self._busy or self.replies):
            self.close()

    def flush(self) -> None:
        """Send the replies; called at the end of a tick, when what they promise is committed."""
        self._dirty = False
        transport, replies = self._transport, self.replies
        if transport is not None and not transport.is_closing():
            transport.write(replies[0] if len(replies) == 1 else b"".join(replies))
            if self._eof and not self._busy:
                transport.close()
        replies.clear()

    def check_timeout(self, now: float) -> None:
        """End what takes too long."""
        hub, waited = self._hub, now - self._since
        if self._transport is None or self._busy:
            return
        if self._write_paused or self._transport.is_closing():
            if waited > hub.idle_timeout_s:
                self.abort()
        elif self._unread:
            if waited > hub.frame_timeout_s and not has_unread(self._transport):
                hub.refuse(self, "a frame came too slowly")
        elif waited > hub.idle_timeout_s and not has_unread(self._transport):
            self._transport.close()


def framed(message: bytes) -> bytes:
    """A message in its frame."""
    return len(message).to_bytes(_LENGTH_BYTES, "big") + message
