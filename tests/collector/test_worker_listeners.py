"""The listening sockets of a worker, without gunicorn: who gets which connection."""

import asyncio
import errno
import select
import socket
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import uvloop

from collector.environ import Environ
from collector.listeners import Listeners


@pytest.fixture
def inherited() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        sock.listen(500)
        sock.setblocking(False)
        yield sock


class Worker:
    """Listeners that count connections by the socket they came through."""

    def __init__(self, inherited: socket.socket) -> None:
        self.listeners = Listeners([inherited], backlog=500)
        self.listeners.bind_own()
        self.accepted: Counter[str] = Counter()
        self._names = iter(("inherited", "own"))

    async def serve(self) -> None:
        await self.listeners.serve(self._factory, None, 10)

    def _factory(self, server: Environ) -> Callable[[], asyncio.Protocol]:
        name = next(self._names)

        def make() -> asyncio.Protocol:
            self.accepted[name] += 1
            return asyncio.Protocol()

        return make


def connect(inherited: socket.socket, count: int) -> list[socket.socket]:
    return [socket.create_connection(inherited.getsockname()) for _ in range(count)]


async def settle() -> None:
    await asyncio.sleep(0.05)


def test_connections_are_spread_over_the_sockets_of_all_workers(inherited: socket.socket) -> None:
    async def run() -> tuple[Worker, Worker]:
        workers = Worker(inherited), Worker(inherited.dup())
        for worker in workers:
            await worker.serve()
        clients = connect(inherited, 300)
        await settle()
        for client in clients:
            client.close()
        return workers

    first, second = uvloop.run(run())

    assert first.accepted.total() + second.accepted.total() == 300
    assert first.accepted["own"] > 50
    assert second.accepted["own"] > 50


def test_a_worker_that_ends_gets_no_new_connection_of_its_own(inherited: socket.socket) -> None:
    async def run() -> tuple[Worker, Worker]:
        ending, staying = Worker(inherited), Worker(inherited.dup())
        for worker in (ending, staying):
            await worker.serve()
        ending.listeners.steer_away()
        clients = connect(inherited, 100)
        await settle()
        for client in clients:
            client.close()
        return ending, staying

    ending, staying = uvloop.run(run())

    assert ending.accepted["own"] == staying.accepted["own"] == 0
    assert ending.accepted["inherited"] + staying.accepted["inherited"] == 100


def test_what_waits_in_the_queues_is_accepted_before_they_are_closed(inherited: socket.socket) -> None:
    async def run() -> Worker:
        worker = Worker(inherited)
        await worker.serve()
        clients = connect(inherited, 100)  # the loop has no chance to accept them
        await worker.listeners.close()
        await settle()
        for client in clients:
            client.close()
        return worker

    worker = uvloop.run(run())

    assert worker.accepted.total() == 100
    assert worker.accepted["own"] > 20


def test_who_comes_just_before_a_socket_is_closed_meets_the_others(inherited: socket.socket) -> None:
    """Another worker's end has undone the steering: half of them are sent to the socket that is about to be closed."""

    async def run() -> Worker:
        worker = Worker(inherited.dup())
        await worker.serve()
        worker.listeners.shut()
        clients = [socket.socket() for _ in range(40)]
        for client in clients:
            client.setblocking(False)
            assert client.connect_ex(inherited.getsockname()) == errno.EINPROGRESS
        await settle()
        assert 0 < worker.accepted["inherited"] < 40
        await worker.listeners.close()
        for client in clients:
            _, connected, _ = select.select([], [client], [], 10)
            assert connected
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            client.close()
        return worker

    assert uvloop.run(run()).accepted["own"] == 0


def test_after_one_worker_has_ended_the_others_share_again(inherited: socket.socket) -> None:
    async def run() -> tuple[Worker, Worker]:
        ending, staying = Worker(inherited.dup()), Worker(inherited)
        for worker in (ending, staying):
            await worker.serve()
        ending.listeners.steer_away()
        await ending.listeners.close()
        clients = connect(inherited, 100)
        await settle()
        for client in clients:
            client.close()
        return ending, staying

    ending, staying = uvloop.run(run())

    assert ending.accepted.total() == 0
    assert staying.accepted.total() == 100
    assert staying.accepted["own"] > 20


def test_an_address_that_cannot_be_shared_leaves_the_inherited_socket(
    inherited: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As when the master bound it for another user."""
    listeners = Listeners([inherited], backlog=10)
    monkeypatch.setattr(socket, "SO_REUSEPORT", socket.SO_KEEPALIVE)  # so that the bind fails

    listeners.bind_own()

    assert [record.getMessage() for record in caplog.records] == [
        "this worker shares the master's listening socket only"
    ]
