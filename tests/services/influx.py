"""A private InfluxDB 1.x as a child process, behind an nginx that speaks the write endpoint of 2.x.

Debian has no InfluxDB 2; its 1.6 has the same parser of line protocol and the same store. The front turns
``POST /api/v2/write?org&bucket&precision`` into ``POST /write?db&precision`` and checks the token.
"""

import json
import os
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Self

from tests.services.child import free_port, start, wait_for_port

TOKEN = "a-token-of-the-tests"

FRONT = """\
daemon off; master_process off; pid {base}/nginx.pid; error_log {base}/error.log info;
events {{ worker_connections 256; }}
http {{
  access_log {base}/access.log; client_max_body_size {max_body_bytes};
  client_body_temp_path {base}/b; proxy_temp_path {base}/p; fastcgi_temp_path {base}/f;
  uwsgi_temp_path {base}/u; scgi_temp_path {base}/s;
  map $arg_precision $unit {{ default n; ns n; us u; ms ms; s s; }}
  map $http_authorization $known {{ default 0; "Token {token}" 1; }}
  server {{
    listen 127.0.0.1:{port};
    location = /api/v2/write {{
      default_type application/json;
      if ($known = 0) {{ return 401 '{{"code":"unauthorized","message":"unauthorized access"}}'; }}
      rewrite ^ /write?db=$arg_bucket&precision=$unit? break;
      proxy_set_header Authorization "";
      proxy_pass http://127.0.0.1:{server_port};
      proxy_http_version 1.1; proxy_set_header Connection "";
    }}
  }}
}}
"""


class Influx:
    """One server and its front in ``base``. ``start()`` after ``kill()`` starts the server again on the same data."""

    def __init__(self, base: Path, max_body_bytes: int = 4 * 1024 * 1024) -> None:
        self.base = base
        self.port, self.server_port, self.backup_port = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.server_url = f"http://127.0.0.1:{self.server_port}"
        base.mkdir(parents=True, exist_ok=True)
        self.token_file = base / "token"
        self.token_file.write_text(TOKEN + "\n")
        (base / "nginx.conf").write_text(
            FRONT.format(
                base=base, port=self.port, server_port=self.server_port, token=TOKEN, max_body_bytes=max_body_bytes
            )
        )
        self.process: subprocess.Popen[bytes] | None = None
        self._front: subprocess.Popen[bytes] | None = None

    @staticmethod
    def is_installed() -> bool:
        return shutil.which("influxd") is not None and shutil.which("nginx") is not None

    def start(self) -> Self:
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.base),
            "INFLUXDB_REPORTING_DISABLED": "true",
            "INFLUXDB_BIND_ADDRESS": f"127.0.0.1:{self.backup_port}",
            "INFLUXDB_META_DIR": str(self.base / "meta"),
            "INFLUXDB_DATA_DIR": str(self.base / "data"),
            "INFLUXDB_DATA_WAL_DIR": str(self.base / "wal"),
            "INFLUXDB_HTTP_BIND_ADDRESS": f"127.0.0.1:{self.server_port}",
            "INFLUXDB_MONITOR_STORE_ENABLED": "false",
            "INFLUXDB_HTTP_LOG_ENABLED": "false",
        }
        log = self.base / "influxd.log"
        self.process = start(["influxd", "run", "-config", "/dev/null"], self.base, environ, log)
        wait_for_port(self.server_port, self.process, log)
        if self._front is None:
            log = self.base / "nginx.log"
            command = ["nginx", "-p", str(self.base), "-c", str(self.base / "nginx.conf")]
            command += ["-e", str(self.base / "error.log")]
            self._front = start(command, self.base, {"PATH": os.environ["PATH"]}, log)
            wait_for_port(self.port, self._front, log)
        return self

    def kill(self) -> None:
        """SIGKILL to the server; the front stays and answers 502."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        for process in (self._front, self.process):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(20)

    def create(self, bucket: str) -> str:
        """Make an empty bucket (a database of 1.x) and return its name."""
        self.query(f'DROP DATABASE "{bucket}"')
        self.query(f'CREATE DATABASE "{bucket}"')
        return bucket

    def query(self, influxql: str, bucket: str = "") -> list[dict[str, Any]]:
        """Rows of a query as dictionaries: columns, and the tags of a GROUP BY; times in ns since 1970."""
        data = urllib.parse.urlencode({"q": influxql, "db": bucket, "epoch": "ns"}).encode()
        with urllib.request.urlopen(f"{self.server_url}/query", data, timeout=20) as reply:
            (result,) = json.load(reply)["results"]
        if "error" in result:
            raise AssertionError(f"{influxql}: {result['error']}")
        return [
            {**series.get("tags", {}), **dict(zip(series["columns"], row, strict=True))}
            for series in result.get("series", [])
            for row in series["values"]
        ]
