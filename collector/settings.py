"""Every setting: one frozen dataclass per TOML table, defaults beside the fields. The only reader of settings.

Where a value comes from, the first that has it:

1. the environment: ``COLLECTOR_SECTION__KEY`` (``COLLECTOR_FORWARDERS__RABBITMQ__URL``), read as a TOML value
   when it is one, else as a text. Variables without a double underscore are not looked at: container
   platforms make up names such as ``COLLECTOR_PORT``;
2. the file given by ``--config`` or ``COLLECTOR_CONFIG``; without either, `EMBEDDED`;
3. the defaults here; for ``[forwarders.NAME]`` those of the forwarder's own module.

Relative paths are relative to the directory the process runs in. Unknown keys are errors, and all errors
are listed at once. Secrets stand in files of their own (``*_file``) or in the environment; a URL may hold its
password in the settings file as long as other users cannot read that file.
"""

import dataclasses
import importlib
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from collector.checks import cross_check
from collector.event_settings import EventSettings, PrivacySettings, SchemaSettings, read_event
from collector.tables import Reader, Value, has_password, toml_key, toml_value
from collector.tables import SettingsError as SettingsError  # callers of load() need it
from forwarders.flush_settings import FlushSettings

if TYPE_CHECKING:
    from collector.worker_tables import WorkerTable

#: What runs without a settings file: events become files in var/events within seconds.
EMBEDDED = """\
[forwarders.archive]
path = "var/events"
batch_max_age_s = 5
"""

#: Which module forwards to a type of destination, and the extra that brings its client library.
FORWARDER_MODULES = {
    "amplitude": ("forwarders.amplitude", "amplitude"),
    "archive": ("forwarders.archive", "archive"),
    "google-analytics": ("forwarders.google_analytics", "google-analytics"),
    "influxdb": ("forwarders.influxdb", "influxdb"),
    "mongodb": ("forwarders.mongodb", "mongodb"),
    "rabbitmq": ("forwarders.rabbitmq", "rabbitmq"),
    "rabbitmq-stream": ("forwarders.rabbitmq_stream", "rabbitmq-stream"),
}

OUR_PACKAGES = ("collector", "formats", "forwarders", "spool")
#: Tables of tables: their second name is the user's own.
NAMED = ("events", "forwarders", "workers")

Tables = dict[tuple[str, ...], dict[str, Value]]
Fsync = Literal["commit", "interval", "none"]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True)
class HttpSettings:
    """``[http]``: the doors for HTTP, and the limits on what one client may take."""

    bind: str | list[str] = "127.0.0.1:8080"
    workers: Annotated[int, Meta(ge=1, le=512)] = 2
    max_body_bytes: Annotated[int, Meta(ge=1, le=32 * 1024 * 1024)] = 8 * 1024 * 1024  # a record holds 32 MiB
    max_buffered_bytes: Positive = 256 * 1024 * 1024
    trusted_proxies: list[str] = field(
        default_factory=lambda: ["127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"]
    )
    cors_origins: list[str] = field(default_factory=lambda: ["*"])
    pixel_rate_per_s: Annotated[float, Meta(ge=0)] = 0.0  # 0: no limit
    pixel_burst: Positive = 100
    header_timeout_s: Seconds = 10.0
    body_timeout_s: Seconds = 30.0
    body_min_bytes_per_s: Annotated[int, Meta(ge=0)] = 1024
    idle_timeout_s: Seconds = 75.0
    graceful_timeout_s: Seconds = 8.0
    access_log: bool = False
    certfile: str = ""
    keyfile: str = ""
    reuse_port: bool = True  # without it one of two workers was measured to take 99 % of the load
    max_requests: Annotated[int, Meta(ge=0)] = 0
    max_requests_jitter: Annotated[int, Meta(ge=0)] = 0

    @property
    def binds(self) -> list[str]:
        """Every address, whichever way it was written."""
        return [self.bind] if isinstance(self.bind, str) else self.bind


@dataclass(frozen=True)
class SpoolSettings:
    """``[spool]``: where events are kept until every forwarder has them, and how much may lie there."""

    path: Path = Path("var/spool")
    must_exist: bool = False
    max_spool_bytes: Positive = 50 * 1024**3
    min_free_bytes: Annotated[int, Meta(ge=0)] | None = None  # None: max(1 GiB, min(5 % of the disk, 10 GiB))
    segment_max_bytes: Annotated[int, Meta(ge=64 * 1024, le=1024**3)] = 16 * 1024**2  # bounds the scan at start
    segment_max_age_s: Seconds = 2.0  # an event waits at most this long before it is handed to a forwarder
    key_file: Path | None = None  # None: nothing is encrypted
    retain_days: Annotated[float, Meta(ge=0)] = 0.0
    retain_bytes: Annotated[int, Meta(ge=0)] = 0


