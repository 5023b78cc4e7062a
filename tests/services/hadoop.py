"""A private HDFS as child processes: Hadoop's NameNode and DataNode. scripts/test installs what they consist of.

It runs this module once, so that Java keeps the classes of both as it has them in memory: half the time of a start.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self
from urllib.parse import quote, urlencode

import urllib3

from tests.services.child import free_port, start, wait_until

JARS = Path(__file__).parents[2] / ".venv-services/hadoop"
USER, SUPERUSER = "collector", "hdfs"
BLOCK_BYTES = 1 << 20
_DEBIAN = ("jetty9-http", "jetty9-io", "jetty9-security", "jetty9-server", "jetty9-servlet", "jetty9-util",
           "jetty9-util-ajax", "jetty9-webapp", "jetty9-xml", "jersey1-core", "jersey1-server", "jersey1-servlet",
           "jsr311-api", "servlet-api", "jackson-databind", "jackson-annotations", "jaxb-api", "httpclient", "httpcore",
           "commons-codec")  # fmt: skip
_JAVA = ("java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
_SERVERS = {
    "datanode": "org.apache.hadoop.hdfs.server.datanode.DataNode",  # which waits for the other one
    "namenode": "org.apache.hadoop.hdfs.server.namenode.NameNode",
}
_LOG4J = """
log4j.rootLogger=INFO,out
log4j.appender.out=org.apache.log4j.ConsoleAppender
log4j.appender.out.layout=org.apache.log4j.PatternLayout
log4j.appender.out.layout.ConversionPattern=%d{ISO8601} %p %c: %m%n
"""


class Hadoop:
    """One NameNode and one DataNode in ``base``. ``start()`` after ``kill()`` finds the same files."""

    def __init__(self, base: Path, *, keep_classes: bool = False) -> None:
        self.base = base
        self.port = free_port()
        self.data_port = free_port()
        self._rpc_port = free_port()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        conf = base / "conf"
        for place in ("hdfs", "datanode", "static"):  # of pages for people, which the jars do not have
            (conf / "webapps" / place).mkdir(parents=True, exist_ok=True)
        (conf / "log4j.properties").write_text(_LOG4J)
        (conf / "core-site.xml").write_text(_xml({"fs.defaultFS": f"hdfs://127.0.0.1:{self._rpc_port}"}))
        (conf / "hdfs-site.xml").write_text(_xml(self._settings()))
        self._keep_classes = keep_classes
        self._classpath = ":".join(map(str, [*sorted(JARS.glob("*.jar")), *_debian(), conf]))

    @staticmethod
    def is_installed() -> bool:
        installed = shutil.which("java") and JARS.is_dir()
        return bool(installed) and all(each.exists() for each in _debian())

    def url(self, directory: str, port: int = 0) -> str:
        return f"webhdfs://127.0.0.1:{port or self.port}/archive/{directory}"

    def credentials(self) -> Path:
        """A file that says who we are."""
        path = self.base / "credentials"
        path.touch(0o600)
        path.write_text(f"HADOOP_USER_NAME={USER}\n")
        return path

    def start(self, *names: str) -> Self:
        """Start both, or those that are named, and wait until files can be written."""
        for name in names or _SERVERS:
            if name == "namenode" and not (self.base / name).exists():
                form = self._command(name, "-format", "-nonInteractive")
                subprocess.run(form, env=self._environ(), cwd=self.base, check=True, capture_output=True, timeout=60)
            self._processes[name] = start(self._command(name), self.base, self._environ(), self.base / f"{name}.log")
        # Each question costs a Java that is just beginning more than it costs us.
        wait_until(self._takes_files, 90, f"HDFS takes a file; see {self.base}/*.log", poll_s=0.25)
        return self

    def kill(self, name: str) -> None:
        """SIGKILL to the namenode or the datanode."""
        self._processes[name].kill()
        self._processes[name].wait(10)

    def stop(self) -> None:
        """In order, which takes seconds."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait(60)

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()  # nobody wants the files
            process.wait(10)

    def ask(self, method: str, path: str, op: str, **query: str) -> Any:
        """A request of the superuser's."""
        user = {"user.name": SUPERUSER, "op": op}
        address = f"http://127.0.0.1:{self.port}/webhdfs/v1{quote(path)}?{urlencode({**user, **query})}"
        reply = urllib3.request(method, address, timeout=20, retries=False)
        if reply.status != 200:
            raise OSError(f"{op} {path}: {reply.data!r}")
        return json.loads(reply.data or b"null")

    def _takes_files(self) -> bool:
        assert all(each.poll() is None for each in self._processes.values()), f"HDFS has ended; see {self.base}/*.log"
        from forwarders.webhdfs import HdfsStore

        try:
            self.ask("PUT", "/archive", "MKDIRS")
            self.ask("PUT", "/archive", "SETOWNER", owner=USER)
            HdfsStore(self.url(""), credentials_file=self.credentials(), timeout_s=20).put("ready", b"1")
        except (OSError, urllib3.exceptions.HTTPError):
            return False
        return True

    def _settings(self) -> dict[str, object]:
        local = "127.0.0.1"
        return {
            "dfs.namenode.name.dir": self.base / "namenode",
            "dfs.datanode.data.dir": self.base / "datanode",
            "dfs.namenode.http-address": f"{local}:{self.port}",
            "dfs.datanode.http.address": f"{local}:{self.data_port}",
            "dfs.datanode.address": f"{local}:{free_port()}",
            "dfs.datanode.ipc.address": f"{local}:{free_port()}",
            "dfs.datanode.hostname": local,
            "dfs.replication": 1,
            "dfs.blocksize": BLOCK_BYTES,
            "dfs.heartbeat.interval": 1,
            "dfs.namenode.safemode.extension": 0,
            "dfs.namenode.safemode.min.datanodes": 1,
        }

    def _command(self, name: str, *arguments: str) -> list[str]:
        classes = JARS / f"{name}.jsa"
        sharing = [f"-XX:SharedArchiveFile={classes}"] if classes.exists() else []
        if self._keep_classes and not arguments:
            sharing = [f"-XX:ArchiveClassesAtExit={classes}"]
        return [*_JAVA, *sharing, f"-Djava.io.tmpdir={self.base}", "-cp", self._classpath, _SERVERS[name], *arguments]

    def _environ(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.base), "HADOOP_USER_NAME": SUPERUSER}


def _debian() -> list[Path]:
    return [Path(f"/usr/share/java/{name}.jar") for name in _DEBIAN]


def _xml(settings: dict[str, object]) -> str:
    properties = "".join(f"<property><name>{k}</name><value>{v}</value></property>\n" for k, v in settings.items())
    return f"<configuration>\n{properties}</configuration>\n"


def main() -> None:
    if Hadoop.is_installed():
        with TemporaryDirectory() as base:
            server = Hadoop(Path(base), keep_classes=True)
            try:
                server.start().stop()
            finally:
                server.close()


if __name__ == "__main__":
    main()
