"""Settings: what a file and the environment may say, and what an operator is told when they say something else."""

import dataclasses
import json
import re
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
from msgspec import Meta

from collector.cli_config import shown, to_toml
from collector.settings import FORWARDER_MODULES, SECTIONS, Settings, SettingsError, load
from collector.tables import Reader, Value, redact
from forwarders.flush_settings import FlushSettings
from forwarders.worker_settings import WorkerSettings

ETC = Path(__file__).parents[2] / "etc"
TYPES = " or ".join(f'"{name}"' for name in FORWARDER_MODULES)


def write(tmp_path: Path, text: str, mode: int = 0o640) -> Path:
    path = tmp_path / "collector.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def errors_of(tmp_path: Path, text: str, environ: dict[str, str] | None = None, mode: int = 0o640) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(write(tmp_path, text, mode), environ or {})
    return [error.replace(f"{tmp_path}/", "") for error in caught.value.errors]


def reference(*, all_keys: bool = False) -> str:
    """The reference file with every forwarder on (#key), or with ``all_keys`` also what has no default (##key)."""
    mark = "^##?" if all_keys else "^#"
    return re.sub(mark + r"(?=[\[a-z])", "", (ETC / "collector.toml").read_text(), flags=re.MULTILINE)


def test_the_reference_file_says_the_defaults() -> None:
    settings = load(ETC / "collector.toml", {})

    assert {name: getattr(settings, name) for name in SECTIONS} == {name: cls() for name, cls in SECTIONS.items()}
    assert [each.name for each in settings.forwarders] == ["archive"]


def test_the_reference_file_says_what_each_forwarder_does_by_default(tmp_path: Path) -> None:
    written = load(write(tmp_path, reference()), {}).forwarders
    bare = load(write(tmp_path, "".join(f"[forwarders.{name}]\n" for name in FORWARDER_MODULES)), {}).forwarders

    assert sorted(written, key=str) == sorted(bare, key=str)


def test_the_reference_file_has_every_setting(tmp_path: Path) -> None:
    document = tomllib.loads(reference(all_keys=True))
    forwarders = load(write(tmp_path, "".join(f"[forwarders.{name}]\n" for name in FORWARDER_MODULES)), {}).forwarders

    for name, cls in SECTIONS.items():
        assert set(document[name]) == {each.name for each in dataclasses.fields(cls)}
    for each in forwarders:
        fields = {*dataclasses.fields(FlushSettings), *dataclasses.fields(each.own)}
        written = {field.name for field in fields if not field.metadata.get("secret")} | {"type"}
        assert set(document["forwarders"][each.name]) == written


def test_the_reference_file_has_every_setting_of_a_worker_and_its_default(tmp_path: Path) -> None:
    document = tomllib.loads(reference(all_keys=True))
    common = {each.name for each in dataclasses.fields(WorkerSettings)} | {"type"}

    assert load(write(tmp_path, reference()), {}).workers == load(write(tmp_path, "[workers.mongodb]"), {}).workers
    assert set(document["workers"]["mongodb"]) == common


def test_a_worker_has_the_settings_of_its_destination_and_the_batches_that_suit_it(tmp_path: Path) -> None:
    text = '[workers.files]\ntype = "archive"\nqueue = "q"\npath = "x"\n[workers.mongodb]\n'
    files, mongodb = load(write(tmp_path, text), {"COLLECTOR_WORKERS__MONGODB__DATABASE": "d"}).workers

    assert (files.queue.queue, str(files.own.path), files.queue.batch_max_events) == ("q", "x", 100_000)
    assert (files.queue.ahead, files.queue.dead_letters_to) == (65_535, "q.dead")
    assert (mongodb.own.database, mongodb.queue.ahead) == ("d", 10_000)


