"""``[workers.NAME]``: an event worker's queue, and the destination that it feeds."""

import dataclasses
import importlib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from collector.tables import Reader, Value, toml_key, toml_value
from forwarders.worker_settings import WorkerSettings

_FACTORY = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*")
_RABBITS = ("rabbitmq", "rabbitmq-stream")  # from queue to queue is what RabbitMQ's own shovels and federation do


@dataclass(frozen=True)
class WorkerTable:
    """``queue``: the keys every worker has; ``own``: those of its type, which is one of ours or ``MODULE:FACTORY``."""

    name: str
    type: str
    queue: WorkerSettings
    own: Any


@dataclass(frozen=True)
class NoSettings:
    """Of a module of the user's without settings."""


def is_factory(type_name: str) -> bool:
    """Whether it names a function of the user's own."""
    return _FACTORY.fullmatch(type_name) is not None


def read_worker(
    reader: Reader, name: str, table: Mapping[str, Value], modules: Mapping[str, tuple[str, str]]
) -> WorkerTable | None:
    """Read one table. ``modules``: which module forwards to a type of destination, and the extra that it needs."""
    path = f"workers.{toml_key(name)}"
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
        reader.reject(path, table, "expected a name of a-z, 0-9, _ and -")
        return None
    given = table.get("type", Value(name, reader.source_of(table)))
    types = [each for each in modules if each not in _RABBITS]
    if not isinstance(given.value, str) or (given.value not in types and not is_factory(given.value)):
        wanted = " or ".join(map(toml_value, [*types, "MODULE:FUNCTION"]))
        reader.fail(f"{path}.type", given, f"expected {wanted}")
        return None
    module = _module(reader, path, given, modules)
    if module is None:
        return None
    settings_class = getattr(module, "Settings", NoSettings)
    own_table = {key: value for key, value in table.items() if key != "type"}
    reader.unknown(path, own_table, WorkerSettings, settings_class)
    names = {field.name for field in dataclasses.fields(WorkerSettings)}
    defaults = {key: value for key, value in getattr(module, "FLUSH_DEFAULTS", {}).items() if key in names}
    queue = reader.table(WorkerSettings, path, own_table, defaults)
    own = reader.table(settings_class, path, own_table, {})
    return WorkerTable(name, given.value, queue, own) if queue and own is not None else None


def _module(reader: Reader, path: str, given: Value, modules: Mapping[str, tuple[str, str]]) -> ModuleType | None:
    type_name = str(given.value)
    module_name, extra = modules.get(type_name) or (type_name.partition(":")[0], "")
    if not extra and os.getcwd() not in sys.path:  # a module of the user's may lie where the command runs
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as exc:
        if extra and isinstance(exc, ModuleNotFoundError):
            reader.fail(f"{path}.type", given, f"needs {exc.name}: pip install 'event-collector[{extra}]'")
            return None
        if not extra:
            reader.fail(f"{path}.type", given, f"cannot be imported: {exc}")
            return None
        raise
    function = factory_name(type_name)
    if not callable(getattr(module, function, None)):
        reader.fail(f"{path}.type", given, f"there is no function {function} in {module_name}")
        return None
    return module


def factory_name(type_name: str) -> str:
    """The function that makes the forwarder."""
    return type_name.partition(":")[2] or "from_settings"
