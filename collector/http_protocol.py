"""One HTTP/1.1 connection: requests handed to the application, replies in order, timeouts, a clean end.

    data_received → RequestParser → _serve: application → replies → Hub.end_tick: commit → flush

``phase`` says what a timeout means: IDLE between requests, HEAD and BODY inside one, LINGER after a reply that
closes the connection. What the client is still sending is then read for a moment and thrown away: closing at
once would send a reset, and with it the client loses the reply.

Reading pauses while the helper thread has a request of this connection (its pipeline waits, others go on) and
while the client does not read its replies.
"""

import asyncio
import io
import logging
from typing import Any

from collector.environ import Environ, peer_environ
from collector.http_parser import BAD_REQUEST, SLICE_BYTES, Refusal, RequestParser
from collector.hub import Hub
from collector.repeated_head import RepeatedHead, remember
from collector.replies import CONTINUE, UNAVAILABLE
from collector.unread import has_unread

log = logging.getLogger(__name__)

IDLE, HEAD, BODY, LINGER = range(4)

MANY_REQUESTS = 16  # in one slice; after so many it is other connections' turn
MISSES_MAX = 16  # then no head is remembered any more: this client has something new in each
REPEATED_IDLE_S = 2.0  # then the repeated head is forgotten: idle connections are many

TIMEOUT = "408 Request Timeout"