def test_a_worker_that_binds_nothing_has_no_binding_keys(tmp_path: Path) -> None:
    keys = '[workers.mongodb]\nbinding_keys = ["a.*"]\n'
    with pytest.raises(SettingsError, match="binding_keys: nothing is bound without an exchange"):
        load(write(tmp_path, keys), {})
    assert load(write(tmp_path, f'{keys}exchange = "events"\n'), {}).workers[0].queue.binding_keys == ["a.*"]
    none = "[workers.mongodb]\nbinding_keys = []\n"
    assert load(write(tmp_path, none), {}).workers[0].queue.binding_keys == []
    with pytest.raises(SettingsError, match="binding_keys: expected at least one"):
        load(write(tmp_path, f'{none}exchange = "events"\n'), {})


def test_the_minimal_file_is_the_defaults_but_for_what_it_says() -> None:
    settings = load(ETC / "collector.minimal.toml", {})

    assert settings.http == dataclasses.replace(SECTIONS["http"](), bind="0.0.0.0:8080")
    assert settings.spool == SECTIONS["spool"]()
    assert [each.own.path for each in settings.forwarders] == ["var/events"]


def test_without_a_file_events_become_files_within_seconds() -> None:
    settings = load(None, {})

    (archive,) = settings.forwarders
    assert (archive.name, archive.own.path, archive.flush.batch_max_age_s) == ("archive", "var/events", 5.0)
    assert settings.path is None


def test_the_file_is_the_one_asked_for_else_that_of_the_environment(tmp_path: Path) -> None:
    asked, other = tmp_path / "asked.toml", tmp_path / "other.toml"
    asked.write_text("[http]\nworkers = 3")
    other.write_text("[http]\nworkers = 4")
    environ = {"COLLECTOR_CONFIG": str(other)}

    assert load(asked, environ).http.workers == 3
    assert load(None, environ).http.workers == 4
    assert load(None, environ).path == other


