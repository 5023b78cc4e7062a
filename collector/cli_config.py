"""``collector config``: is the settings file right, what does it come to, and a first one to begin with."""

import dataclasses
import json
import os
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from collector.cli_settings import BadSettings, Failed, json_option, settings_option

if TYPE_CHECKING:
    from collector.settings import Settings


@click.group()
def config() -> None:
    """Check, show or begin a settings file."""


@config.command()
@settings_option
def check(settings: "Settings") -> None:
    """Read the settings as every command does, and make each forwarder; exit 78 and a list when they will not do."""
    from collector.tables import toml_key
    from collector.wiring import unusable

    source = settings.path or "embedded default"
    if wrong := [f"{source}: forwarders.{toml_key(name)}: {reason}" for name, reason in unusable(settings)]:
        raise BadSettings("\n".join(wrong))
    goals = ", ".join(each.name for each in settings.forwarders) or "nowhere: no forwarder is configured"
    click.echo(f"{source}: good; events go to {goals}")


@config.command()
@json_option
@settings_option
def show(settings: "Settings", as_json: bool) -> None:
    """Print the settings in force, defaults and environment included, without secrets."""
    click.echo(json.dumps(shown(settings), indent=2) if as_json else to_toml(settings), nl=as_json)


@config.command()
@click.argument("file", type=click.Path(path_type=Path), default=Path("collector.toml"))
def init(file: Path) -> None:
    """Write a settings file to begin with, every default in it as a comment; - prints it."""
    text = beginning()
    if str(file) == "-":
        click.echo(text, nl=False)
        return
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)  # it may come to hold a password
        with os.fdopen(descriptor, "w", encoding="utf-8") as target:
            target.write(text)
    except OSError as exc:
        raise Failed(f"{file}: {exc.strerror}") from exc
    click.echo(f"{file} written; next: collector --config {file} config check")


def beginning() -> str:
    """A settings file that says what holds without one; the other defaults are comments, to be taken away."""
    from collector.settings import EMBEDDED, SECTIONS
    from collector.tables import toml_value

    blocks = [
        "# Settings of the collector. What has a # before it is the default. Relative paths begin where it runs.\n"
    ]
    for name, cls in SECTIONS.items():
        table = _values(cls())
        about = (cls.__doc__ or "").partition(": ")[2].replace("``", "")
        lines = [
            f"#{key} = {toml_value(value) if value is not None else ''}".rstrip(" =") for key, value in table.items()
        ]
        blocks.append("\n".join([f"# {about[:1].upper()}{about[1:]}", f"[{name}]", *lines, ""]))
    blocks.append("# A table for each destination: events go to all of them, each at its own pace.\n" + EMBEDDED)
    return "\n".join(blocks)


def to_toml(settings: "Settings") -> str:
    """The settings as a file that says the same, except that secrets are ``***``; keys without a value are comments."""
    from collector.tables import toml_key, toml_value

    blocks = []
    for path, table in _tables(settings):
        lines = [f"{key} = {toml_value(value)}" for key, value in table.items() if value is not None]
        lines += [f"# {key} is not set" for key, value in table.items() if value is None]
        blocks.append("\n".join(["[" + ".".join(map(toml_key, path)) + "]", *lines, ""]))
    return "\n".join(blocks)


def shown(settings: "Settings") -> dict[str, Any]:
    """The settings as JSON values, nested as their tables are, without secrets."""
    document: dict[str, Any] = {}
    for (*outer, last), table in _tables(settings):
        parent = document
        for each in outer:
            parent = parent.setdefault(each, {})
        parent[last] = table
    return document


def _tables(settings: "Settings") -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    from collector.settings import SECTIONS

    tables: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        ((name,), _values(getattr(settings, name))) for name in SECTIONS
    ]
    for name, each in settings.events.items():
        tables.append((("events", name), _values(each, without=("privacy",))))
        if each.privacy is not None:
            tables.append((("events", name, "privacy"), _values(each.privacy)))
    tables += [
        (("forwarders", each.name), {"type": each.type, **_values(each.flush), **_values(each.own)})
        for each in settings.forwarders
    ]
    tables += [
        (("workers", each.name), {"type": each.type, **_values(each.queue), **_values(each.own)})
        for each in settings.workers
    ]
    return tables


def _values(table: Any, without: Container[str] = ()) -> dict[str, Any]:
    """A settings dataclass as values that TOML and JSON have, without secrets."""
    import msgspec

    from collector.tables import is_secret

    values = {each.name: getattr(table, each.name) for each in dataclasses.fields(table) if each.name not in without}
    hidden = {each.name: "***" for each in dataclasses.fields(table) if is_secret(each) and values.get(each.name)}
    plain: dict[str, Any] = _redacted(msgspec.to_builtins({**values, **hidden}, enc_hook=str))  # a Path as its text
    return plain


def _redacted(value: Any) -> Any:
    from collector.tables import redact

    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [_redacted(each) for each in value]
    return {key: _redacted(each) for key, each in value.items()} if isinstance(value, dict) else value
