"""formats/json_depth.py against a count of brackets by a parser."""

import json
import random

from formats.json_depth import DEPTH_MAX, are_shallow, is_shallow


def _levels(value: object) -> int:
    deepest, todo = 0, [(value, 1)]
    while todo:
        each, level = todo.pop()
        if isinstance(each, dict | list):
            deepest = max(deepest, level)
            todo += [(inner, level + 1) for inner in (each.values() if isinstance(each, dict) else each)]
    return deepest


def _nested(choose: random.Random) -> bytes:
    """An object of 60 to 70 levels, of arrays and objects, now and then with something beside the next level."""
    text, closing, mostly_arrays = '{"":', "}", choose.random()
    besides = choose.choice([[""], ["", "1,"], ['"[[{{",', "", "[],"], ['"a\\\\\\"[",', '"x", ', ""]])
    for _ in range(choose.randint(59, 69)):
        if choose.random() < mostly_arrays:
            text, closing = text + "[" + choose.choice(besides), "]" + closing
        else:
            key = choose.choice(["", "a", "[", "{{"])
            text, closing = text + f'{{"{key}":', "}" + closing
    return (text + "0" + closing).encode()


def test_a_payload_is_shallow_when_a_parser_finds_no_more_than_64_levels() -> None:
    choose = random.Random(64)
    usual = b'{"a":["b"],"text":"%s"}' % (b"x" * 100)
    seen = set()
    for _ in range(1000):
        payload = _nested(choose)
        shallow = _levels(json.loads(payload)) <= DEPTH_MAX
        seen.add((shallow, len(payload) <= 240))
        assert is_shallow(payload) == shallow
        assert are_shallow([usual, payload, usual], b",".join([usual, payload, usual])) == shallow
    assert len(seen) == 4  # also those that are short
