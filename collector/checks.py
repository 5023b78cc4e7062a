"""What a type cannot say about the settings: regular expressions, networks, addresses, keys that need each other."""

import importlib.util
import ipaddress
import os.path
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from collector.event_settings import check_privacy, check_schemas
from collector.tables import Finding
from forwarders.archive import Settings as ArchiveSettings
from spool.key_file import KeyFileError, read_keys

if TYPE_CHECKING:
    from collector.settings import Settings

_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://(\*\.)?([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


def cross_check(settings: "Settings") -> Iterator[Finding]:
    """Everything that is wrong although each value has the right type."""
    for key in ("referer_host", "ip", "user_agent", "referer_path", "event_name"):
        yield from _patterns(key, getattr(settings.filters, key))
    yield from _networks(("http",), "trusted_proxies", settings.http.trusted_proxies)
    yield from _networks(("scribe",), "allow", settings.scribe.allow)
    for origin in settings.http.cors_origins:
        if not _ORIGIN.fullmatch(origin):
            wanted = (
                'expected "*", or an origin in small letters such as "https://shop.example", "https://*.shop.example"'
            )
            yield ("http",), "cors_origins", origin, wanted
    if not settings.http.binds:
        yield ("http",), "bind", [], "expected at least one address"
    for bind in settings.http.binds:
        yield from _bind(("http",), bind)
    yield from _bind(("scribe",), settings.scribe.bind)
    if settings.admin.bind:
        yield from _bind(("admin",), settings.admin.bind)
        if settings.auth.keys_file is None and not settings.admin.bind.startswith("unix:"):
            yield ("admin",), "bind", settings.admin.bind, "commands over TCP need keys: set auth.keys_file"
    if settings.scribe.enabled and not settings.scribe.allow and not _is_local(settings.scribe.bind):
        yield ("scribe",), "allow", [], "the listener knows no credentials: name the networks that may use it"
    yield from _files(settings)
    yield from _archives(settings)
    yield from check_schemas(settings.schemas)
    yield from check_privacy(("privacy",), settings.privacy)
    for name, event in settings.events.items():
        if event.privacy is not None:
            yield from check_privacy(("events", name, "privacy"), event.privacy)
    for worker in settings.workers:
        if worker.queue.metrics_bind:
            yield from _bind(("workers", worker.name), worker.queue.metrics_bind, "metrics_bind")
    for forwarder in settings.forwarders:
        flush, table = forwarder.flush, ("forwarders", forwarder.name)
        if not flush.names:
            yield table, "names", [], 'expected at least one pattern, such as "*"'
        limits = (flush.max_lag_bytes, flush.max_lag_s) != (None, None)
        if flush.required and limits:
            yield (
                table,
                "required",
                True,
                "a required forwarder gives nothing up: max_lag needs required = false",
            )
        if not flush.required and not limits:
            yield table, "required", False, "say how far it may lag: max_lag_bytes or max_lag_s"


def _archives(settings: "Settings") -> Iterator[Finding]:
    for each in settings.forwarders:
        if not isinstance(each.own, ArchiveSettings):
            continue
        table = ("forwarders", each.name)
        for key, value, needed, library, extra in (
            ("path", each.own.path, each.own.is_url and not each.own.is_hdfs, "obstore", "object-store"),
            ("path", each.own.path, each.own.is_hdfs, "urllib3", "hdfs"),
            ("compact", each.own.compact, each.own.compact == "parquet", "duckdb", "query"),
        ):
            if needed and importlib.util.find_spec(library) is None:
                yield table, key, value, f"needs {library}: pip install 'event-collector[{extra}]'"
        credentials = each.own.credentials_file
        if credentials is not None and not credentials.is_file():
            yield table, "credentials_file", credentials, "there is no such file"


def _key_file(path: Path) -> Iterator[Finding]:
    try:
        importlib.import_module("spool.cipher")
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] == "spool":
            raise
        yield ("spool",), "key_file", str(path), f"needs {exc.name}: pip install 'event-collector[encryption]'"
        return
    try:
        read_keys(path)
    except KeyFileError as exc:
        yield ("spool",), "key_file", str(path), str(exc).removeprefix(f"{path}: ")


def _patterns(key: str, patterns: list[str]) -> Iterator[Finding]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as exc:
            yield ("filters",), key, pattern, f"expected a regular expression: {exc}"


def _networks(table: tuple[str, ...], key: str, networks: list[str]) -> Iterator[Finding]:
    for network in networks:
        try:
            ipaddress.ip_network(network)
        except ValueError as exc:
            yield table, key, network, f"expected a network such as 10.0.0.0/8: {exc}"


def _bind(table: tuple[str, ...], bind: str, key: str = "bind") -> Iterator[Finding]:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]*):([0-9]{1,5})", bind)
    if not (re.fullmatch("unix:.+", bind) or (match and int(match[2]) <= 65_535)):
        yield table, key, bind, "expected HOST:PORT, [IPV6]:PORT or unix:PATH"


def _is_local(bind: str) -> bool:
    host = bind.rpartition(":")[0].strip("[]")
    try:
        return bind.startswith("unix:") or host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _files(settings: "Settings") -> Iterator[Finding]:
    http, auth = settings.http, settings.auth
    if settings.spool.key_file is not None:
        yield from _key_file(settings.spool.key_file)
    if bool(http.certfile) != bool(http.keyfile):
        yield ("http",), "keyfile", http.keyfile, "certfile and keyfile need each other"
    for key, name in (("certfile", http.certfile), ("keyfile", http.keyfile)):
        if name and not os.path.isfile(name):
            yield ("http",), key, name, "there is no such file"
    if auth.keys_file is not None and not os.path.isdir(auth.keys_file.parent):  # the file itself: collector keys add
        yield ("auth",), "keys_file", auth.keys_file, "there is no such directory"
    for key in ("post_requires_key", "read_requires_key"):
        if getattr(auth, key) and auth.keys_file is None:
            yield ("auth",), key, True, "needs auth.keys_file"
