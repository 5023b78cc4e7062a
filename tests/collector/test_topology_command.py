"""``collector topology``: what it prints, what it makes, and what it says when it cannot."""

import json
import uuid
from contextlib import closing
from pathlib import Path

import pika
import pytest
from click.testing import CliRunner, Result

from collector.cli import cli
from tests.services.collector import REPOSITORY
from tests.services.rabbit import Rabbit

ETC = REPOSITORY / "etc" / "rabbitmq"
VARIABLE = "COLLECTOR_FORWARDERS__RABBITMQ__"


def topology(*arguments: str, code: int = 0, **options: str) -> Result:
    """Run the command with etc/rabbitmq/collector.toml; ``options`` come before what is in it."""
    environ = {VARIABLE + key.upper(): value for key, value in options.items()}
    done = CliRunner(env=environ).invoke(cli, ["--config", str(ETC / "collector.toml"), "topology", *arguments])
    assert done.exit_code == code, done.output
    return done


def states(*arguments: str, code: int = 0, **options: str) -> dict[str, str]:
    """What --apply says of each exchange and queue, and of bindings as a whole."""
    steps = json.loads(topology("rabbitmq", "--apply", "--json", *arguments, code=code, **options).stdout)
    return {step["name"] if step["kind"] != "binding" else "bindings": step["state"] for step in steps}


def test_the_definitions_in_etc_are_what_the_settings_beside_them_come_to() -> None:
    assert (ETC / "definitions.json").read_text() == topology("rabbitmq", "--json").stdout


@pytest.mark.server
def test_a_broker_imports_the_definitions_and_then_nothing_is_missing(rabbit: Rabbit, tmp_path: Path) -> None:
    """In a virtual host of its own, which the definitions make too."""
    name = f"host-{uuid.uuid4().hex[:8]}"
    definitions = json.loads((ETC / "definitions.json").read_text().replace('"/"', f'"{name}"'))
    definitions["permissions"] = [{"user": "guest", "vhost": name, "configure": ".*", "write": ".*", "read": ".*"}]
    (tmp_path / "definitions.json").write_text(json.dumps(definitions))
    url = rabbit.url.replace("%2f", name)
    rabbit.control("import_definitions", str(tmp_path / "definitions.json"))

    assert set(states(url=url).values()) == {"there", "bound"}
    with closing(pika.BlockingConnection(pika.URLParameters(url))) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish("events", "Page.view", b"1", mandatory=True)
        assert [channel.basic_get(queue)[2] for queue in ("mongodb", "influxdb")] == [b"1", b"1"]


@pytest.mark.server
def test_what_is_missing_is_made_once_and_what_is_different_is_explained(rabbit: Rabbit) -> None:
    name = f"topology-{uuid.uuid4().hex[:8]}"
    here = {"url": rabbit.url, "exchange": name, "consumers": f'{{{name} = {{dead_letter_exchange = "{name}.dead"}}}}'}
    assert set(states("--dry-run", **here).values()) == {"missing", "unknown"}
    assert set(states(**here).values()) == {"made", "bound"}
    assert set(states(**here).values()) == {"there", "bound"}

    here["consumers"] = here["consumers"].replace("}}", ", max_length = 5}}")
    for look in ([], ["--dry-run"]):
        told = states(*look, code=1, **here)
        assert (told[name], told[f"{name}.dead"]) == ("refused", "there")
    text = topology("rabbitmq", "--apply", code=1, **here).stdout
    assert "inequivalent arg 'x-max-length'" in text
    assert "by a policy" in text


def test_what_cannot_be_done_is_said_in_a_line() -> None:
    nowhere = "amqp://guest:guest@127.0.0.1:1/%2f"

    assert "Connection refused" in topology("rabbitmq", "--apply", code=1, url=nowhere).stderr
    assert topology("archive", code=1).stderr == "archive: no forwarder of type rabbitmq is called so in the settings\n"
    assert "--dry-run needs --apply" in topology("rabbitmq", "--dry-run", code=2).stderr
