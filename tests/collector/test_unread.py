"""A request that came while the loop stood still is answered: nobody takes its connection for a silent one."""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop

from collector.entrance import open_entrance
from collector.environ import HTTP_11
from collector.http_protocol import Connection
from collector.hub import Hub
from collector.limits import Limits
from collector.metrics import Counters
from collector.scribe_connection import ScribeConnection
from collector.scribe_hub import ScribeHub
from collector.scribe_service import Answers, ScribeService
from collector.settings import load

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_NAME = b"\0\0\0\x14" + b"\x80\1\0\1\0\0\0\7getName\0\0\0\1\0"  # fb303's, in strict binary
LONG_S = 1000.0


def hello(_environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]


async def asked_late(
    hub: Any, make: Callable[[], asyncio.Protocol], request: bytes, look: Callable[[], None], before: bytes = b""
) -> bytes:
    """The reply to what was sent while the loop stood still, and before it read looked for who is silent."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(make, "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()) as client:
        while not hub.connections:
            await asyncio.sleep(0.001)
        client.sendall(before)
        await asyncio.sleep(0.05)  # it is read
        client.sendall(request)
        hub.now += LONG_S
        look()
        client.setblocking(False)
        return await asyncio.wait_for(loop.sock_recv(client, 4096), 10)


@pytest.mark.parametrize("ending", [True, False])
def test_http(ending: bool) -> None:
    async def run() -> bytes:
        hub = Hub(hello, Limits(), asyncio.get_running_loop(), None)
        look = partial(hub.close_quiet, 0.5) if ending else hub.check_timeouts
        return await asked_late(hub, partial(Connection, hub, {"SERVER_PROTOCOL": HTTP_11}), GET, look)

    assert uvloop.run(run()).endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize("sent", [GET[:9], b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab"])
def test_the_rest_of_a_request(sent: bytes) -> None:
    rest = b"cd" if sent.endswith(b"ab") else GET[9:]

    async def run() -> bytes:
        hub = Hub(hello, Limits(), asyncio.get_running_loop(), None)
        make = partial(Connection, hub, {"SERVER_PROTOCOL": HTTP_11})
        return await asked_late(hub, make, rest, hub.check_timeouts, before=sent)

    assert uvloop.run(run()).endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize("ending", [True, False])
def test_scribe(ending: bool, tmp_path: Path) -> None:
    spool = {"COLLECTOR_SPOOL__PATH": str(tmp_path / "spool"), "COLLECTOR_SPOOL__MIN_FREE_BYTES": "0"}
    settings = load(None, spool)
    entrance = open_entrance(settings, Counters.listen)
    service = ScribeService(Answers(0, dict, entrance.intake.refusal))

    async def run() -> bytes:
        loop = asyncio.get_running_loop()
        hub = ScribeHub(entrance.intake, entrance.counters, service, settings.scribe, loop)
        look = hub.close_quiet if ending else hub.check_timeouts
        return await asked_late(hub, partial(ScribeConnection, hub), GET_NAME, look)

    try:
        assert b"getName" in uvloop.run(run())
    finally:
        entrance.intake.close()
