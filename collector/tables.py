"""Read one TOML table into a frozen dataclass, and say everything that is wrong with it.

A settings dataclass declares its keys with ordinary annotations and its ranges beside them:
``workers: Annotated[int, Meta(ge=1)] = 2``. msgspec does the checking; the sentences are ours, because
an operator should read what a key wants ("an integer number of bytes") and not what a parser expected.
A field whose ``metadata`` says ``{"secret": True}`` is taken from the environment only.
"""

import dataclasses
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

T = TypeVar("T")

_GUEST = "://guest:guest@"  # RabbitMQ's default
_URL_PASSWORD = re.compile(r"://(?!guest:guest@)[^/@:\s]*:[^/\s]+@")
_URL_MAY_HOLD_PASSWORD = re.compile(r"(://[^/@:\s]*):\S*@")  # up to the last @: passwords are not always escaped
_SECRET_KEY = re.compile(r"(^|_)(password|passwd|secret|token|api_key|access_key)$")
_UNITS = {"bytes": "bytes", "s": "seconds", "ms": "milliseconds", "per_s": "a second"}


#: What no type can say: (table, key, the value that is wrong, why).
Finding = tuple[tuple[str, ...], str, object, str]


class SettingsError(Exception):
    """The settings cannot be used. ``errors`` has one sentence for each thing that is wrong."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


@dataclass(frozen=True)
class Value:
    """One value as given: what it is, and who says so (a file's path or a variable's name).

    ``text`` is what the variable held, when it was one: ``12345`` may be a number or a password.
    """

    value: object
    source: str
    text: str | None = None


def redact(text: str) -> str:
    """``text`` with the passwords of the URLs in it replaced by ``***``, and what might be one."""
    return _URL_MAY_HOLD_PASSWORD.sub(lambda found: found[0] if found[0] == _GUEST else f"{found[1]}:***@", text)


def has_password(value: object) -> bool:
    """Whether ``value`` is a text with a password inside a URL."""
    return isinstance(value, str) and _URL_PASSWORD.search(value) is not None


def is_secret(field: dataclasses.Field[Any]) -> bool:
    """Whether a field holds a secret itself (not the path of a file with one)."""
    return bool(field.metadata.get("secret")) or _SECRET_KEY.search(field.name) is not None


class Reader:
    """Turns tables into dataclasses and collects what is wrong on the way.

    Errors: ``errors``, sentences such as
    ``etc/collector.toml: spool.max_spool_bytes = "10G": expected an integer number of bytes``.
    """

    def __init__(self, source: str) -> None:
        """``source`` is named for what nobody gave."""
        self.source = source
        self.errors: list[str] = []

    def fail(self, path: str, given: Value, reason: str) -> None:
        """Note that the value at ``path`` will not do."""
        self.errors.append(f"{given.source}: {path} = {redact(toml_value(given.value))}: {reason}")

    def reject(self, path: str, table: Mapping[str, Value], reason: str) -> None:
        """Note that the table at ``path`` as a whole will not do."""
        self.errors.append(f"{self.source_of(table)}: {path}: {reason}")

    def source_of(self, table: Mapping[str, Value]) -> str:
        """Who gave a table, or its first key."""
        return next((given.source for given in table.values()), self.source)

    def table(self, cls: type[T], path: str, table: Mapping[str, Value], defaults: Mapping[str, object]) -> T | None:
        """Build ``cls`` from the keys that are its fields; None when one of them is wrong.

        ``defaults`` stand before the defaults of the dataclass. Keys that are no field of ``cls`` are not looked at.
        """
        before = len(self.errors)
        values: dict[str, object] = dict(defaults)
        hints = get_type_hints(cls, include_extras=True)
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # T is always a dataclass
            if field.name in table:
                values[field.name] = self._field(field, hints[field.name], f"{path}.{field.name}", table[field.name])
            elif field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
                self.reject(f"{path}.{field.name}", table, f"expected {describe(hints[field.name], field.name)}")
        if len(self.errors) > before:
            return None
        try:
            return cls(**values)
        except ValueError as exc:
            self.reject(path, table, str(exc))
            return None

    def unknown(self, path: str, table: Mapping[str, Value], *known: type) -> None:
        """Note every key of ``table`` that is no field of the ``known`` dataclasses."""
        names = {field.name for cls in known for field in dataclasses.fields(cls)}
        for key, given in table.items():
            if key in names:
                continue
            advice = "no such setting"
            if f"{key}_file" in names:
                advice = f"secrets are not written here: put it into a file and set {key}_file"
            self.errors.append(f"{given.source}: {path}.{key}: {advice}")

    def _field(self, field: dataclasses.Field[Any], hint: Any, path: str, given: Value) -> object:
        if field.metadata.get("secret") and given.text is None:
            variable = "COLLECTOR_" + path.upper().replace(".", "__").replace("-", "_")
            self.errors.append(f"{given.source}: {path}: secrets are not written here: set {variable} or {path}_file")
            return None
        if self._found_inside(hint, path, given):
            return None
        inside = ""
        for value in (given.value,) if given.text is None else (given.value, given.text):
            try:
                return msgspec.convert(value, hint, dec_hook=_path)
            except msgspec.ValidationError as exc:
                inside = f" ({str(exc).replace('`', '')})" if _is_nested(given.value) else ""
        shown = dataclasses.replace(given, value="***") if is_secret(field) else given
        self.fail(path, shown, f"expected {describe(hint, field.name)}{inside}")
        return None

    def _found_inside(self, hint: Any, path: str, given: Value) -> bool:
        """Note what is wrong in a table of tables, each where it is; whether there was something."""
        struct = get_args(hint)[1] if get_origin(hint) is dict else None
        if not (isinstance(struct, type) and issubclass(struct, msgspec.Struct) and isinstance(given.value, Mapping)):
            return False
        before = len(self.errors)
        hints = get_type_hints(struct, include_extras=True)
        for name, table in given.value.items():
            inner = f"{path}.{toml_key(name)}"
            if not isinstance(table, Mapping):
                self.fail(inner, dataclasses.replace(given, value=table), "expected a table")
                continue
            for key, value in table.items():
                if key not in hints:
                    self.errors.append(f"{given.source}: {inner}.{key}: no such setting")
                    continue
                try:
                    msgspec.convert(value, hints[key], dec_hook=_path)
                except msgspec.ValidationError:
                    expected = f"expected {describe(hints[key], key)}"
                    self.fail(f"{inner}.{key}", dataclasses.replace(given, value=value), expected)
        return len(self.errors) > before


def describe(hint: Any, key: str) -> str:
    """What a field of this type and name wants, as the end of a sentence beginning with "expected"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return describe(arguments[0], key) + "".join(_range(meta) for meta in arguments[1:])
    if origin is Literal:
        return " or ".join(toml_value(each) for each in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(each, key) for each in arguments if each is not type(None))
    if origin in (list, tuple):
        return f"a list, each {describe(arguments[0], '')}"
    if origin is dict:
        return f"a table, each value {describe(arguments[1], '')}"
    unit = next((text for suffix, text in sorted(_UNITS.items()) if key.endswith(f"_{suffix}")), None)
    if hint is int:
        return f"an integer number of {unit}" if unit else "an integer"
    if hint is float:
        return f"a number of {unit}" if unit else "a number"
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return "a table"
    return {str: "a text in quotes", bool: "true or false", Path: "a path in quotes"}.get(hint, "another type")


def toml_value(value: object) -> str:
    """``value`` as TOML, without the keys of tables that have no value. Errors: TypeError for what TOML cannot hold."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(each) for each in value) + "]"
    if isinstance(value, Mapping):
        given = (f"{toml_key(key)} = {toml_value(each)}" for key, each in value.items() if each is not None)
        return "{" + ", ".join(given) + "}"
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    raise TypeError(f"{type(value).__name__} cannot be written as TOML")


def toml_key(key: str) -> str:
    """``key`` as TOML: bare where that is allowed, else in quotes."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def _range(meta: Any) -> str:
    texts = [("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")]
    return "".join(f", {text} {getattr(meta, key)}" for key, text in texts if getattr(meta, key, None) is not None)


def _is_nested(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(each, Mapping) for each in value.values())


def _path(hint: type, value: object) -> object:
    if hint is Path and isinstance(value, str) and value:
        return Path(value)
    raise ValueError("not a path")
