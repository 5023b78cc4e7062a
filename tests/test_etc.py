"""The sample configurations under etc/, each given to the program it is for."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests.services.child import free_port, start, wait_for_port
from tests.services.collector import RunningCollector, stored_events

ROOT = Path(__file__).parents[1]
NGINX = """\
daemon off; master_process off; pid nginx.pid; error_log stderr warn;
events {{ }}
http {{
  client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  {collector}
}}
"""
ORIGIN = {"Origin": "https://shop.example"}


StartFront = Callable[[int], str]


@pytest.fixture
def front_of(tmp_path: Path) -> Iterator[StartFront]:
    """Starts nginx with etc/nginx/collector.conf, its rate lowered, before the port of a collector; returns its URL."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    started: list[subprocess.Popen[bytes]] = []

    def begin(collector_port: int) -> str:
        port = free_port()
        sample = (ROOT / "etc/nginx/collector.conf").read_text()
        for there, here in [
            ("127.0.0.1:8080", f"127.0.0.1:{collector_port}"),
            ("listen 80;", f"listen 127.0.0.1:{port};"),
            ("listen [::]:80;", ""),
            ("rate=100r/s", "rate=1r/s"),
            ("burst=400", "burst=4"),
        ]:
            assert there in sample
            sample = sample.replace(there, here)
        (tmp_path / "nginx.conf").write_text(NGINX.format(collector=sample))
        command = ["nginx", "-p", f"{tmp_path}/", "-c", f"{tmp_path}/nginx.conf", "-e", "stderr"]
        log = tmp_path / "nginx.log"
        started.append(start(command, tmp_path, {"PATH": os.environ["PATH"]}, log))
        wait_for_port(port, started[-1], log)
        return f"http://127.0.0.1:{port}"

    yield begin
    for process in started:
        process.terminate()
        process.wait(20)


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[RunningCollector]:
    with RunningCollector(tmp_path) as running:
        yield running


@pytest.mark.server
def test_events_come_through_nginx_as_they_were_sent(front_of: StartFront, collector: RunningCollector) -> None:
    url = front_of(collector.port)

    pixel = requests.get(f"{url}/1?v=Hello,s%252C%2525,s{'x' * 30_000}", timeout=10, headers=ORIGIN)
    big = {"eventName": "Big", "payload": {"k": "x" * 2**20}}
    posted = requests.post(f"{url}/rest/1.0/event", json=big, timeout=10)

    assert (pixel.status_code, posted.status_code) == (202, 202)
    assert pixel.headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
    stored = {event.name: event.payload for event in stored_events(collector.spool)}
    assert stored["Hello"] == [(1, "string", ",%"), (2, "string", "x" * 30_000)]
    assert json.loads(stored["Big"]) == big["payload"]
    assert requests.get(f"{url}/metrics", timeout=10).status_code == 200


@pytest.mark.server
def test_the_address_behind_nginx_is_the_clients(front_of: StartFront, collector: RunningCollector) -> None:
    url = front_of(collector.port)

    requests.get(f"{url}/1?v=Seen,xip", headers={"X-Forwarded-For": "203.0.113.7"}, timeout=10)

    (event,) = stored_events(collector.spool)
    assert event.payload == [(1, "string", "203.0.113.7")]


@pytest.mark.server
def test_nginx_refuses_in_words_that_a_page_can_read(front_of: StartFront) -> None:
    """A body above the limit, and a collector that is not there: with CORS, and 503 rather than 502."""
    url = f"{front_of(free_port())}/rest/1.0/event"

    too_large = requests.post(url, data=b" " * (8 * 2**20 + 1), headers=ORIGIN, timeout=10)
    unreachable = requests.post(url, json={}, headers=ORIGIN, timeout=10)

    assert (too_large.status_code, unreachable.status_code) == (413, 503)
    assert unreachable.headers["Retry-After"] == "10"
    for answer in (too_large, unreachable):
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
        assert answer.headers["Access-Control-Allow-Credentials"] == "true"


@pytest.mark.server
def test_nginx_holds_back_who_sends_too_much(front_of: StartFront) -> None:
    url = front_of(free_port())

    with requests.Session() as session:
        answers = [session.get(f"{url}/1?v=Hello,", headers=ORIGIN, timeout=10) for _ in range(20)]

    assert {answer.status_code for answer in answers[:5]} == {503}
    assert answers[-1].status_code == 429
    assert answers[-1].headers["Retry-After"] == "5"
    assert answers[-1].headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]


@pytest.mark.server
@pytest.mark.parametrize("unit", sorted((ROOT / "etc/systemd").glob("*.service")), ids=lambda path: path.stem)
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    for each in unit.parent.iterdir():
        (tmp_path / each.name).write_text(
            each.read_text().replace("/opt/collector/bin", os.path.dirname(sys.executable))
        )

    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (verified.returncode, verified.stderr) == (0, "")