class Connection(asyncio.Protocol):
    """One client's connection.

    ``replies``: made and not yet sent, in order; the hub replaces those whose commit failed.
    ``closing``: the last reply closes the connection, and no further request is handled.
    """

    def __init__(self, hub: Hub, base: Environ) -> None:
        self._hub = hub
        self._base = base
        self._transport: Any = None
        self._parser: RequestParser
        self.replies: list[bytes] = []
        self.closing = False
        self._phase = IDLE
        self._since = hub.now  # when this phase began
        self._dirty = False  # the hub knows that there are replies
        self._busy = False  # the helper thread has a request of ours
        self._write_paused = False
        self._reading = True
        self._eof = False
        self._linger = False
        self._discarded = 0
        self._unfed: list[bytes | memoryview] = []  # read, but not yet parsed
        self._kept_alive = False
        self._misses = 0  # requests that were not like the one before
        self._repeated: RepeatedHead | None = None

    # The connection

    def connection_made(self, transport: Any) -> None:
        hub = self._hub
        self._transport = transport
        self._parser = RequestParser(hub, {**self._base, **peer_environ(transport.get_extra_info("peername"))})
        hub.connections.add(self)
        if len(hub.connections) > hub.max_connections:
            self._refuse(Refusal(UNAVAILABLE, "too many connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._hub.connections.discard(self)
        self.closing = True
        self._transport = None
        self._unfed.clear()
        self._parser.close()

    def eof_received(self) -> bool:
        """The client sends no more. What it has sent is still answered: True keeps the connection for that."""
        if self._phase == LINGER or self.is_quiet():
            return False
        self._eof = True
        self._go_on()
        return self._transport is not None and self._transport.can_write_eof()  # TLS cannot be half closed

    def pause_writing(self) -> None:
        self._write_paused = True
        self._since = self._hub.now
        self._set_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._resume()

    def is_quiet(self) -> bool:
        """Between two requests, and nothing left to send."""
        return (
            self._phase == IDLE
            and not (self._busy or self.closing or self._unfed or self.replies or self._parser.ready)
            and self._transport.get_write_buffer_size() == 0
        )

    def close_quiet(self, for_s: float) -> None:
        """Close, if it has been quiet for so long."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self.is_quiet() and self._hub.now - self._since >= for_s and self._is_silent():
            transport.close()

    def abort(self) -> None:
        """Drop the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # Reading

    def data_received(self, data: bytes) -> None:
        repeated = self._repeated
        if repeated is not None and self._phase == IDLE and self._reading and not self.closing:
            try:
                answer = repeated.answer(data)
            except Exception:  # the ordinary way has an answer for what cannot be handled
                log.exception("a shortcut failed")
                answer = None
            if answer is not None:
                self._since = self._hub.now
                held, reply = answer  # not *answer, which is slower
                self._answer(repeated.environ, held, reply, True, True)
                return
            environ = repeated.environ_of(data)
            if environ is not None:
                self._since = self._hub.now
                self._serve(environ, True)
                return
        if self._phase == LINGER:
            self._discard(len(data))
        elif self._unfed or not self._reading:
            self._unfed.append(data)  # it had been read when reading was paused
        elif not self.closing:
            self._feed(data)

    def _feed(self, data: bytes | memoryview) -> None:
        fresh = not self._parser.began
        if len(data) <= SLICE_BYTES:
            self._feed_slice(data, data if fresh else None)
            return
        view = memoryview(data)
        requests = 0
        while view and not self.closing:
            if self._busy or self._write_paused:
                self._unfed.insert(0, view)
                break
            whole = data if fresh and not requests and len(view) <= SLICE_BYTES else None
            requests += self._feed_slice(view[:SLICE_BYTES], whole)
            view = view[SLICE_BYTES:]
            if view and requests > MANY_REQUESTS:
                self._unfed.insert(0, view)
                self._hub.loop.call_soon(self._resume)
                break
        self._set_reading()

    def _feed_slice(self, piece: bytes | memoryview, whole: bytes | memoryview | None) -> int:
        """Parse it and handle the requests that are now complete; returns how many they are.

        ``whole``: what the first of them began with and the last ends with, if it has been here from the beginning.
        """
        parser = self._parser
        parser.feed(piece)
        requests = len(parser.ready)
        if parser.began:
            phase = BODY if parser.in_body else HEAD
            if phase != self._phase or requests:
                self._phase = phase
                self._since = self._hub.now
        else:
            self._phase = IDLE
            self._since = self._hub.now
            if requests == 1 and parser.ready[0][1] and isinstance(whole, bytes):
                self._remember(whole, parser.ready[0][0])
        self._go_on()
        return requests

    def _remember(self, request: bytes, environ: Environ) -> None:
        """Perhaps the next one has the same head."""
        self._misses += self._repeated is not None
        if self._kept_alive and self._misses < MISSES_MAX:  # many connections bring only one request
            self._repeated = remember(self._hub, request, environ)
        else:
            self._repeated = None
        self._kept_alive = True

    def _go_on(self) -> None:
        """Handle what has been parsed, as far as it is its turn."""
        parser = self._parser
        while parser.ready and not (self._busy or self._write_paused or self.closing):
            environ, keep_alive, body_bytes = parser.ready.popleft()
            if body_bytes > self._hub.limits.thread_body_bytes or (
                body_bytes and "HTTP_CONTENT_ENCODING" in environ  # 16 KiB of gzip may be 8 MiB of events
            ):
                self._hand_over(environ, keep_alive, body_bytes)
            else:
                self._serve(environ, keep_alive)
        if self._busy or self._write_paused or self.closing:
            return
        if parser.turned_away:
            self._turn_away(*parser.turned_away)
        elif parser.refusal:
            self._refuse(parser.refusal)
        elif self._eof and not self._unfed:
            if parser.began:
                self._refuse(Refusal(BAD_REQUEST, "the request ends too early"))
            else:
                self.closing = True
                self._touch()
        elif parser.wants_continue:
            parser.wants_continue = False
            if parser.body_bytes == 0:
                self.replies.append(CONTINUE)
                self._touch()

    def _resume(self) -> None:
        """Go on after a pause."""
        if self._transport is None:
            return
        self._since = self._hub.now
        self._go_on()
        while self._unfed and not (self._busy or self._write_paused or self.closing):
            self._feed(self._unfed.pop(0))
        self._set_reading()

    def _set_reading(self) -> None:
        reading = self.closing or not (self._busy or self._write_paused or self._unfed)
        if reading != self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # Answering

    def _serve(self, environ: Environ, keep_alive: bool) -> None:
        held, reply, stays = self._hub.call(environ, keep_alive)
        self._answer(environ, held, reply, stays, keep_alive)

    def _hand_over(self, environ: Environ, keep_alive: bool, body_bytes: int) -> None:
        """Let the helper thread do it; `answered` follows."""
        hub = self._hub
        if hub.bodies.submit(self, environ, keep_alive, body_bytes):
            self._busy = True
            self._set_reading()
        else:
            stays = keep_alive and hub.defers and not hub.stopping  # without an answer of the app's own it closes
            reply = hub.unavailable(environ, "too many large bodies are waiting", stays)
            self._answer(environ, [], reply, stays, keep_alive)

    def answered(self, environ: Environ, held: list[Any], reply: bytes, stays: bool, keep_alive: bool) -> None:
        """The helper thread is done with our request."""
        self._busy = False
        self._answer(environ, held, reply, stays, keep_alive)
        self._resume()

    def _turn_away(self, environ: Environ, reason: str) -> None:
        """Let the application answer a request whose body is not read."""
        hub = self._hub
        environ["wsgi.input"] = io.BytesIO()
        held, reply, _ = hub.call(environ, False)
        if held or reply[9:10] == b"2" or reply[9:12] == b"400":  # it changed its mind, and saw no body
            reply = hub.unavailable(environ, reason, False)
        self._answer(environ, [], reply, False, True)

    def _refuse(self, refusal: Refusal) -> None:
        environ = self._parser.environ
        self._answer(environ, [], self._hub.refuse(environ, *refusal), False, True)

    def _answer(self, environ: Environ, held: list[Any], reply: bytes, stays: bool, keep_alive: bool) -> None:
        """Put a reply in its place. ``keep_alive`` is what the client wanted, ``stays`` what it gets."""
        hub = self._hub
        self.replies.append(reply)
        hub.served += 1
        if held:
            hub.hold(self, environ, held, stays)
        if hub.access is not None:
            hub.access.note(environ, self.replies)
        if not stays:
            self.closing = True
            self._linger = keep_alive or bool(self._unfed) or self._parser.refusal is not None
        if not self._dirty:
            self._touch()

    def _touch(self) -> None:
        if not self._dirty:
            self._dirty = True
            self._hub.touch(self)

    def flush(self) -> None:
        """Send the replies; called at the end of a tick, when what they promise is committed."""
        self._dirty = False
        transport, replies = self._transport, self.replies
        if transport is None or transport.is_closing():
            replies.clear()
            return
        if replies:
            transport.write(replies[0] if len(replies) == 1 else b"".join(replies))
            replies.clear()
        if self.closing:
            self._since = self._hub.now
            if not self._linger or self._eof:
                transport.close()
                return
            self._phase = LINGER
            if transport.can_write_eof():
                transport.write_eof()
            self._set_reading()

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > self._hub.limits.linger_bytes:
            self._transport.close()

    def check_timeout(self, now: float) -> None:
        """End what takes too long."""
        limits, waited = self._hub.limits, now - self._since
        if self._write_paused or self._transport.is_closing():  # the client does not take what was written
            if waited > limits.idle_timeout_s:
                self.abort()
        elif self._phase == LINGER:
            if waited >= limits.linger_s:
                self._transport.close()
        elif self._busy or self.closing:
            return
        elif self._phase == IDLE:
            if waited > limits.idle_timeout_s and self._is_silent():
                self._transport.close()
            elif waited > REPEATED_IDLE_S:
                self._repeated = None
        elif self._phase == HEAD:
            if waited > limits.header_timeout_s and self._is_silent():
                self._refuse(Refusal(TIMEOUT, "the headers came too slowly"))
        else:
            body_timeout_s = limits.body_timeout_s + self._parser.body_bytes / limits.body_min_bytes_per_s
            if waited > body_timeout_s and self._is_silent():
                self._refuse(Refusal(TIMEOUT, "the body came too slowly"))

    def _is_silent(self) -> bool:
        return not has_unread(self._transport)
