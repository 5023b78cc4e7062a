"""``collector topology``: what a RabbitMQ must have for the settings' consumers, as a list, as definitions, or made."""

import dataclasses
import json
import sys
from typing import TYPE_CHECKING

import click

from collector.cli_output import columns
from collector.cli_settings import Failed, dry_run_option, json_option, settings_option

if TYPE_CHECKING:
    from collector.settings import Settings


@click.command()
@click.argument("name")
@click.option("--apply", "applied", is_flag=True, help="Make what is missing; what is there stays.")
@dry_run_option
@json_option
@settings_option
def topology(settings: "Settings", name: str, applied: bool, dry_run: bool, as_json: bool) -> None:
    """Print the exchanges, queues and bindings that forwarder NAME needs on its RabbitMQ; with --apply, make them.

    --json prints RabbitMQ's own format, for `rabbitmqctl import_definitions`; with --apply what was done. Exits 1 when
    the broker refuses something.
    """
    from forwarders.contract import Unavailable

    if dry_run and not applied:
        raise click.UsageError("--dry-run needs --apply")
    chosen = next((each for each in settings.forwarders if each.name == name), None)
    if chosen is None or chosen.type != "rabbitmq":
        raise Failed(f"{name}: no forwarder of type rabbitmq is called so in the settings")
    wanted = chosen.own.topology
    parameters = chosen.own.parameters(f"collector topology {name}")
    if not applied:
        definitions = wanted.definitions(parameters[0].virtual_host)
        if as_json:
            click.echo(json.dumps(definitions, indent=2))
        else:
            columns(["KIND", "NAME", "HOW"], wanted.rows())
        return
    from forwarders.amqp_apply import apply

    try:
        steps = apply(parameters, wanted, dry_run=dry_run)
    except Unavailable as exc:
        raise Failed(exc.reason) from exc
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(each) for each in steps]))
    else:
        columns(
            ["KIND", "NAME", "STATE", "REASON"], [[each.kind, each.name, each.state, each.reason] for each in steps]
        )
    if any(each.state == "refused" for each in steps):
        sys.exit(1)