def test_every_error_is_listed_with_its_file_and_path(tmp_path: Path) -> None:
    text = """
        colour = "red"
        [spool]
        max_spool_bytes = "10G"
        segment_max_age_s = 0
        sise = 2
        [http]
        workers = 0
        bind = 3
        access_log = "yes"
        [durability]
        post = "always"
        [auth]
        keys_file = ""
        [filters]
        ip = ["a", 3]
        [events.Hello]
        fields = "page"
        [forwarders.Archive]
        [forwarders.archive]
        batch_max_events = 0
        password = "x"
        [weird]
    """

    assert errors_of(tmp_path, text) == [
        'collector.toml: colour = "red": expected a table',
        "collector.toml: spool.sise: no such setting",
        'collector.toml: spool.max_spool_bytes = "10G": expected an integer number of bytes, at least 1',
        "collector.toml: spool.segment_max_age_s = 0: expected a number of seconds, more than 0",
        "collector.toml: http.bind = 3: expected a text in quotes or a list, each a text in quotes",
        "collector.toml: http.workers = 0: expected an integer, at least 1, at most 512",
        'collector.toml: http.access_log = "yes": expected true or false',
        'collector.toml: durability.post = "always": expected "commit" or "interval" or "none"',
        'collector.toml: auth.keys_file = "": expected a path in quotes',
        'collector.toml: filters.ip = ["a", 3]: expected a list, each a text in quotes',
        'collector.toml: events.Hello.fields = "page": expected a list, each a text in quotes',
        "collector.toml: forwarders.Archive: expected a name of a-z, 0-9, _ and -, other than spool",
        "collector.toml: forwarders.archive.password: no such setting",
        "collector.toml: forwarders.archive.batch_max_events = 0: expected an integer, at least 1",
        "collector.toml: weird: no such table",
    ]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('http.bind = "8080"', 'http.bind = "8080": expected HOST:PORT, [IPV6]:PORT or unix:PATH'),
        ('http.bind = "::1:80"', 'http.bind = "::1:80": expected HOST:PORT, [IPV6]:PORT or unix:PATH'),
        ('http.bind = "a:65536"', 'http.bind = "a:65536": expected HOST:PORT, [IPV6]:PORT or unix:PATH'),
        ('http.bind = "unix:"', 'http.bind = "unix:": expected HOST:PORT, [IPV6]:PORT or unix:PATH'),
        ("http.bind = []", "http.bind = []: expected at least one address"),
        (
            "durability.interval_ms = 50",  # the worker looks every 100 ms: it could not keep this promise
            "durability.interval_ms = 50: expected an integer number of milliseconds, at least 100, at most 60000",
        ),
        ('admin.bind = "x"', 'admin.bind = "x": expected HOST:PORT, [IPV6]:PORT or unix:PATH'),
        ('admin.bind = ":8081"', 'admin.bind = ":8081": commands over TCP need keys: set auth.keys_file'),
        (
            "forwarders.archive.max_lag_s = 1.0",
            "forwarders.archive.required = true: a required forwarder gives nothing up: max_lag needs required = false",
        ),
        (
            "forwarders.archive.required = false",
            "forwarders.archive.required = false: say how far it may lag: max_lag_bytes or max_lag_s",
        ),
        (
            'http.trusted_proxies = ["10.0.0.0/8", "10.0.0.1/8"]',
            'http.trusted_proxies = "10.0.0.1/8": expected a network such as 10.0.0.0/8: 10.0.0.1/8 has host bits set',
        ),
        (
            'filters.ip = ["^10", "("]',
            'filters.ip = "(": expected a regular expression: missing ), unterminated subpattern at position 0',
        ),
        ('http.certfile = "setup.cfg"', 'http.keyfile = "": certfile and keyfile need each other'),
        ('auth.keys_file = "no/where"', 'auth.keys_file = "no/where": there is no such directory'),
        (
            'http.cors_origins = ["https://*.shop.example:8443", "https://Shop.example/"]',
            'http.cors_origins = "https://Shop.example/": expected "*", or an origin in small letters such as '
            '"https://shop.example", "https://*.shop.example"',
        ),
        ('spool.key_file = "no/where"', 'spool.key_file = "no/where": No such file or directory'),
        ("auth.read_requires_key = true", "auth.read_requires_key = true: needs auth.keys_file"),
        ("auth.post_requires_key = true", "auth.post_requires_key = true: needs auth.keys_file"),
        (
            'scribe = {enabled = true, bind = "0.0.0.0:7911"}',
            "scribe.allow = []: the listener knows no credentials: name the networks that may use it",
        ),
        ("forwarders.archive.names = []", 'forwarders.archive.names = []: expected at least one pattern, such as "*"'),
        (
            'forwarders.files.path = "x"',
            f'forwarders.files.type = "files": expected {TYPES}',
        ),
        (
            "forwarders.files.type = [1]",
            f"forwarders.files.type = [1]: expected {TYPES}",
        ),
        (
            'forwarders.archive.path = "ftp://x"',
            "forwarders.archive: path: expected a directory, s3://…, gs://…, az://… or webhdfs://…",
        ),
        (
            'forwarders.archive.path = "webhdfs://anna@namenode:9870/events"',
            "forwarders.archive: path: expected webhdfs://host:port/directory, with the user in credentials_file",
        ),
        (
            'forwarders.archive = {path = "webhdfs://namenode/events", endpoint = "http://namenode:9870"}',
            "forwarders.archive: path: HDFS has its address here, and neither endpoint nor region",
        ),
        (
            'forwarders.archive.path = "s3://"',
            "forwarders.archive: path: names no bucket or container: expected s3://NAME or s3://NAME/PREFIX",
        ),
        (
            'forwarders.archive.path = "az:///prefix"',
            "forwarders.archive: path: names no bucket or container: expected az://NAME or az://NAME/PREFIX",
        ),
        (
            'forwarders.google-analytics.measurement_id = "UA-1"',
            "forwarders.google-analytics: measurement_id: expected G- and capitals or digits, "
            "as in the data stream's details",
        ),
        (
            'forwarders.archive.layout = "{name}/{year}"',
            "forwarders.archive: layout: expected {name}, {year}, {month}, {day}, {hour}, perhaps {minute}, "
            "in this order",
        ),
        (
            'forwarders.archive = {format = "thrift", compact = "jsonl"}',
            'forwarders.archive: compact: expected format = "jsonl", in which events have ids',
        ),
        (
            'forwarders.archive = {path = "s3://x", credentials_file = "no/where"}',
            'forwarders.archive.credentials_file = "no/where": there is no such file',
        ),
        (
            'forwarders.rabbitmq = {queue_type = "stream", consumers = {c = {message_ttl_s = 1}}}',
            "forwarders.rabbitmq: consumers.c.message_ttl_s: a stream has none, only max_length_bytes",
        ),
        (
            "workers.mongodb.hold_max_s = 1800",  # RabbitMQ does not wait longer
            "workers.mongodb.hold_max_s = 1800: expected a number of seconds, more than 0, less than 1800",
        ),
        ("forwarders.spool = {}", "forwarders.spool: expected a name of a-z, 0-9, _ and -, other than spool"),
        ("forwarders = 3", "forwarders = 3: expected a table"),
        ("events.x = 3", "events.x = 3: expected a table"),
        ('events."a b".colour = 3', 'events."a b".colour: no such setting'),
    ],
)
def test_what_a_type_cannot_say_is_checked_too(tmp_path: Path, text: str, error: str) -> None:
    assert f"collector.toml: {error}" in errors_of(tmp_path, text)


