"""A private RabbitMQ as a child process, and what the tests ask of it.

Debian's package is enough; nothing under /etc/rabbitmq or /var/lib/rabbitmq is read or written. The node has an
epmd of its own in the foreground, because one that Erlang starts by itself outlives the tests.
"""

import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Self

import pika
from pika.adapters.blocking_connection import BlockingChannel

from tests.services.certificates import make_certificate
from tests.services.child import free_port, start, wait_for_port, wait_until, wait_until_gone

# The script in /usr/sbin changes to the user rabbitmq and to the system's directories.
PROGRAMS = Path("/usr/lib/rabbitmq/bin")
PROGRAM = PROGRAMS / "rabbitmq-server"

CONFIGURATION = """\
listeners.tcp.1 = {host}:{port}
listeners.ssl.1 = 127.0.0.1:{tls_port}
ssl_options.certfile = {base}/tls.crt
ssl_options.keyfile = {base}/tls.key
ssl_options.verify = verify_none
ssl_options.versions.1 = tlsv1.2
max_message_size = {max_message_bytes}
loopback_users = none
stream.listeners.tcp.1 = 127.0.0.1:{stream_port}
stream.listeners.ssl.1 = 127.0.0.1:{stream_tls_port}
stream.advertised_host = 127.0.0.1
stream.advertised_port = {stream_port}
log.console = true
log.console.level = warning
log.file = false
"""


