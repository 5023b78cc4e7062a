"""What the settings say about events, in ``[privacy]``, ``[schemas]`` and ``[events.NAME]``, and what can be wrong.

``[events.NAME.privacy]`` has the keys of ``[privacy]``. One that stands there counts in place of the one in
``[privacy]``, all of it: its lists are not added.
"""

import dataclasses
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from collector.tables import Finding, Reader, Value, toml_key

OnViolation = Literal["reject", "quarantine"]
FieldType = Literal["string", "integer", "number", "boolean", "date"]

HMAC_KEY_BYTES = range(16, 4097)
DAY_MS = 86_400_000


@dataclass(frozen=True)
class PrivacySettings:
    """``[privacy]``: what is left out of events, or made less exact, before they are stored."""

    drop: list[str] = field(default_factory=list)
    hmac: list[str] = field(default_factory=list)
    hmac_key_file: Path | None = None
    truncate_ip: bool = False
    ip_keys: list[str] = field(default_factory=list)
    coarsen_time_ms: Annotated[int, Meta(ge=0, le=366 * DAY_MS)] = 0
    honour_dnt: Literal["ignore", "drop", "anonymise"] = "ignore"


@dataclass(frozen=True)
class SchemaSettings:
    """``[schemas]``: JSON Schema files for events, and what is done with events that are not as they should be."""

    directory: Path | None = None
    on_violation: OnViolation = "reject"


@dataclass(frozen=True)
class EventSettings:
    """``[events.NAME]``: what is known of the events of one name.

    ``fields`` are names for the fields of Thrift-like events; the first is field 1. ``types`` and ``required`` name
    members of the payload. ``on_violation`` and ``privacy`` are None where ``[schemas]`` and ``[privacy]`` count.
    """

    fields: list[str] = field(default_factory=list)
    types: dict[str, FieldType] = field(default_factory=dict)
    required: list[str] = field(default_factory=list)
    on_violation: OnViolation | None = None
    privacy: PrivacySettings | None = None


def read_event(
    reader: Reader, name: str, table: Mapping[str, Value], defaults: PrivacySettings | None
) -> EventSettings | None:
    """Read the table of one event; None when it is wrong, which ``reader`` then knows."""
    path = f"events.{toml_key(name)}"
    variables = {key: value for key, value in table.items() if key.startswith("privacy__")}  # of the environment
    table = {key: value for key, value in table.items() if key not in variables}
    given = table.pop("privacy", None)
    reader.unknown(path, table, EventSettings)
    event = reader.table(EventSettings, path, table, {})
    if given is None and not variables:
        return event
    path = f"{path}.privacy"
    own: dict[str, Value] = {}
    if given is not None:
        if not isinstance(given.value, dict):
            reader.fail(path, given, "expected a table")
            return None
        own = {key: Value(value, given.source) for key, value in given.value.items()}
    own |= {key.removeprefix("privacy__"): value for key, value in variables.items()}
    reader.unknown(path, own, PrivacySettings)
    privacy = reader.table(PrivacySettings, path, own, vars(defaults) if defaults else {})
    return dataclasses.replace(event, privacy=privacy) if event and privacy else None


def check_privacy(table: tuple[str, ...], privacy: PrivacySettings) -> Iterator[Finding]:
    """Everything that is wrong with one table although each value has the right type."""
    for key in ("drop", "hmac", "ip_keys"):
        for path in getattr(privacy, key):
            if not all(path.split(".")):
                yield table, key, path, 'expected a key, or keys joined by dots such as "user.email"'
    if privacy.hmac and privacy.hmac_key_file is None:
        yield table, "hmac", privacy.hmac, "needs hmac_key_file"
    if privacy.ip_keys and not privacy.truncate_ip:
        yield table, "ip_keys", privacy.ip_keys, "needs truncate_ip = true"
    if privacy.hmac_key_file is not None:
        wrong = _wrong_with_key_file(privacy.hmac_key_file)
        if wrong:
            yield table, "hmac_key_file", str(privacy.hmac_key_file), wrong


def check_schemas(schemas: SchemaSettings) -> Iterator[Finding]:
    """What is wrong with the files of the directory: everything, each with the file and the place in it."""
    if schemas.directory is None:
        return
    try:
        from collector.json_schemas import SchemaErrors, load_schemas  # not everybody has them installed
    except ModuleNotFoundError as exc:
        yield (
            ("schemas",),
            "directory",
            str(schemas.directory),
            f"needs {exc.name}: pip install 'event-collector[schemas]'",
        )
        return
    try:
        load_schemas(schemas.directory)
    except SchemaErrors as exc:
        for error in exc.errors:
            yield ("schemas",), "directory", str(schemas.directory), error


def read_hmac_key(path: Path) -> bytes:
    """The key in a file: all of it, without line breaks at the end. Errors: OSError."""
    return path.read_bytes().rstrip(b"\r\n")


def _wrong_with_key_file(path: Path) -> str | None:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return "is no file"
        if status.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
            return f"others can read or write it: chmod 640 {path}"
        size = len(read_hmac_key(path)) if status.st_size < HMAC_KEY_BYTES.stop else status.st_size
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"
    if size not in HMAC_KEY_BYTES:
        return f"holds {size} bytes, expected {HMAC_KEY_BYTES.start} to {HMAC_KEY_BYTES.stop - 1}"
    return None
