"""The command ``collector``. Each command parses, calls one function, prints what changed.

Exit codes: 0 done, 1 failed (or something is wrong), 2 wrong usage, 75 another process has the lock, 78 bad settings.
What a command needs is imported when it runs, so that ``--help`` is quick.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

import collector
from collector.cli_archive import archive
from collector.cli_audit import audit
from collector.cli_collection import collection
from collector.cli_config import config
from collector.cli_doctor import doctor
from collector.cli_erase import erase_in_archive, erase_in_spool
from collector.cli_forwarder import forwarder
from collector.cli_keys import keys
from collector.cli_quarantine import quarantine
from collector.cli_query import query
from collector.cli_replay import replay
from collector.cli_report import report
from collector.cli_send import send
from collector.cli_settings import config_option, settings_option
from collector.cli_spool import spool
from collector.cli_spool_change import forget
from collector.cli_status import status
from collector.cli_topology import topology
from collector.cli_work import work

if TYPE_CHECKING:
    from collector.settings import Settings


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@config_option
@click.version_option(collector.__version__ + " (compiled)" * collector.is_compiled(), prog_name="collector")
def cli(config: Path | None) -> None:
    """Collects events over HTTP, keeps them on disk, and forwards them."""


@cli.command()
@settings_option
def serve(settings: "Settings") -> None:
    """Run the collector: HTTP workers, the flusher and the Scribe listener if enabled, until SIGTERM."""
    from collector import logs, supervisor

    logs.setup(settings.log)
    sys.exit(supervisor.serve(settings, settings.path))


@cli.command()
@click.option("--once", is_flag=True, help="Send what is in the spool now, then end.")
@settings_option
def flush(settings: "Settings", once: bool) -> None:
    """Run the flusher alone: forward what is in the spool, until SIGTERM."""
    from collector import logs, wiring
    from forwarders.flusher import EXIT_LOCKED, Locked

    logs.setup(settings.log)
    if not once:
        sys.exit(wiring.run_flusher(settings))
    try:
        delivered = wiring.build_flusher(settings).flush_once()
    except Locked as exc:
        click.echo(f"{exc}: another flusher works on this spool", err=True)
        sys.exit(EXIT_LOCKED)
    click.echo("all is delivered" if delivered else "not all is delivered: see collector status")
    sys.exit(0 if delivered else 1)


@cli.command()
@click.option("--descriptor", "descriptors", type=int, multiple=True, hidden=True)  # of the supervisor's sockets
@settings_option
def listen(settings: "Settings", descriptors: tuple[int, ...]) -> None:
    """Run the Scribe listener alone, until SIGTERM."""
    from collector import listen as listener
    from collector import logs

    logs.setup(settings.log)
    sys.exit(listener.run(settings, descriptors))


for command in (archive, audit, collection, config, doctor, forwarder, keys, quarantine, replay, send, spool, status):
    cli.add_command(command)
for command in (erase_in_spool, forget):
    spool.add_command(command)
for command in (query, report, topology, work):
    cli.add_command(command)
archive.add_command(erase_in_archive)


def main() -> None:
    """Run the command line of this process."""
    cli(prog_name="collector")
