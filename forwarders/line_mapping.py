"""What the settings say of how the events of one name become points."""

from collections.abc import Mapping

import msgspec


class EventMapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[forwarders.influxdb.events.NAME]``: how the events of one name become points.

    ``measurement``: its own instead of the forwarder's. ``tags``: payload keys that become tags, and only such as have
    few values: the server indexes every combination. ``fields``: the only keys that become fields; empty: all of them.
    ``drop``: keys that are left out. ``rename``: key to new key. ``integers``: keys whose numbers are written as
    integers of 64 bits, not as floats. Keys are those of the flattened payload (``a_b``).
    """

    measurement: str = ""
    tags: list[str] = []
    fields: list[str] = []
    drop: list[str] = []
    rename: dict[str, str] = {}
    integers: list[str] = []


def check_mappings(mappings: Mapping[str, EventMapping]) -> None:
    """ValueError for what no type can say: which of two things shall become of a key."""
    for name, mapping in mappings.items():
        for key in mapping.tags:
            if key in mapping.drop:
                raise ValueError(f"events.{name}: {key} is in tags and in drop")
            if mapping.tags.count(key) > 1:
                raise ValueError(f"events.{name}.tags: {key} is there twice")
        targets = list(mapping.rename.values())
        for target in targets:
            if targets.count(target) > 1:
                raise ValueError(f"events.{name}.rename: two keys would become {target}")