class Rabbit:
    """One node in ``base``. ``start()`` after ``kill()`` starts it again on the same data.

    ``host``: where it listens; beyond loopback only in a network that nobody else is in: the user is guest.
    """

    def __init__(self, base: Path, max_message_bytes: int = 1024 * 1024, *, host: str = "127.0.0.1") -> None:
        self.base = base
        self.port, self.tls_port, self.stream_port, self.stream_tls_port = (free_port() for _ in range(4))
        self.epmd_port, distribution_port = free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/%2f"
        self.stream_url = f"rabbitmq-stream://guest:guest@127.0.0.1:{self.stream_port}/%2f"
        self.certificate = base / "tls.crt"
        self.process: subprocess.Popen[bytes] | None = None
        self.epmd: subprocess.Popen[bytes] | None = None
        self._log = base / "rabbit.log"
        self._pid_file = base / "rabbit.pid"
        (base / "home").mkdir(parents=True)
        (base / "rabbitmq.conf").write_text(
            CONFIGURATION.format(
                base=base,
                host=host,
                port=self.port,
                tls_port=self.tls_port,
                stream_port=self.stream_port,
                stream_tls_port=self.stream_tls_port,
                max_message_bytes=max_message_bytes,
            )
        )
        (base / "enabled_plugins").write_text("[rabbitmq_stream].\n")
        make_certificate(self.certificate, base / "tls.key")
        self._environ = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(base / "home"),
            "RABBITMQ_NODENAME": f"t{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": host,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_MNESIA_BASE": str(base / "mnesia"),
            "RABBITMQ_LOG_BASE": str(base / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(self._pid_file),
            "RABBITMQ_CONFIG_FILE": str(base / "rabbitmq"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(base / "advanced"),
            "RABBITMQ_CONF_ENV_FILE": str(base / "environment"),  # does not exist: keeps /etc/rabbitmq out
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(base / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(base / "generated"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +sbwt none",
            "ERL_CRASH_DUMP": str(base / "erl_crash.dump"),
        }

    @staticmethod
    def is_installed() -> bool:
        return PROGRAM.exists() and all(shutil.which(program) for program in ("epmd", "openssl"))

    def start(self) -> Self:
        """Start it and wait until it takes connections, which is its last step of starting."""
        if self.epmd is None:
            command = ["epmd", "-address", "127.0.0.1", "-port", str(self.epmd_port)]
            self.epmd = start(command, self.base, self._environ, self._log)
            wait_for_port(self.epmd_port, self.epmd, self._log)
        self.process = start([str(PROGRAM)], self.base, self._environ, self._log)
        wait_for_port(self.port, self.process, self._log)
        for port in (self.tls_port, self.stream_port, self.stream_tls_port):
            wait_for_port(port, self.process, self._log)
        return self

    def kill(self) -> None:
        """SIGKILL: the broker, its shell and its helpers."""
        assert self.process is not None
        broker = int(self._pid_file.read_text())
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        wait_until_gone(broker)

    def close(self) -> None:
        """End it, politely if it listens."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        if self.epmd is not None:
            self.epmd.kill()
            self.epmd.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the broker's process: connections stay open and nothing answers."""
        broker = int(self._pid_file.read_text())
        os.kill(broker, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(broker, signal.SIGCONT)

    @contextmanager
    def alarm(self, resource: str) -> Iterator[None]:
        """Publishers are blocked for want of memory, or of ``disk``: streams do not mind the memory."""
        self.evaluate(f"rabbit_alarm:set_alarm({{{{resource_limit, {resource}, node()}}, []}}).")
        try:
            yield
        finally:
            self.evaluate(f"rabbit_alarm:clear_alarm({{resource_limit, {resource}, node()}}).")

    def evaluate(self, expression: str) -> None:
        """Run Erlang in the broker."""
        self.control("eval", expression)

    def memory_alarm(self) -> AbstractContextManager[None]:
        """For want of memory."""
        return self.alarm("memory")

    def control(self, *arguments: str) -> str:
        """rabbitmqctl, and what it says. Takes a second or two: it is an Erlang machine of its own that asks."""
        done = subprocess.run(
            [PROGRAMS / "rabbitmqctl", *arguments],
            env=self._environ,
            cwd=self.base,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def add_user(self, name: str, password: str) -> None:
        """A user who may do nothing at all in the virtual host /."""
        self.evaluate(
            f'rabbit_auth_backend_internal:add_user(<<"{name}">>, <<"{password}">>, <<"tests">>), '
            f'rabbit_auth_backend_internal:set_permissions(<<"{name}">>, <<"/">>, '
            '<<"^$">>, <<"^$">>, <<"^$">>, <<"tests">>).'
        )

    @contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        """A channel for the test itself."""
        connection = pika.BlockingConnection(pika.URLParameters(self.url))
        try:
            yield connection.channel()
        finally:
            connection.close()

    def drain(self, queue: str) -> list[tuple[pika.spec.Basic.GetOk, pika.BasicProperties, bytes]]:
        """Every message of a queue, taken out of it. The counters of a quorum queue are seconds behind."""
        messages = []
        with self.channel() as channel:
            for method, properties, body in channel.consume(queue, auto_ack=True, inactivity_timeout=0.5):
                if method is None:
                    return messages
                messages.append((method, properties, body))
        return messages

    def take(self, queue: str) -> list[tuple[pika.spec.Basic.GetOk, pika.BasicProperties, bytes]]:
        """As `drain`, of a queue with few messages to which no more come: it is not waited for them."""
        messages = []
        with self.channel() as channel:
            while (message := channel.basic_get(queue, auto_ack=True))[0] is not None:
                messages.append(message)
        return messages

    def read_stream(self, stream: str) -> list[tuple[pika.BasicProperties, bytes]]:
        """Every message of a stream, by AMQP 0.9.1, up to a mark that is put behind the last; they stay there."""
        messages = []
        mark = uuid.uuid4().hex
        with self.channel() as channel:
            channel.confirm_delivery()
            channel.basic_publish("", stream, b"", pika.BasicProperties(message_id=mark, app_id="mark"), mandatory=True)
            channel.basic_qos(prefetch_count=1000)
            for method, properties, body in channel.consume(stream, arguments={"x-stream-offset": "first"}):
                channel.basic_ack(method.delivery_tag)
                if properties.message_id == mark:
                    break
                if properties.app_id != "mark":
                    messages.append((properties, body))
        return messages

    def wait_for_queue(self, queue: str) -> None:
        """Right after a start a queue that exists may be answered with 404."""

        def is_there() -> bool:
            with self.channel() as channel:
                try:
                    channel.queue_declare(queue, passive=True)
                except pika.exceptions.ChannelClosedByBroker:
                    return False
            return True

        wait_until(is_there, 30, f"queue {queue} is there")
