"""``collector work``: an event worker, which feeds a destination from a RabbitMQ queue."""

from typing import TYPE_CHECKING, Any

import click

from collector.cli_settings import settings_option

if TYPE_CHECKING:
    from collector.settings import Settings


@click.command()
@click.argument("worker")
@click.option("--queue", help="Take from this queue  [default: the queue of the worker's table]")
@click.option("--exchange", help="Make the queue if it is missing, and bind it to this exchange.")
@click.option("--url", "amqp_url", help="amqp[s]://USER:PASSWORD@HOST:PORT/VHOST  [default: amqp_url of the table]")
@settings_option
def work(settings: "Settings", worker: str, **options: Any) -> None:
    """Take events from a RabbitMQ queue into a destination, until SIGTERM.

    WORKER is the name of a table [workers.NAME] of the settings; or a type (archive, influxdb, mongodb, ...), which
    then has its defaults; or MODULE:FUNCTION, which makes a forwarder of your own (docs/writing-a-worker.md).
    """
    from collector import logs
    from collector.work import find_worker, run_worker

    logs.setup(settings.log)
    given = {key: value for key, value in options.items() if value is not None}
    run_worker(settings, find_worker(settings, worker, given))