@dataclass(frozen=True)
class DurabilitySettings:
    """``[durability]``: what a door's 202 survives."""

    pixel: Fsync = "interval"
    post: Fsync = "commit"
    scribe: Fsync = "commit"
    udp: Fsync = "interval"
    interval_ms: Annotated[int, Meta(ge=100, le=60_000)] = 200  # looked at every 100 ms


@dataclass(frozen=True)
class ScribeSettings:
    """``[scribe]``: the Scribe listener. It knows no credentials, so beyond loopback ``allow`` is needed."""

    enabled: bool = False
    bind: str = "127.0.0.1:7911"
    allow: list[str] = field(default_factory=list)
    max_frame_bytes: Annotated[int, Meta(ge=1024, le=16 * 1024 * 1024)] = 16 * 1024 * 1024  # a record holds 32 MiB
    max_buffered_bytes: Positive = 256 * 1024 * 1024
    max_connections: Positive = 4096
    frame_timeout_s: Seconds = 30.0
    idle_timeout_s: Seconds = 600.0  # longer than the 4 minutes after which the original client reconnects


@dataclass(frozen=True)
class AuthSettings:
    """``[auth]``: API keys, and what needs one. Pixels, /livez and /readyz never do."""

    keys_file: Path | None = None
    post_requires_key: bool = False
    beacon_requires_key: bool = True  # while the POST doors do; navigator.sendBeacon cannot bring one
    read_requires_key: bool = False


@dataclass(frozen=True)
class FilterSettings:
    """``[filters]``: regular expressions; an event that one of them matches is answered 202 and not kept."""

    referer_host: list[str] = field(default_factory=list)
    ip: list[str] = field(default_factory=list)
    user_agent: list[str] = field(default_factory=list)
    referer_path: list[str] = field(default_factory=list)
    event_name: list[str] = field(default_factory=list)
    event_name_only: bool = False


@dataclass(frozen=True)
class AdminSettings:
    """``[admin]``: commands over HTTP; off while ``bind`` is empty."""

    bind: str = ""


@dataclass(frozen=True)
class LogSettings:
    """``[log]``: what goes to standard error, and how."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


@dataclass(frozen=True)
class BrowserSettings:
    """``[browser]``: what pages load from here."""

    events: list[str] = field(default_factory=lambda: ["*"])
    demo: bool = False


@dataclass(frozen=True)
class ForwarderSettings:
    """``[forwarders.NAME]``: the keys every forwarder has (``flush``) and those of its type (``own``)."""

    name: str
    type: str
    flush: FlushSettings
    own: Any


@dataclass(frozen=True)
class Settings:
    """All of it. ``path`` is the file it was read from, None for the embedded default."""

    http: HttpSettings = HttpSettings()
    spool: SpoolSettings = SpoolSettings()
    durability: DurabilitySettings = DurabilitySettings()
    scribe: ScribeSettings = ScribeSettings()
    auth: AuthSettings = AuthSettings()
    filters: FilterSettings = FilterSettings()
    admin: AdminSettings = AdminSettings()
    browser: BrowserSettings = field(default_factory=BrowserSettings)
    schemas: SchemaSettings = field(default_factory=SchemaSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    log: LogSettings = LogSettings()
    events: Mapping[str, EventSettings] = field(default_factory=dict)
    forwarders: tuple[ForwarderSettings, ...] = ()
    workers: "tuple[WorkerTable, ...]" = ()
    path: Path | None = None


SECTIONS: dict[str, type] = {
    "http": HttpSettings, "spool": SpoolSettings, "durability": DurabilitySettings, "scribe": ScribeSettings,
    "auth": AuthSettings, "filters": FilterSettings, "admin": AdminSettings, "browser": BrowserSettings,
    "schemas": SchemaSettings,
    "privacy": PrivacySettings,
    "log": LogSettings,
}  # fmt: skip


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Read the settings as the module's docstring says.

    Errors: SettingsError with everything that is wrong, each with its file (or variable) and TOML path.
    """
    if path is None and environ.get("COLLECTOR_CONFIG"):
        path = Path(environ["COLLECTOR_CONFIG"])
    reader = Reader(str(path or "embedded default"))
    tables = _from_file(path, reader)
    _overlay(tables, environ)
    sections: dict[str, Any] = {}
    events: dict[str, EventSettings] = {}
    forwarders: list[ForwarderSettings] = []
    workers: list[WorkerTable] = []
    for name, table in sorted(tables.items(), key=lambda each: each[0] != ("privacy",)):  # others stand on it
        match name:
            case (str(section),) if section in SECTIONS:
                reader.unknown(section, table, SECTIONS[section])
                sections[section] = reader.table(SECTIONS[section], section, table, {})
            case ("events", event):
                events[event] = read_event(reader, event, table, sections.get("privacy"))  # type: ignore[assignment]
            case ("forwarders", forwarder):
                forwarders.append(_forwarder(reader, forwarder, table))  # type: ignore[arg-type]
            case ("workers", worker):
                workers.append(_worker(reader, worker, table))  # type: ignore[arg-type]
            case _:
                reader.reject(".".join(name), table, "no such table")
    _check_passwords(tables, path, reader)
    if not reader.errors:
        settings = Settings(**sections, events=events, forwarders=tuple(forwarders), workers=tuple(workers), path=path)
        for name, key, value, reason in cross_check(settings):
            given = tables.get(name, {}).get(key, Value(value, reader.source))
            reader.fail(".".join((*name, key)), dataclasses.replace(given, value=value), reason)
    if reader.errors:
        raise SettingsError(reader.errors)
    return settings