def test_a_library_that_an_archive_needs_and_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("obstore", "duckdb", "urllib3"):
        monkeypatch.setitem(sys.modules, library, None)
    for path, extra in [("s3://x", "object-store"), ("webhdfs://x", "hdfs")]:
        errors = errors_of(tmp_path, f'forwarders.archive = {{path = "{path}", compact = "parquet"}}')

        assert [each.rpartition(": ")[2] for each in errors] == [
            f"pip install 'event-collector[{extra}]'",
            "pip install 'event-collector[query]'",
        ]


@pytest.mark.parametrize(
    "bind", ["127.0.0.1:0", ":8080", "[::1]:8080", "collector.example:80", "unix:/run/c.sock", ["a:1", "unix:b"]]
)
def test_every_sort_of_address_is_understood(tmp_path: Path, bind: str | list[str]) -> None:
    settings = load(write(tmp_path, f"http.bind = {bind!r}"), {})

    assert settings.http.binds == ([bind] if isinstance(bind, str) else bind)


def test_what_is_no_toml_or_cannot_be_read_is_a_settings_error(tmp_path: Path) -> None:
    (broken,) = errors_of(tmp_path, "[http\n")
    write(tmp_path, "").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="is not TOML"):
        load(tmp_path / "collector.toml", {})
    with pytest.raises(SettingsError, match=r"none\.toml: cannot be read: No such file or directory"):
        load(tmp_path / "none.toml", {})
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        load(tmp_path, {})

    assert broken.startswith("collector.toml: is not TOML: ")


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, '[http]\nworkers = 3\naccess_log = true\n[forwarders.to-disk]\ntype = "archive"')
    settings = load(
        path,
        {
            "COLLECTOR_HTTP__WORKERS": "5",
            "COLLECTOR_HTTP__BIND": "0.0.0.0:80",
            "COLLECTOR_SPOOL__PATH": "/srv/spool",
            "COLLECTOR_FILTERS__IP": '["^10", "^11"]',
            "COLLECTOR_LOG__FORMAT": "json",
            "COLLECTOR_FORWARDERS__TO_DISK__PATH": "2026",
            "COLLECTOR_FORWARDERS__SECOND__TYPE": "archive",
            "COLLECTOR_EVENTS__PageView__FIELDS": '["page"]',
        },
    )

    assert (settings.http.workers, settings.http.bind, settings.http.access_log) == (5, "0.0.0.0:80", True)
    assert (settings.spool.path, settings.filters.ip, settings.log.format) == (
        Path("/srv/spool"),
        ["^10", "^11"],
        "json",
    )
    assert [(each.name, each.own.path) for each in settings.forwarders] == [
        ("to-disk", "2026"), ("second", "var/events")
    ]  # fmt: skip
    assert settings.events["PageView"].fields == ["page"]


