"""Put the way out together: the settings' forwarders, their counters, the spool, one flusher."""

import contextlib
import importlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from collector import forward
from collector.compaction_schedule import compacting
from collector.gate import watermark
from collector.metrics import FlusherCounters, forwarder_slot
from collector.settings import FORWARDER_MODULES, ForwarderSettings, LogSettings, Settings
from collector.spool_door import open_spool
from collector.tables import redact
from formats.event_json import EventJson
from forwarders.contract import Forwarder, why_not_made
from forwarders.flush_settings import Configured
from forwarders.flusher import Flusher
from forwarders.other_process import OtherProcess
from spool.retention import Retention

log = logging.getLogger(__name__)

DAY_S = 86_400


def build_flusher(settings: Settings) -> Flusher:
    """The flusher of these settings. Nothing is opened yet but the spool's directory and the counters.

    Errors: SpoolError.
    """
    directory = open_spool(settings.spool)
    to_json = event_json(settings)
    configured = [
        Configured(
            each.name,
            _in_its_process(_maker(each, to_json, directory.instance), each, settings.log),
            each.flush,
            forwarder_slot(directory.metrics, each.name),
        )
        for each in settings.forwarders
    ]
    retention = Retention(
        directory,
        watermark(directory, settings.spool),
        max_age_s=settings.spool.retain_days * DAY_S,
        max_bytes=settings.spool.retain_bytes,
    )
    return Flusher(directory, configured, counters=FlusherCounters(directory.metrics), retention=retention)


def run_flusher(settings: Settings) -> int:
    """Forward until SIGTERM or SIGINT; returns the exit code, 75 when another flusher works on this spool.

    Where a destination hangs it does not return but ends the process: the interpreter would wait for the threads that
    a client library has started, for as long as that library waits for its server.
    """
    from collector.admin import serving  # Falcon, which `flush --once` and others do without

    directory = open_spool(settings.spool)
    flusher = build_flusher(settings)
    for name, reason in unusable(settings):  # otherwise nobody would know before the first event
        log.error("forwarder cannot be made", extra={"forwarder": name, "reason": reason})

    @contextlib.contextmanager
    def beside() -> Iterator[None]:
        with serving(settings, directory, flusher), compacting(settings):
            yield

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # in a thread of its own: this one may hold the event's lock at the moment of the signal
        signal.signal(number, lambda *_: threading.Thread(target=stop.set).start())
    code = flusher.run(stop, beside=beside())
    if flusher.hangs:
        logging.shutdown()
        os._exit(code)
    return code


def unusable(settings: Settings) -> Iterator[tuple[str, str]]:
    """The forwarders that would stop at once, each with the reason. They are made, and connect to nothing.

    No part of `load`: what they lack, the file of a secret or a variable, may be there for the service alone, which the
    other commands do without; and a destination that lacks it closes no door.
    """
    to_json = event_json(settings)
    for each in settings.forwarders:
        try:
            _maker(each, to_json, "check")().close()
        except Exception as exc:  # noqa: BLE001  whatever it is, the forwarder's thread would end up there, too
            yield each.name, redact(why_not_made(exc))


def event_json(settings: Settings) -> EventJson:
    """Events as JSON, with the field names of ``[events.NAME]``."""
    return EventJson({name: each.fields for name, each in settings.events.items()})


def _in_its_process(
    make: Callable[[], Forwarder], settings: ForwarderSettings, log_settings: LogSettings
) -> Callable[[], Forwarder]:
    """``make``, or with ``process`` what has another process do it."""
    if not settings.flush.process:
        return make
    wanted: forward.Wanted = (log_settings, make)
    return partial(OtherProcess, settings.name, forward.COMMAND, wanted)


def _maker(settings: ForwarderSettings, to_json: EventJson, instance: str) -> Callable[[], Forwarder]:
    module: Any = importlib.import_module(FORWARDER_MODULES[settings.type][0])
    return partial(module.from_settings, settings.own, name=settings.name, to_json=to_json, instance=instance)
