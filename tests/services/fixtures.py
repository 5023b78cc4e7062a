"""Real servers as private children of the test run: one of each for the whole session."""

from collections.abc import Callable, Iterator

import pytest

from tests.services.hadoop import Hadoop
from tests.services.influx import Influx
from tests.services.mongo import Mongo
from tests.services.rabbit import Rabbit
from tests.services.seaweed import Seaweed
from tests.services.tcp_proxy import TcpProxy


@pytest.fixture(scope="session")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rabbit]:
    """A RabbitMQ. It takes 7 to 20 s to start; a test that kills it starts it again."""
    if not Rabbit.is_installed():
        pytest.skip("rabbitmq-server is not installed")
    server = Rabbit(tmp_path_factory.mktemp("rabbit"))
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture(scope="session")
def influx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Influx]:
    """An InfluxDB with the write endpoint of 2.x; each test takes a bucket of its own."""
    if not Influx.is_installed():
        pytest.skip("influxdb or nginx is not installed")
    server = Influx(tmp_path_factory.mktemp("influx"))
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture(scope="session")
def mongo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongo]:
    """A MongoDB; each test takes a database of its own, and leaves no failpoint on."""
    if not Mongo.is_installed():
        pytest.skip("SecantusDB is not installed")
    server = Mongo(tmp_path_factory.mktemp("mongo"))
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """An S3 with one bucket; each test takes a prefix of its own."""
    if not Seaweed.is_installed():
        pytest.skip("SeaweedFS is not installed")
    server = Seaweed(tmp_path_factory.mktemp("s3"))
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture(scope="session")
def hdfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hadoop]:
    """An HDFS of two servers, 5 to 15 s to start; each test takes a directory of its own."""
    if not Hadoop.is_installed():
        pytest.skip("Hadoop, or a library or Java that it needs, is not installed")
    server = Hadoop(tmp_path_factory.mktemp("hdfs"))
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def proxy_to() -> Iterator[Callable[[int], TcpProxy]]:
    """Makes a TcpProxy in front of a port."""
    proxies: list[TcpProxy] = []

    def make(port: int) -> TcpProxy:
        proxies.append(TcpProxy(port).start())
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()
