"""Who may import whom, and other rules that no linter knows."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

#: Package of ours → the packages of ours that it may import besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    "formats": set(),
    "spool": set(),
    "forwarders": {"formats", "spool"},
    "collector": {"formats", "spool", "forwarders"},
}
NOBODY_IMPORTS = {"scripts", "tests"}

#: Library → the modules of ours that may know it. A library that is not named here is not to be imported.
KNOWN_TO = {
    "jsonschema": ["collector/json_schemas.py"],
    "referencing": ["collector/json_schemas.py"],
    "bson": ["forwarders/bson_document.py", "forwarders/mongodb.py"],
    "click": ["collector/cli*.py"],
    "cryptography": ["spool/cipher.py"],
    "duckdb": ["forwarders/archive_parquet.py", "forwarders/archive_query.py"],
    "falcon": ["collector/app.py", "collector/resources/*.py"],
    "gunicorn": ["collector/http_server.py", "collector/worker.py"],
    "httptools": ["collector/http_parser.py"],
    "influxdb_client": ["forwarders/influx_endpoint.py"],
    "matplotlib": ["collector/report_plot.py"],
    "msgpack": ["formats/envelope.py", "formats/*.py"],
    "msgspec": ["*.py"],
    "obstore": ["forwarders/object_store.py"],
    "pika": ["forwarders/amqp_*.py", "forwarders/rabbitmq.py"],
    "prometheus_client": ["collector/exposition.py"],
    "pymongo": ["forwarders/mongo_indexes.py", "forwarders/mongodb.py"],
    "rstream": ["forwarders/stream_publisher.py"],
    "rich": ["collector/cli_output.py"],
    "thriftpy2": ["collector/scribe_service.py"],
    "urllib3": ["forwarders/http_endpoint.py", "forwarders/webhdfs.py"],
    "uvloop": ["collector/listen.py", "collector/worker.py"],
    "zstandard": [
        "formats/content_encoding.py",
        "forwarders/archive_compact.py",
        "forwarders/archive_files.py",
        "spool/cipher.py",
        "spool/retained.py",
    ],
}

#: Library → the one that it is installed with.
BROUGHT_BY = {"bson": "pymongo"}

#: Where somebody's machine shows through: this checkout's own place, and home directories.
PLACES = re.compile(rb"%s/|file:///|/home/\w+/|/Users/\w+/|/root/" % re.escape(str(ROOT)).encode())


class Import(NamedTuple):
    """One import of ``module`` in one of our files."""

    path: str
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.module}"


def imports() -> Iterator[Import]:
    """Every import statement of the four packages, those inside functions too."""
    for package in MAY_IMPORT:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            for node in ast.walk(ast.parse(path.read_bytes(), name)):
                if isinstance(node, ast.Import):
                    yield from (Import(name, node.lineno, alias.name) for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    assert node.level == 0, f"{name}:{node.lineno}: a relative import"
                    yield Import(name, node.lineno, node.module or "")


def tracked() -> list[Path]:
    """Every file in the repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def top(module: str) -> str:
    return module.split(".")[0]


def test_packages_import_only_what_lies_below_them() -> None:
    wrong = [
        str(each)
        for each in imports()
        if top(each.module) in MAY_IMPORT.keys() | NOBODY_IMPORTS
        and top(each.module) not in MAY_IMPORT[top(each.path.replace("/", "."))] | {each.path.split("/")[0]}
    ]

    assert wrong == []


def test_a_library_is_known_to_its_own_modules_only() -> None:
    ours_or_pythons = MAY_IMPORT.keys() | NOBODY_IMPORTS | sys.stdlib_module_names
    wrong = [
        str(each)
        for each in imports()
        if top(each.module) not in ours_or_pythons
        and not any(fnmatch(each.path, pattern) for pattern in KNOWN_TO.get(top(each.module), []))
    ]

    assert wrong == []


def test_what_is_imported_is_what_is_declared() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    declared = config["options"]["install_requires"].split()
    for name in extras.keys() - {"dev", "all"}:
        declared += extras[name].split()

    names = {line.split(">=")[0].replace("-", "_") for line in declared}
    assert names == set(KNOWN_TO) - set(BROUGHT_BY)
    assert set(BROUGHT_BY.values()) <= set(KNOWN_TO)
    assert {top(each.module) for each in imports()} >= set(KNOWN_TO)


def test_setup_cfg_lists_the_packages_that_are_on_disk() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    on_disk = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for package in MAY_IMPORT
        for path in (ROOT / package).rglob("__init__.py")
    }
    without_init = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for package in MAY_IMPORT
        for path in (ROOT / package).rglob("*.py")
    }

    assert set(config["options"]["packages"].split()) == on_disk == without_init


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.decode(errors='replace').strip()[:100]}"
        for path in tracked()
        if path != Path(__file__)
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
        if PLACES.search(line)
    ]

    assert wrong == []


def test_every_module_says_what_it_is_for() -> None:
    wrong = [
        path.relative_to(ROOT).as_posix()
        for package in MAY_IMPORT
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_bytes()))
    ]

    assert wrong == []
