"""A private S3 as a child process: SeaweedFS, installed by scripts/test from requirements-services.lock."""

import os
import subprocess
from pathlib import Path
from typing import Self

from tests.services.child import free_port, start, wait_for_port, wait_until

PROGRAM = Path(__file__).parents[2] / ".venv-services/bin/weed"
BUCKET = "archive"
KEY, SECRET = "ak", "the-secret-of-s3"
_PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
          "s3.port.grpc")  # fmt: skip


class Seaweed:
    """One server in ``base``, with one bucket. ``start()`` after ``kill()`` finds the same objects."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        (base / "data").mkdir(parents=True, exist_ok=True)

    @staticmethod
    def is_installed() -> bool:
        return PROGRAM.exists()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def credentials(self) -> Path:
        """A file with the key."""
        path = self.base / "credentials"
        path.touch(0o600)
        path.write_text(f"AWS_ACCESS_KEY_ID={KEY}\nAWS_SECRET_ACCESS_KEY={SECRET}\n")
        return path

    def start(self) -> Self:
        log = self.base / "weed.log"
        command = [str(PROGRAM), "mini", "-dir", str(self.base / "data"), "-ip", "127.0.0.1", "-ip.bind", "127.0.0.1"]
        command += ["-bucket", BUCKET, "-admin.ui=false", "-webdav=false", "-master.telemetry=false"]
        command += ["-s3.autoCreateBucket=false", "-s3.port.iceberg", "0", "-s3.port.lance", "0"]
        command += ["-s3.port", str(self.port)]
        for each in _PORTS:
            command += [f"-{each}", str(free_port())]
        keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        self.process = start(command, self.base, {"PATH": os.environ["PATH"], "HOME": str(self.base), **keys}, log)
        wait_for_port(self.port, self.process, log)
        wait_until(self._takes_objects, 60, "SeaweedFS takes an object")
        return self

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)

    def _takes_objects(self) -> bool:
        from forwarders.archive_store import StoreError
        from forwarders.object_store import ObjectStore

        key = self.credentials()
        store = ObjectStore(
            f"s3://{BUCKET}", endpoint=self.endpoint, region="us-east-1", credentials_file=key, timeout_s=5
        )
        try:
            store.put("ready", b"1")
        except StoreError:
            return False
        return True
