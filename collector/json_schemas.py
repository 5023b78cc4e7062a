"""JSON Schema files, one per event name, checked as a whole before anything is taken.

``<directory>/<event name>.json``; in a file's name the event's name is escaped as in the archive's paths (``%2F``).
A file may say its draft with ``$schema``; otherwise it is 2020-12. ``$ref`` may point into the same file, to another
file of the directory by its name, or to an ``$id`` in one of them. Nothing is ever fetched: what such a reference
does not find is an error at the start. ``format`` is not looked at.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from formats.event import FormatError, check_name

SUFFIX = ".json"
_DATA = ("const", "enum", "default", "examples")  # what is in them is no schema
_MESSAGE_MAX_CHARS = 200

#: Says what is wrong with a payload, or None.
Check = Callable[[dict[str, Any]], str | None]


class SchemaErrors(Exception):
    """The files cannot be used. ``errors`` has one sentence for each thing that is wrong."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


def load_schemas(directory: Path) -> dict[str, Check]:
    """The checks of all files, by event name. Errors: SchemaErrors."""
    errors: list[str] = []
    schemas: dict[str, Any] = {}
    try:
        files = sorted(path for path in directory.iterdir() if path.name.endswith(SUFFIX))
    except OSError as exc:
        raise SchemaErrors([f"cannot be read: {exc.strerror}"]) from exc
    for path in files:
        try:
            schemas[path.name] = json.loads(path.read_bytes())
            check_name(_event_name(path.name))
        except OSError as exc:
            errors.append(f"{path.name}: cannot be read: {exc.strerror}")
        except FormatError as exc:
            errors.append(f"{path.name}: {exc.reason}")
        except (ValueError, RecursionError) as exc:
            errors.append(f"{path.name}: is not JSON: {exc}")
    checks: dict[str, Check] = {}
    registry = _registry(schemas)
    for name, schema in schemas.items():
        wrong = [f"{name}: {each}" for each in _wrong_with(schema, registry, name)]
        errors += wrong
        if not wrong:
            validator = validator_for(schema, default=Draft202012Validator)(schema, registry=registry)
            checks[_event_name(name)] = _check(validator)
    if errors:
        raise SchemaErrors(errors)
    return checks


def _event_name(file_name: str) -> str:
    return unquote(file_name.removesuffix(SUFFIX))


def _registry(schemas: Mapping[str, Any]) -> "Registry[Any]":
    """All files by their names and ids. It has no way to fetch anything."""
    registry: Registry[Any] = Registry()
    usable = [(name, schema) for name, schema in schemas.items() if isinstance(schema, dict | bool)]
    return registry.with_resources(
        [(name, Resource.from_contents(schema, default_specification=DRAFT202012)) for name, schema in usable]
    ).crawl()


def _wrong_with(schema: Any, registry: "Registry[Any]", name: str) -> Iterator[str]:
    if not isinstance(schema, dict | bool):
        yield "is neither an object nor true or false"
        return
    draft = validator_for(schema, default=None)
    if draft is None and isinstance(schema, dict) and "$schema" in schema:
        yield "/$schema: is no draft of JSON Schema that is known here"
        return
    draft = draft or Draft202012Validator
    found = False
    for error in draft(draft.META_SCHEMA).iter_errors(schema):
        found = True
        yield f"{_pointer(error.absolute_path)}: {error.message[:_MESSAGE_MAX_CHARS]}"
    if not found and isinstance(schema, dict):
        yield from _wrong_inside(schema, "", registry.resolver_with_root(registry[name]))


def _wrong_inside(node: Any, pointer: str, resolver: Any) -> Iterator[str]:
    """References to nothing, and patterns that are none."""
    if isinstance(node, list):
        for number, each in enumerate(node):
            yield from _wrong_inside(each, f"{pointer}/{number}", resolver)
    if not isinstance(node, dict):
        return
    if pointer and isinstance(node.get("$id"), str):
        resolver = resolver.in_subresource(Resource.from_contents(node, default_specification=DRAFT202012))
    for keyword in ("$ref", "$dynamicRef"):
        reference = node.get(keyword)
        if isinstance(reference, str):
            try:
                resolver.lookup(reference)
            except Unresolvable:
                yield f"{pointer}/{keyword}: {reference[:_MESSAGE_MAX_CHARS]!r} is in no file here, and none is fetched"
    patterns = node.get("patternProperties")
    expressions = [(f"{pointer}/patternProperties", each) for each in patterns] if isinstance(patterns, dict) else []
    for place, expression in [*expressions, (f"{pointer}/pattern", node.get("pattern"))]:
        if isinstance(expression, str):
            try:
                re.compile(expression)
            except re.error as exc:
                yield f"{place}: {expression[:_MESSAGE_MAX_CHARS]!r} is no regular expression: {exc}"
    for key, each in node.items():
        if key not in _DATA:
            yield from _wrong_inside(each, f"{pointer}/{key}", resolver)


def _check(validator: Any) -> Check:
    def check(payload: dict[str, Any]) -> str | None:
        try:
            error = next(validator.iter_errors(payload), None)
        except (RecursionError, ArithmeticError, TypeError, ValueError, Unresolvable) as exc:
            return f"its schema cannot be applied to it: {type(exc).__name__}"
        if error is None:
            return None
        place = _pointer(error.absolute_schema_path)
        missing = ""
        if error.validator == "required":
            missing = next((f" ({key} is missing)" for key in error.validator_value if key not in error.instance), "")
        return f"it is not as its schema says at {place}{missing}"

    return check


def _pointer(path: Any) -> str:
    """A JSON pointer."""
    return "".join("/" + str(each).replace("~", "~0").replace("/", "~1") for each in path) or "/"
