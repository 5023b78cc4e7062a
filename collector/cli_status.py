"""``collector status``: the state of the collector in a few lines."""

import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from collector.cli_output import age, size
from collector.cli_settings import json_option, settings_option

if TYPE_CHECKING:
    from collector.settings import Settings


@click.command()
@json_option
@settings_option
def status(settings: "Settings", as_json: bool) -> None:
    """Say whether events are taken, whether they get out, and what needs a person; exit 1 on an ERROR."""
    from collector.status import gather

    found = gather(settings)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        for code, sentence in sentences(found, time.time()):
            click.echo(f"{code:<6}{sentence}")
    if found["worst"] == "ERROR":
        sys.exit(1)


def sentences(found: dict[str, Any], now_s: float) -> Iterator[tuple[str, str]]:
    """What `collector.status.gather` found, as (OK, WARN or ERROR, sentence)."""
    pids = {
        kind: ", ".join(str(each["pid"]) for each in found["processes"] if each["kind"] == kind)
        for kind in ("http", "flusher")
    }
    silent = [bind for bind, answers in found["listening"].items() if not answers]
    refusal = found["refusing"] or ("" if pids["http"] else "no HTTP worker runs")
    if silent and not refusal:
        refusal = f"nobody answers at {', '.join(silent)}"
    off = found["collection_off"]
    if off:
        since = f" for {age(now_s - off['since_ms'] / 1000)}" if off["since_ms"] else ""
        why = f" ({off['reason']})" if off["reason"] else ""
        yield "WARN", f"collection is switched off{since}{why}; collector collection on ends it"
    taking = f"does not take events: {refusal}" if refusal else "is ready for events" if off else "takes events"
    yield "ERROR" if refusal else "OK", f"{taking}; address {', '.join(found['listening'])}; pid {pids['http'] or '-'}"
    yield (
        "OK" if pids["flusher"] else "ERROR",
        f"flusher {'runs; pid ' + pids['flusher'] if pids['flusher'] else 'does not run'}",
    )
    yield (
        "ERROR" if found["refusing"] else "OK",
        f"spool {found['spool']}: {size(found['backlog_bytes'])} of {size(found['max_spool_bytes'])} wait; disk: "
        f"{size(found['free_bytes'])} free, refusing below {size(found['min_free_bytes'])}",
    )
    for item in found["items"]:
        if item["type"] == "ForwarderHealthCheck":
            yield item["code"], _forwarder(item, found, now_s)
        elif item["type"] == "WriterHealthCheck" and item["code"] != "OK" and pids["http"]:
            yield item["code"], f"spool cannot be written: {item['message']}"
        elif item["type"] == "ApiKeysHealthCheck" and item["code"] != "OK":
            yield item["code"], item["message"]
        elif item["type"] == "ScribeHealthCheck":
            yield item["code"], f"Scribe listener at {item['figures']['address']}: {item['message']}"
    if orphans := found["places"]["orphaned"]["segments"]:
        yield "WARN", f"{orphans} segments of processes that died wait for the flusher to take them over"
    for owner, held in found["quarantine"].items():
        yield "WARN", f"quarantine of {owner}: {held['items']} items, {held['events']} events (collector quarantine ls)"
    for name in found["unclaimed_queues"]:
        yield "WARN", f"queue of {name}: {_waiting(found, name)}; the settings have no such forwarder"


def _forwarder(item: dict[str, Any], found: dict[str, Any], now_s: float) -> str:
    figures = item["figures"]
    if not figures:
        return str(item["message"])
    parts = [f"{figures['name']}: {figures['sent']} events sent"]
    if not figures["enabled"]:
        parts.append("disabled")
    if figures["lastSuccessMs"]:
        parts.append(f"the last {age(now_s - figures['lastSuccessMs'] / 1000)} ago")
    parts.append(_waiting(found, figures["name"]))
    said = found["forwarders"].get(figures["name"])
    if figures["state"] == "paused":
        parts.append("paused; collector forwarder resume ends it")
    elif said and said["state"] not in ("ok", "paused"):
        since = age(now_s - said["since_ms"] / 1000)
        parts.append(f"{said['state']} for {since}, {said['attempts']} attempts: {said['reason']}")
    return ", ".join(parts)


def _waiting(found: dict[str, Any], forwarder: str) -> str:
    """What lies in a queue, as the disk says: counters of a flusher that does not run say nothing."""
    held = found["places"].get(f"queue {forwarder}")
    if not held or not held["segments"]:
        return "nothing waits"
    return f"{held['segments']} segments of {size(held['bytes'])} wait, the oldest for {age(held['oldest_s'])}"