def _from_file(path: Path | None, reader: Reader) -> Tables:
    """The tables of the file, or of the embedded default."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8") if path else EMBEDDED)
    except OSError as exc:
        raise SettingsError([f"{reader.source}: cannot be read: {exc.strerror}"]) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SettingsError([f"{reader.source}: is not TOML: {exc}"]) from exc
    tables: Tables = {}
    for name, content in document.items():
        parts = content.items() if name in NAMED and isinstance(content, dict) else [(None, content)]
        for part, table in parts:
            full = (name,) if part is None else (name, part)
            if isinstance(table, dict):
                tables[full] = {key: Value(value, reader.source) for key, value in table.items()}
            else:
                reader.fail(".".join(full), Value(table, reader.source), "expected a table")
    return tables


def _overlay(tables: Tables, environ: Mapping[str, str]) -> None:
    """Put the values of ``COLLECTOR_...__...`` variables over those of the file."""
    for variable in sorted(environ):
        section, *rest = variable.removeprefix("COLLECTOR_").split("__")
        if not rest or not variable.startswith("COLLECTOR_"):
            continue
        name: tuple[str, ...] = (section.lower(),)
        if name[0] in NAMED and len(rest) > 1:
            # An event's name keeps its case; a forwarder's is small, and a variable cannot hold its hyphens.
            own = rest.pop(0) if name == ("events",) else rest.pop(0).lower()
            name = next(
                (each for each in tables if each[0] == name[0] and own == each[-1].replace("-", "_")), (*name, own)
            )
        tables.setdefault(name, {})["__".join(rest).lower()] = _from_text(environ[variable], variable)


def _from_text(text: str, variable: str) -> Value:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    value = parsed["value"] if len(parsed) == 1 else text
    return Value(value, variable, text)


def _forwarder(reader: Reader, name: str, table: Mapping[str, Value]) -> ForwarderSettings | None:
    path = f"forwarders.{toml_key(name)}"
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name) or name == "spool":
        reader.reject(path, table, "expected a name of a-z, 0-9, _ and -, other than spool")
        return None
    given = table.get("type", Value(name, reader.source_of(table)))
    if not isinstance(given.value, str) or given.value not in FORWARDER_MODULES:
        reader.fail(f"{path}.type", given, f"expected {' or '.join(map(toml_value, FORWARDER_MODULES))}")
        return None
    module_name, extra = FORWARDER_MODULES[given.value]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] in OUR_PACKAGES:
            raise
        reader.reject(path, table, f"needs {exc.name}: pip install 'event-collector[{extra}]'")
        return None
    own_table = {key: value for key, value in table.items() if key != "type"}
    reader.unknown(path, own_table, FlushSettings, module.Settings)
    flush = reader.table(FlushSettings, path, own_table, getattr(module, "FLUSH_DEFAULTS", {}))
    own = reader.table(module.Settings, path, own_table, {})
    return ForwarderSettings(name, given.value, flush, own) if flush and own else None


def _worker(reader: Reader, name: str, table: Mapping[str, Value]) -> "WorkerTable | None":
    try:
        worker_tables = importlib.import_module("collector.worker_tables")
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] in OUR_PACKAGES:
            raise
        reader.reject(f"workers.{name}", table, f"needs {exc.name}: pip install 'event-collector[rabbitmq]'")
        return None
    worker: WorkerTable | None = worker_tables.read_worker(reader, name, table, FORWARDER_MODULES)
    return worker


def read_worker_alone(name: str, type_name: str) -> "WorkerTable":
    """A worker that no settings mention. Errors: SettingsError."""
    reader = Reader("defaults")
    worker = _worker(reader, name, {"type": Value(type_name, "command line")})
    if worker is None:
        raise SettingsError(reader.errors)
    return worker


def _check_passwords(tables: Tables, path: Path | None, reader: Reader) -> None:
    """A password may stand in a URL of the file only while others cannot read the file."""
    if path is None or not path.stat().st_mode & stat.S_IROTH:
        return
    for name, table in tables.items():
        for key, given in table.items():
            values = given.value if isinstance(given.value, list) else [given.value]
            if given.text is None and any(map(has_password, values)):
                variable = "__".join(("COLLECTOR_" + name[0], *name[1:], key)).upper().replace("-", "_")
                advice = f"holds a password, and everyone can read this file: chmod o-r {path}, or set {variable}"
                reader.fail(".".join((*name, key)), given, advice)
