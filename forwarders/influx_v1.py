"""The endpoints of an InfluxDB 1: ``/write``, and ``/query`` for how long its data is kept."""

import base64
import re
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from forwarders.http_endpoint import HttpEndpoint, Reply
from forwarders.influx_reply import RetentionFailed, message_of

DAY_S: Final = 86_400
_DURATION: Final = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


class WriteEndpointV1:
    """``POST <url>/write?db&rp&precision=n``. Used by one thread; keeps one connection.

    ``policy``: the retention policy; empty: the database's default one.
    """

    def __init__(
        self, url: str, database: str, policy: str, credentials: str, ca_file: Path | None, *, gzip: bool
    ) -> None:
        self._endpoint = HttpEndpoint(url, ca_file, compress=gzip)
        self._database = database
        self._policy = policy
        basic = base64.b64encode(credentials.encode()).decode()
        self._headers = {"Authorization": f"Basic {basic}"} if credentials else {}
        self._path = "/write?" + urlencode({"db": database, "precision": "n"} | ({"rp": policy} if policy else {}))

    def post(self, lines: bytes, timeout_s: float) -> Reply:
        """Send lines and return the whole answer, whatever it says. Errors: NoReply."""
        return self._endpoint.post(self._path, lines, self._headers, timeout_s)

    def keep_for(self, retention_s: int, timeout_s: float) -> str:
        """See that data is kept for so long, in a database that is made when it is missing; what was changed.

        Errors: NoReply, RetentionFailed.
        """
        deadline = time.monotonic() + timeout_s
        database, duration = _quoted(self._database), f"DURATION {retention_s}s"
        shards = f"SHARD DURATION {_shard_h(retention_s)}h"
        try:
            policies = self._query(f"SHOW RETENTION POLICIES ON {database}", deadline)
        except RetentionFailed as exc:
            if "database not found" not in str(exc):
                raise
            name = f" NAME {_quoted(self._policy)}" if self._policy else ""
            self._query(f"CREATE DATABASE {database} WITH {duration} REPLICATION 1 {shards}{name}", deadline)
            return "database made"
        found = next((each for each in policies if each["name"] == self._policy or self._is_meant(each)), None)
        if found is None:
            policy = _quoted(self._policy)
            self._query(f"CREATE RETENTION POLICY {policy} ON {database} {duration} REPLICATION 1 {shards}", deadline)
            return "retention policy made"
        if _seconds(found["duration"]) == retention_s:
            return ""
        policy = _quoted(found["name"])
        self._query(f"ALTER RETENTION POLICY {policy} ON {database} {duration} {shards}", deadline)
        return "retention policy changed"

    def close(self) -> None:
        """Close the connection. Doing it twice is harmless."""
        self._endpoint.close()

    def _is_meant(self, policy: dict[str, Any]) -> bool:
        return not self._policy and bool(policy["default"])

    def _query(self, influxql: str, deadline: float) -> list[dict[str, Any]]:
        path = "/query?" + urlencode({"q": influxql})
        reply = self._endpoint.post(path, b"", self._headers, max(0.001, deadline - time.monotonic()))
        try:
            (result,) = msgspec.json.decode(reply.text, type=dict[str, list[dict[str, Any]]])["results"]
        except (msgspec.DecodeError, KeyError, ValueError):
            result = {"error": f"{reply.status} {message_of(reply.text)}"}
        if "error" in result:
            raise RetentionFailed(str(result["error"]))
        return [
            dict(zip(series["columns"], row, strict=True))
            for series in result.get("series", [])
            for row in series.get("values", [])
        ]


def _quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _shard_h(retention_s: int) -> int:
    """As InfluxDB chooses it, which it does for new policies only."""
    if retention_s < 2 * DAY_S:
        return 1
    return 24 if retention_s <= 180 * DAY_S else 168


def _seconds(duration: str) -> int:
    """``168h0m0s`` in seconds; 0: for ever."""
    found = _DURATION.fullmatch(duration)
    hours, minutes, seconds = (int(each or 0) for each in found.groups()) if found else (0, 0, 0)
    return 3600 * hours + 60 * minutes + seconds
