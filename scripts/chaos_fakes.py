"""Amplitude and Google Analytics for `chaos`: local servers that enforce the documented limits, and go away at times.

They run in this process, so there is nothing to kill or to stop: ``down`` resets every connection, ``cut`` delivers
nothing in either direction and then resets.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chaos_ledger import Copy
from chaos_servers import Hurt

from tests.services.amplitude import API_KEY, FakeAmplitude
from tests.services.google_analytics import MEASUREMENT_ID, SECRET, FakeGoogleAnalytics
from tests.services.tcp_proxy import TcpProxy


class HurtFake(Hurt):
    """One of them behind a proxy. ``secret`` is the file with its key."""

    faults = ("down", "cut")
    secret_text: str

    def __init__(self, base: Path) -> None:
        base.mkdir()
        self.secret = base / "secret"
        self.secret.write_text(self.secret_text)
        self.server = self.fake()
        self.proxy = TcpProxy(int(self.server.http.url.rpartition(":")[2]))
        self.done = []

    def fake(self) -> Any:
        """The server, which listens already."""
        raise NotImplementedError

    @classmethod
    def is_installed(cls) -> bool:
        return True

    def start(self) -> None:
        self.proxy.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}"

    @contextmanager
    def _down(self) -> Iterator[None]:
        self.proxy.refuse = True
        self.proxy.reset_all()
        try:
            yield
        finally:
            self.proxy.refuse = False


class HurtAmplitude(HurtFake):
    """Knows a repeat by its id, and shows none."""

    name = "amplitude"
    secret_text = API_KEY

    def fake(self) -> FakeAmplitude:
        return FakeAmplitude()

    def settings(self, timeout_s: float) -> dict[str, dict[str, Any]]:
        own = {"url": self.url, "api_key_file": str(self.secret), "timeout_s": timeout_s}
        return {"forwarders.amplitude": own}

    def copies(self) -> Iterator[Copy]:
        for event in self.server.events:
            yield Copy(event["event_properties"]["n"], event["insert_id"])


class HurtAnalytics(HurtFake):
    """Knows no repeats. What it drops without a word is missing."""

    name = "google-analytics"
    secret_text = SECRET
    keeps_repeats = True

    def fake(self) -> FakeGoogleAnalytics:
        return FakeGoogleAnalytics(lambda: time.time_ns() // 1_000_000)

    def settings(self, timeout_s: float) -> dict[str, dict[str, Any]]:
        own = {"url": self.url, "api_secret_file": str(self.secret), "timeout_s": timeout_s}
        return {
            "forwarders.google-analytics": {
                **own, "measurement_id": MEASUREMENT_ID, "event_id_param": "collector_id", "connections": 4
            }
        }  # fmt: skip

    def copies(self) -> Iterator[Copy]:
        for event in self.server.events:
            yield Copy(event["params"]["n"], event["params"]["collector_id"])
