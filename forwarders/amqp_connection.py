"""How to reach a RabbitMQ: one address or several, credentials, TLS, heartbeats, and what the connection is called."""

import logging
import ssl
from collections.abc import Sequence
from pathlib import Path

import pika
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker


def check_url(url: str) -> None:
    """ValueError without a word of what is in it: a password with a / in it may be anywhere."""
    try:
        pika.URLParameters(url)
        is_amqp = url.startswith(("amqp://", "amqps://"))
    except (ValueError, TypeError):
        is_amqp = False
    if not is_amqp:
        raise ValueError("url: expected amqp[s]://user:password@host:port/vhost, each part percent-encoded")


def check_urls(urls: str | Sequence[str]) -> None:
    """The same for one, or for each of several."""
    for url in as_list(urls) or [""]:
        check_url(url)


def as_list(urls: str | Sequence[str]) -> list[str]:
    """The addresses in the order in which they are tried, whichever way they were written."""
    return [urls] if isinstance(urls, str) else list(urls)


def read_urls(urls: str | Sequence[str], url_file: Path | None) -> list[str]:
    """The addresses: those in the file, one a line, if there is one.

    Errors: OSError for a file that cannot be read, ValueError for one that does not hold what it should.
    """
    if url_file is None:
        return as_list(urls)
    lines = url_file.read_text().split()
    check_urls(lines)
    return lines


def connection_parameters(
    url: str, *, ca_file: Path | None, timeout_s: float, heartbeat_s: int, connection_name: str
) -> pika.connection.Parameters:
    """What pika needs for one attempt to connect to one address. Errors: OSError for a ``ca_file`` that is not there.

    ``ca_file``: who has signed the broker's certificate; None: the system's authorities.
    """
    parameters = pika.URLParameters(url)
    if url.startswith("amqps://"):
        context = ssl.create_default_context(cafile=ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        parameters.ssl_options = pika.SSLOptions(context, parameters.host)
    parameters.connection_attempts = 1
    parameters.socket_timeout = parameters.stack_timeout = timeout_s
    parameters.heartbeat = heartbeat_s
    parameters.blocked_connection_timeout = None
    parameters.client_properties = {"connection_name": connection_name}
    # pika logs a lost connection as half a dozen errors; Unavailable says it once.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    return parameters


def address(parameters: pika.connection.Parameters) -> str:
    """What reasons call a broker: host and port, never the credentials."""
    return f"rabbitmq {parameters.host}:{parameters.port}"


def describe(reason: BaseException) -> str:
    """One line about why a connection or a channel ended. pika's texts hold addresses, never credentials."""
    if isinstance(reason, ChannelClosedByBroker | ConnectionClosedByBroker):
        return f"{reason.reply_code} {reason.reply_text}"
    inner = [*getattr(reason, "exceptions", ()), getattr(reason, "exception", None), *reason.args]
    cause = next((each for each in reversed(inner) if isinstance(each, BaseException)), None)
    return describe(cause) if cause else " ".join(f"{type(reason).__name__}: {reason}".split())
