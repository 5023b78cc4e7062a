"""``collector send``: post events to a running collector."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import click

from collector.cli_output import counted
from collector.cli_settings import Failed, settings_option

if TYPE_CHECKING:
    from collector.settings import Settings


@click.command()
@click.argument("file", type=click.File("rb"), required=False)
@click.option(
    "--from",
    "archived",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Post the events of this archive file: .jsonl, .thrift, either with .gz or .zst, or .parquet.",
)
@click.option("--url", help="http://HOST:PORT or unix:PATH  [default: the first http.bind of the settings]")
@click.option("--batch", type=click.IntRange(min=1), default=1000, show_default=True, help="Events a request.")
@click.option("--tries", type=click.IntRange(min=1), default=10, show_default=True, help="Give up after so many 503.")
@click.option("--key-file", type=click.File(), help="A file with the API key  [default: COLLECTOR_API_KEY]")
@click.option("--rejected", type=click.File("wb", lazy=True), help="Write the events it rejects there, as JSON lines.")
@settings_option
def send(
    settings: "Settings",
    file: BinaryIO | None,
    archived: tuple[Path, ...],
    url: str | None,
    batch: int,
    tries: int,
    key_file: TextIO | None,
    rejected: BinaryIO | None,
) -> None:
    """Post the events in FILE (JSON lines or arrays; - or nothing: standard input) to a running collector.

    With --from, the events of archive files: with their names, times and payloads, under new ids.
    """
    from collector import ports
    from collector.repost import Reposting
    from collector.send import CannotSend, documents
    from collector.send import send as send_all

    if file and archived:
        raise click.UsageError("FILE or --from, not both")
    url = url or ports.url(settings.http.binds[0], tls=bool(settings.http.certfile))
    options: dict[str, Any] = {
        "max_events": batch,
        "tries": tries,
        "api_key": (key_file.read() if key_file else os.environ.get("COLLECTOR_API_KEY", "")).strip(),
        "tell": lambda said: click.echo(said, err=True),
        "keep": lambda event: rejected.write(b" ".join(event.splitlines()) + b"\n") if rejected else None,
    }
    try:
        if archived:
            reposting = Reposting({name: each.fields for name, each in settings.events.items()})
            sent = reposting.post(counted(reposting.documents(archived), "sending"), url, **options)
        else:
            sent = send_all(counted(documents(file or sys.stdin.buffer), "sending"), url, **options)
    except CannotSend as exc:
        raise Failed(str(exc)) from exc
    except ModuleNotFoundError as exc:
        raise Failed(f"Parquet needs {exc.name}: pip install 'event-collector[query]'") from exc
    click.echo(f"{sent.accepted} events accepted, {sent.rejected} rejected")
    if sent.rejected:
        sys.exit(1)
