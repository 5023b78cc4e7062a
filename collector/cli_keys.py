"""``collector keys``: who may post events, give commands over HTTP, and read figures."""

import json
import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from collector.cli_output import columns
from collector.cli_settings import BadSettings, Failed, dry_run_option, json_option, settings_option

if TYPE_CHECKING:
    from pathlib import Path

    from collector.api_key_file import ApiKey
    from collector.settings import Settings

_SPANS_S = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


def moment(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """A date, a date-time, or how long from now."""
    from formats.event import FormatError
    from formats.times import parse_date

    if value is None:
        return None
    span = re.fullmatch(r"([0-9]{1,6})([hdw])", value)
    try:
        at_s = time.time() + int(span[1]) * _SPANS_S[span[2]] if span else parse_date(value) / 1000
        at = datetime.fromtimestamp(int(at_s), UTC)
    except (FormatError, ValueError, OverflowError) as exc:
        wanted = "expected a date such as 2027-01-31, or a time from now such as 12h, 90d, 26w"
        raise click.BadParameter(f"{value}: {wanted}") from exc
    if at_s <= time.time():
        raise click.BadParameter(f"{value} is over")
    return at


def patterns(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Patterns of event names; an empty one would read as if there were none."""
    if not all(each.removeprefix("!") for each in value):
        raise click.BadParameter("a pattern is empty")
    return value


@click.group()
def keys() -> None:
    """API keys: make, list and revoke them. Running workers notice within a second."""


@keys.command()
@click.option(
    "--scope", "scopes", multiple=True, default=["post"], show_default=True,
    type=click.Choice(["post", "admin", "read"]), help="What it is good for; can be repeated.",
)  # fmt: skip
@click.option(
    "--name", "names", multiple=True, metavar="PATTERN", callback=patterns,
    help="Event names it may send; can be repeated.",
)  # fmt: skip
@click.option(
    "--expires", metavar="WHEN", callback=moment, help="A date, or a time from now (12h, 90d, 26w).  [default: never]"
)
@click.option("--note", default="", help="Whose it is.")
@dry_run_option
@json_option
@settings_option
def add(
    settings: "Settings",
    scopes: tuple[str, ...],
    names: tuple[str, ...],
    expires: datetime | None,
    note: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make a key, and print it: it cannot be shown again."""
    from collector.api_key_file import ApiKeyFileError, add_key, kept, new_key

    path = _file(settings)
    key = new_key()
    about = kept(key, scopes=scopes, names=names, expires=expires, note=note)
    if dry_run:
        click.echo(f"would add to {path}: {_sentence(about)}", err=True)
        return
    try:
        add_key(path, key.prefix, about, like=settings.spool.path)
    except ApiKeyFileError as exc:
        raise Failed(str(exc)) from exc
    click.echo(f"{path}: {key.prefix} added: {_sentence(about)}. This is the key; it is not shown again:", err=True)
    click.echo(json.dumps({"key": key.text, **_as_json(key.prefix, about)}) if as_json else key.text)


@keys.command()
@json_option
@settings_option
def ls(settings: "Settings", as_json: bool) -> None:
    """List the keys: their prefixes and what they may do."""
    found = _keys(settings)
    if as_json:
        click.echo(json.dumps([_as_json(prefix, key) for prefix, key in found.items()]))
        return
    rows = [
        [
            prefix,
            " ".join(key.scopes),
            " ".join(key.names) or "*",
            f"{key.created:%Y-%m-%d}",
            f"{key.expires:%Y-%m-%dT%H:%MZ}" if key.expires else "never",
            "expired" if key.is_expired(time.time()) else "valid",
            key.note,
        ]
        for prefix, key in found.items()
    ]
    columns(["PREFIX", "SCOPES", "NAMES", "CREATED", "EXPIRES", "STATE", "NOTE"], rows)


@keys.command()
@click.argument("prefix")
@dry_run_option
@settings_option
def revoke(settings: "Settings", prefix: str, dry_run: bool) -> None:
    """Remove the key with this PREFIX (a whole key will do); who brings it is refused from then on."""
    from collector.api_key_file import KEY, ApiKeyFileError, remove_key

    path = _file(settings)
    whole = KEY.fullmatch(prefix)
    prefix = whole[1] if whole else prefix.removeprefix("ck_")
    try:
        found = _keys(settings).get(prefix) if dry_run else remove_key(path, prefix)
    except ApiKeyFileError as exc:
        raise Failed(str(exc)) from exc
    if found is None:
        raise Failed(f"{path}: there is no key {prefix if len(prefix) <= 8 else 'of this prefix'}")
    click.echo(f"{path}: {prefix} {'would be ' if dry_run else ''}revoked: {_sentence(found)}")


def _file(settings: "Settings") -> "Path":
    if settings.auth.keys_file is None:
        raise BadSettings("auth.keys_file is not set: it says where the keys are kept")
    return settings.auth.keys_file


def _keys(settings: "Settings") -> "dict[str, ApiKey]":
    from collector.api_key_file import ApiKeyFileError, read_keys

    try:
        return read_keys(_file(settings))
    except FileNotFoundError:
        return {}
    except ApiKeyFileError as exc:
        raise Failed(str(exc)) from exc


def _sentence(key: "ApiKey") -> str:
    """What a key may do, in words."""
    until = f", until {key.expires:%Y-%m-%dT%H:%MZ}" if key.expires else ""
    note = f" ({key.note})" if key.note else ""
    return f"scope {', '.join(key.scopes)}, events {', '.join(key.names) or 'of every name'}{until}{note}"


def _as_json(prefix: str, key: "ApiKey") -> dict[str, Any]:
    expires = key.expires.isoformat() if key.expires else None
    return {"prefix": prefix, "scopes": key.scopes, "names": key.names, "created": key.created.isoformat(),
            "expires": expires, "expired": key.is_expired(time.time()), "note": key.note}  # fmt: skip