def test_a_variable_that_will_not_do_is_named(tmp_path: Path) -> None:
    environ = {"COLLECTOR_HTTP__WORKERS": "many", "COLLECTOR_HTTP__COLOUR": "red", "COLLECTOR_NO__SUCH": "1"}

    assert errors_of(tmp_path, "[http]\nworkers = 3", environ) == [
        "COLLECTOR_HTTP__COLOUR: http.colour: no such setting",
        'COLLECTOR_HTTP__WORKERS: http.workers = "many": expected an integer, at least 1, at most 512',
        "COLLECTOR_NO__SUCH: no: no such table",
    ]


def test_variables_of_others_are_not_looked_at() -> None:
    """Kubernetes makes up variables for a service named collector."""
    environ = {"COLLECTOR_PORT": "tcp://10.0.0.1:80", "COLLECTOR_SERVICE_HOST": "10.0.0.1", "OTHER__HTTP__X": "1"}

    assert load(None, environ).http == SECTIONS["http"]()


def test_a_password_in_a_file_that_everyone_can_read_is_refused(tmp_path: Path) -> None:
    text = '[forwarders.archive]\npath = "s3://key:hunter2@bucket/x"'
    (error,) = errors_of(tmp_path, text, mode=0o644)

    assert error.startswith('collector.toml: forwarders.archive.path = "s3://key:***@bucket/x": holds a password')
    assert "COLLECTOR_FORWARDERS__ARCHIVE__PATH" in error
    assert load(write(tmp_path, text, mode=0o640), {}).forwarders
    variable = {"COLLECTOR_FORWARDERS__ARCHIVE__PATH": "s3://key:hunter2@bucket/x"}
    assert load(write(tmp_path, "", mode=0o644), variable).forwarders
    several = (
        '[forwarders.rabbitmq]\nurl = ["amqp://guest:guest@one/", "amqp://u:hunter2@two/", "amqp://u:hunter2@three/"]'
    )
    (error,) = errors_of(tmp_path, several, mode=0o644)
    assert "hunter2" not in error
    assert "holds a password" in error
    no_password = '[forwarders.archive]\npath = "s3://bucket:80/a@b"'
    assert load(write(tmp_path, no_password, mode=0o644), {}).forwarders


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("amqp://guest:secret@host/%2F", "amqp://guest:***@host/%2F"),
        ("mongodb://u:p@a:1,b:2/?x", "mongodb://u:***@a:1,b:2/?x"),
        ("x amqps://:p@h and y http://u:q@h", "x amqps://:***@h and y http://u:***@h"),
        ("amqp://user@host", "amqp://user@host"),
        ("amqp://guest:guest@host amqp://guest:guest@x:p@h", "amqp://guest:guest@host amqp://guest:***@h"),
        ("amqp://u:p@ss/w@host/x", "amqp://u:***@host/x"),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
    ],
)
def test_passwords_of_urls_are_not_shown(text: str, shown: str) -> None:
    assert redact(text) == shown


@dataclass(frozen=True)
class Destination:
    """What a forwarder module may declare."""

    url: str
    timeout_s: Annotated[float, Meta(gt=0)] = 3.0
    tags: dict[str, str] = field(default_factory=dict)
    token: str = field(default="", metadata={"secret": True})
    token_file: Path | None = None

    def __post_init__(self) -> None:
        if self.token and self.token_file:
            raise ValueError("token and token_file exclude each other")


def read(table: dict[str, Value]) -> tuple[Destination | None, list[str]]:
    reader = Reader("x.toml")
    reader.unknown("forwarders.d", table, Destination)
    return reader.table(Destination, "forwarders.d", table, {}), reader.errors


