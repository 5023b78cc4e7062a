"""Make a topology on a RabbitMQ, or look what is missing of it.

Declaring what is there and was made the same way changes nothing, so it may be done again at any time. AMQP has no way
to see bindings, or what is there beside the topology, or to change what was made differently: bindings and queues that
are not in the settings any more stay.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker

from forwarders.amqp_connection import address, describe
from forwarders.amqp_topology import NOT_FOUND, Binding, Exchange, Queue, Topology, explained
from forwarders.contract import Unavailable

State = Literal["there", "made", "missing", "bound", "unknown", "refused"]


@dataclass(frozen=True)
class Step:
    """What became of one thing. Of a binding nobody can say whether it was there: it is ``bound`` now.

    ``refused``: the broker does not let it be so; ``reason`` says why.
    """

    kind: str
    name: str
    state: State
    reason: str = ""


def apply(parameters: Sequence[pika.connection.Parameters], topology: Topology, *, dry_run: bool = False) -> list[Step]:
    """Make everything that is not there, on the first broker that can be reached; with ``dry_run`` only look.

    Errors: Unavailable, when none can be reached or the connection is lost.
    """
    connection = _connect(parameters)
    try:
        things: list[Exchange | Queue | Binding] = [*topology.exchanges, *topology.queues, *topology.bindings]
        return [_step(connection, each, dry_run) for each in things]
    except AMQPError as exc:
        raise Unavailable(describe(exc)) from exc
    finally:
        if connection.is_open:
            connection.close()


def _step(connection: Any, thing: Exchange | Queue | Binding, dry_run: bool) -> Step:
    if isinstance(thing, Binding):
        name = f"{thing.name} {thing.key}"
        if dry_run:
            return Step("binding", name, "unknown")
        _, refused = _refused(connection, thing.make)
        return Step("binding", name, "refused" if refused else "bound", refused)
    kind = "exchange" if isinstance(thing, Exchange) else "queue"
    code, refused = _refused(connection, thing.look)
    if code == NOT_FOUND and dry_run:
        return Step(kind, thing.name, "missing")
    if not refused or code == NOT_FOUND:  # where it is there nothing changes, and we are told if it is not the same
        _, refused = _refused(connection, thing.make)
    if refused:
        return Step(kind, thing.name, "refused", refused)
    return Step(kind, thing.name, "made" if code == NOT_FOUND else "there")


def _refused(connection: Any, ask: Callable[[Any], object]) -> tuple[int, str]:
    """Ask on a channel of its own, because a refusal closes it; (0, "") if it was not refused."""
    channel = connection.channel()
    try:
        ask(channel)
    except ChannelClosedByBroker as exc:
        return exc.reply_code, explained(exc.reply_code, describe(exc))
    channel.close()
    return 0, ""


def _connect(parameters: Sequence[pika.connection.Parameters]) -> Any:
    reasons = []
    for each in parameters:
        try:
            return pika.BlockingConnection(each)
        except (AMQPError, OSError) as exc:
            reasons.append(f"{address(each)}: {describe(exc)}")
    raise Unavailable("; ".join(reasons))
