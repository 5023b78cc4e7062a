"""A gunicorn worker class for collecting: ``worker_class = "collector.worker.Worker"``.

uvloop and httptools read HTTP/1.1, the WSGI application is called inline, and the replies of one loop tick wait
for that tick's commit (hub.py). It takes any WSGI application; one that has ``commit`` is asked to defer.

    gunicorn master ── fork ── Worker: one event loop
                                 Listeners ── Connection … Connection
                                                   └──── Hub ────┘ ── application

What it takes from gunicorn: bind (several, unix sockets too), backlog, workers, timeout, graceful_timeout,
max_requests and jitter, keepalive, limit_request_line, limit_request_fields, certfile, keyfile, ca_certs, ciphers,
ssl_context, accesslog, reload and all hooks. Other limits come from ``app.limits`` (limits.py).
What it does not do: HTTP/2, PROXY protocol, ``secure_scheme_headers``, streaming a reply before it is complete.

Ends: SIGTERM (and HUP), max_requests or a master that is gone: gracefully. New connections are steered to other
workers, every request that has been sent is answered with ``Connection: close``, idle connections are closed,
then ``app.close()``; all within graceful_timeout. SIGQUIT and SIGINT: what has been read is committed, nothing
waits. SIGABRT, from a master that takes the loop for stalled: at once.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import uvloop
from gunicorn.http.wsgi import base_environ
from gunicorn.sock import ssl_context
from gunicorn.workers import base

from collector.access import AccessLog
from collector.environ import Environ, server_environ
from collector.http_protocol import Connection
from collector.hub import Hub
from collector.limits import effective_limits
from collector.listeners import DRAIN_S, HANDSHAKE_S, Listeners
from collector.stand_in import StandIn

log = logging.getLogger(__name__)

MAINTAIN_S = 0.1
NOTIFY_EVERY = 5  # maintenance rounds
SWEEP_EVERY = 10
POLL_S = 0.02
CLOSE_S = 1.0  # of graceful_timeout, kept for the last commit and app.close()
ENDING = {signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT}

# A new worker begins with the handlers of the master, which would take a signal to end and forget it: so these wait
# from before the fork (`Worker.__init__`) until it has handlers of its own, and in the master until it has forked.
os.register_at_fork(after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING))


class Worker(base.Worker):  # type: ignore[misc]  # gunicorn has no types
    """One worker process. Everything happens on its loop, but for large bodies and waiting for the disk."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)

    def init_process(self) -> None:
        for number in ENDING:
            quick = number in (signal.SIGQUIT, signal.SIGINT)
            signal.signal(number, self.handle_quit if quick else self.handle_exit)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        self._loop = uvloop.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._wake = asyncio.Event()
        self._quick = False
        self._aborted = False
        self._rounds = 0
        self._maintained = True
        self._listeners = Listeners([sock.sock for sock in self.sockets], backlog=self.cfg.backlog)
        if self.cfg.workers > 1 and not self.cfg.reuse_port:
            self._listeners.bind_own()  # before privileges are dropped
        super().init_process()

    def init_signals(self) -> None:
        """As gunicorn's workers, until the loop runs: uvloop forgets a signal that comes earlier."""
        super().init_signals()
        signal.set_wakeup_fd(-1)  # the loop sets its own
        signal.signal(signal.SIGHUP, self.handle_exit)

    def _take_signals(self) -> None:
        """Let the loop handle signals, but SIGABRT: the loop is stalled then."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._loop.add_signal_handler(number, self._stop)
        for number in (signal.SIGQUIT, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop_quickly)
        self._loop.add_signal_handler(signal.SIGUSR1, self.log.reopen_files)

    def handle_abort(self, sig: int, frame: object) -> None:
        """The master gave up on us."""
        self._aborted = True
        self.alive = False
        self.cfg.worker_abort(self)
        sys.exit(1)

    def _stop(self) -> None:
        self.alive = False
        self._wake.set()

    def _stop_quickly(self) -> None:
        if not self._quick:
            self._quick = True
            self._stop()
            self.cfg.worker_int(self)

    def run(self) -> None:
        """Serve until told to end."""
        app = self.wsgi
        limits = effective_limits(app, self.cfg)
        access = AccessLog(self.log) if self.log.access_log_enabled else None
        self._hub = Hub(app, limits, self._loop, access)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            if not self._aborted:
                if not self._hub.finish(CLOSE_S):
                    log.error("ended while the disk did not answer: what is open is left to recovery")
                elif hasattr(app, "close"):
                    app.close()
            self._hub.bodies.stop()

    async def _serve(self) -> None:
        self._take_signals()
        tls = ssl_context(self.cfg) if self.cfg.is_ssl else None
        await self._listeners.serve(self._connections, tls, self._hub.limits.header_timeout_s)
        self._maintain()
        stand_in = StandIn(self._hub, [(sock, self._environ(sock), make) for sock, make in self._listeners.doors()])
        await self._wake.wait()
        stand_in.stop()
        if not self._quick:
            await self._drain()

    def _environ(self, sock: socket.socket) -> Environ:
        return {**base_environ(self.cfg), **server_environ(sock, tls=False)}

    def _connections(self, server: Environ) -> Callable[[], Connection]:
        """What makes the connections of one listening socket."""
        return partial(Connection, self._hub, {**base_environ(self.cfg), **server})

    def _maintain(self) -> None:
        """Every 0.1 s: the clock, the application's own upkeep, and now and then timeouts and signs of life."""
        hub = self._hub
        hub.beat(time.time())
        try:
            hub.maintain()
            self._maintained = True
        except Exception:
            if self._maintained:  # said once, not ten times a second, until it works again
                log.exception("maintenance failed")
            self._maintained = False
        if self._rounds % NOTIFY_EVERY == 0:
            self.notify()
            if self.alive and self._is_orphan():
                log.warning("the master is gone")
                self.alive = False
        if self._rounds % SWEEP_EVERY == 0:
            hub.check_timeouts()
        if hub.served >= self.max_requests and self.alive:
            log.info("max_requests reached", extra={"requests": hub.served})
            self.alive = False
        if not self.alive:
            self._wake.set()
        self._rounds += 1
        self._loop.call_later(MAINTAIN_S, self._maintain)

    def _is_orphan(self) -> bool:
        """Whether the master is gone; another may want the address at once then."""
        return os.getppid() != int(self.ppid)

    async def _drain(self) -> None:
        """Answer what has been sent, within graceful_timeout."""
        hub, loop = self._hub, self._loop
        began = loop.time()
        deadline = began + max(self.cfg.graceful_timeout - CLOSE_S, self.cfg.graceful_timeout / 2)
        hub.stopping = True
        end = min(began + DRAIN_S, deadline)
        while not self._quick and not self._is_orphan() and loop.time() < end:
            self._listeners.steer_away()
            if loop.time() >= end - HANDSHAKE_S:
                self._listeners.shut()
            await asyncio.sleep(POLL_S)
        await self._listeners.close()
        while not self._quick and hub.is_busy() and loop.time() < deadline:
            hub.close_quiet(DRAIN_S)
            await asyncio.sleep(POLL_S)
        if hub.is_busy() and not self._quick:
            log.warning("connections cut off at the end of graceful_timeout", extra={"count": len(hub.connections)})
