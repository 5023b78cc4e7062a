"""Put an event worker together: its queue, its forwarder, the signals that end it, and where it says how it is."""

import contextlib
import dataclasses
import importlib
import logging
import signal
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from collector import ports
from collector.settings import FORWARDER_MODULES, Settings, SettingsError, read_worker_alone
from collector.wiring import event_json
from collector.worker_tables import WorkerTable, factory_name, is_factory
from formats.event_message import EventReader
from forwarders.amqp_connection import connection_parameters, read_urls
from forwarders.amqp_consumer import Consumer, Queue
from forwarders.amqp_dead_letters import DeadLetters
from forwarders.contract import Forwarder
from forwarders.queue_worker import QueueWorker
from forwarders.worker_report import WorkerReport

log = logging.getLogger(__name__)


def find_worker(settings: Settings, what: str, given: Mapping[str, Any]) -> WorkerTable:
    """The worker that is called ``what``, or else one of this type with the defaults; ``given`` stands before both.

    Errors: SettingsError.
    """
    named = [each for each in settings.workers if each.name == what] or [
        each for each in settings.workers if each.type == what and is_factory(what)
    ]
    name = what.partition(":")[0].rpartition(".")[2].lower() if is_factory(what) else what
    worker = named[0] if named else read_worker_alone(name, what)
    try:
        queue = dataclasses.replace(worker.queue, **given)
    except ValueError as exc:
        raise SettingsError([str(exc)]) from exc
    if not queue.queue:
        raise SettingsError(
            [f"{settings.path or 'embedded default'}: workers.{name}.queue: expected a name, or --queue"]
        )
    return dataclasses.replace(worker, queue=queue)


def run_worker(settings: Settings, worker: WorkerTable) -> None:
    """Work until SIGTERM or SIGINT. Errors: OSError and ValueError for a file with a URL that is not right."""
    report = WorkerReport(worker.name)
    event_worker = build_worker(settings, worker, report)
    for number in (signal.SIGTERM, signal.SIGINT):
        # in a thread of its own: this one may hold the event's lock at the moment of the signal
        signal.signal(number, lambda *_: threading.Thread(target=event_worker.stop).start())
    log.info("worker started", extra={"worker": worker.name, "type": worker.type, "queue": worker.queue.queue})
    with answering(worker, report):
        event_worker.run()
    log.info("worker ended", extra={"worker": worker.name})


@contextlib.contextmanager
def answering(worker: WorkerTable, report: WorkerReport) -> Iterator[None]:
    """Answer ``/metrics`` and ``/healthcheck`` while the context lasts, where the worker's settings want it.

    An address that cannot be had is logged: delivering matters more.
    """
    with contextlib.ExitStack() as stack:
        bind = worker.queue.metrics_bind
        if bind:
            from collector import small_server  # Falcon and prometheus_client, which other workers do without
            from collector.exposition import render_worker
            from collector.resources.worker import worker_app
            from collector.worker_health import WorkerHealth

            app = worker_app(WorkerHealth(worker, report), lambda: render_worker(worker.name, report.figures()))
            try:
                stack.enter_context(small_server.serving(ports.listener(bind), app))
            except OSError as exc:
                log.error("no metrics here", extra={"worker": worker.name, "place": bind, "error": str(exc)})
        yield


def build_worker(settings: Settings, worker: WorkerTable, report: WorkerReport) -> QueueWorker:
    """The worker; it connects when it runs. Errors: OSError and ValueError as above."""
    queue = worker.queue
    parameters = [
        connection_parameters(
            url,
            ca_file=queue.amqp_ca_file,
            timeout_s=queue.connect_timeout_s,
            heartbeat_s=queue.heartbeat_s,
            connection_name=f"collector work {worker.name} {socket.gethostname()}",
        )
        for url in read_urls(queue.amqp_url, queue.amqp_url_file)
    ]
    queues = [
        Queue(queue.queue, queue.exchange, queue.binding_keys, make=bool(queue.exchange)),
        Queue(queue.dead_letters_to, make=True),
    ]
    to_json = event_json(settings)
    # One of its own, for two workers of one name may share an archive: what one is writing is not the other's to sweep.
    instance = str(uuid.uuid4())
    return QueueWorker(
        queue,
        connect=partial(Consumer, parameters, queues, queue.ahead),
        make=lambda: _make(worker, to_json=to_json, instance=instance),
        reader=EventReader({name: each.fields for name, each in settings.events.items()}, queue.foreign_name),
        to_json=to_json,
        dead_letters=DeadLetters(
            parameters,
            to=queue.dead_letters_to,
            worker=worker.name,
            queue=queue.queue,
            timeout_s=queue.connect_timeout_s,
        ),
        report=report,
    )


def _make(worker: WorkerTable, **rest: Any) -> Forwarder:
    module_name = FORWARDER_MODULES.get(worker.type, (worker.type.partition(":")[0],))[0]
    factory = getattr(importlib.import_module(module_name), factory_name(worker.type))
    forwarder: Forwarder = factory(worker.own, name=worker.name, **rest)
    return forwarder