def test_a_secret_comes_from_the_environment_only() -> None:
    url = Value("http://h", "x.toml")
    destination, errors = read({"url": url, "token": Value(1234, "COLLECTOR_FORWARDERS__D__TOKEN", "1234")})
    assert destination is not None
    assert (destination.token, errors) == ("1234", [])

    destination, errors = read({"url": url, "token": Value("hunter2", "x.toml")})
    assert destination is None
    assert errors == [
        "x.toml: forwarders.d.token: secrets are not written here: "
        "set COLLECTOR_FORWARDERS__D__TOKEN or forwarders.d.token_file"
    ]


def test_a_destinations_own_checks_and_missing_keys_are_settings_errors() -> None:
    assert read({})[1] == ["x.toml: forwarders.d.url: expected a text in quotes"]
    both = {
        "url": Value("http://h", "x.toml"),
        "token": Value("a", "COLLECTOR_FORWARDERS__D__TOKEN", "a"),
        "token_file": Value("f", "x.toml"),
    }
    assert read(both)[1] == ["x.toml: forwarders.d: token and token_file exclude each other"]
    tags = read({"url": Value("http://h", "x.toml"), "tags": Value({"a": 1}, "x.toml")})
    assert tags[1] == ["x.toml: forwarders.d.tags = {a = 1}: expected a table, each value a text in quotes"]


def test_an_error_inside_a_nested_table_says_where(tmp_path: Path) -> None:
    text = """
        [forwarders.influxdb.events."Page View"]
        tags = 3
        colour = "red"
        [forwarders.influxdb.events.Right]
        tags = ["a"]
        [forwarders.rabbitmq.consumers]
        a = {max_length = 0}
        b = {max_length = 1}
        c = 3
    """
    wrong = "collector.toml: forwarders."
    assert errors_of(tmp_path, text) == [
        f'{wrong}influxdb.events."Page View".tags = 3: expected a list, each a text in quotes',
        f'{wrong}influxdb.events."Page View".colour: no such setting',
        f"{wrong}rabbitmq.consumers.a.max_length = 0: expected an integer, at least 1",
        f"{wrong}rabbitmq.consumers.c = 3: expected a table",
    ]


def test_a_missing_client_library_is_an_advice_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "forwarders.rabbitmq", raising=False)
    monkeypatch.setitem(sys.modules, "pika", None)

    assert errors_of(tmp_path, "[forwarders.rabbitmq]") == [
        "collector.toml: forwarders.rabbitmq: needs pika: pip install 'event-collector[rabbitmq]'"
    ]


def test_settings_compare_by_value_and_cannot_be_changed() -> None:
    assert Settings() == Settings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().http.workers = 3  # type: ignore[misc]


def test_keys_of_destinations_come_from_files_or_the_environment_and_are_not_shown(tmp_path: Path) -> None:
    bare = "[forwarders.amplitude]\n[forwarders.google-analytics]\n"
    variables = {
        "COLLECTOR_FORWARDERS__AMPLITUDE__API_KEY": "1234567890",
        "COLLECTOR_FORWARDERS__GOOGLE_ANALYTICS__API_SECRET": "hush-hush",
    }
    settings = load(write(tmp_path, bare), variables)

    assert [each.own.api_key for each in settings.forwarders if each.name == "amplitude"] == ["1234567890"]
    assert [each.own.api_secret for each in settings.forwarders if each.name != "amplitude"] == ["hush-hush"]
    for text in (repr(settings), to_toml(settings), json.dumps(shown(settings))):
        assert not re.search("1234567890|hush-hush", text)
    assert errors_of(tmp_path, '[forwarders.google-analytics]\napi_secret = "hush-hush"') == [
        "collector.toml: forwarders.google-analytics.api_secret: secrets are not written here: "
        "set COLLECTOR_FORWARDERS__GOOGLE_ANALYTICS__API_SECRET or forwarders.google-analytics.api_secret_file"
    ]
