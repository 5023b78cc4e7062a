"""``collector spool key``: the file of the keys that the spool is encrypted with."""

from pathlib import Path

import click

from collector.cli_settings import Failed, dry_run_option


@click.group()
def key() -> None:
    """The keys that the spool is encrypted with ([spool] key_file)."""


@key.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--id", "name", help="What it is called  [default: the date].")
@dry_run_option
def new(file: Path, name: str | None, dry_run: bool) -> None:
    """Put a new key into FILE, as the first: from the next start (or SIGHUP) on it writes.

    The keys before it stay, so that what they wrote can be read. Who loses FILE loses what is in the spool: keep a
    copy elsewhere, not beside the spool.
    """
    from spool.key_file import KeyFileError, add_key, read_keys

    try:
        if dry_run:
            click.echo(f"{file}: one more key, before {len(read_keys(file)) if file.exists() else 0} others")
            return
        click.echo(f"{file}: key {add_key(file, name)} is new and writes")
    except KeyFileError as exc:
        raise Failed(str(exc)) from exc
    except OSError as exc:
        raise Failed(f"{exc.filename or file}: {exc.strerror}") from exc
