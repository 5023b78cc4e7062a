"""An event written as a pixel's query is read back as it was."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.pixel import Sender, parse_pixel
from formats.pixel_query import encode_pixel

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "ning.json").read_text())
CASES = [case for case in VECTORS if case["group"] == "client_encode"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NAME = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=","), min_size=1, max_size=60)
FIELD = st.one_of(
    st.tuples(st.just("string"), TEXT),
    st.tuples(st.just("bool"), st.booleans()),
    st.tuples(st.just("double"), st.floats(allow_nan=False, allow_infinity=False)),
    st.tuples(st.just("byte"), st.integers(-(2**7), 2**7 - 1)),
    st.tuples(st.just("i64"), st.integers(-(2**63), 2**63 - 1)),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_an_event_is_written_as_published(case: dict) -> None:
    query = encode_pixel(case["request"]["name"], case["request"]["fields"])

    assert query == "v=" + case["expect"]["v"]


@given(NAME, st.lists(FIELD, max_size=8), st.booleans())
def test_what_is_written_is_read_back(name: str, fields: list[tuple[str, object]], base64: bool) -> None:
    event = parse_pixel(encode_pixel(name, fields, base64=base64), base64=base64, sender=Sender(0))

    assert event.name == name
    assert event.payload == [(at, kind, value) for at, (kind, value) in enumerate(fields, 1)]


def test_none_leaves_its_number_unused() -> None:
    event = parse_pixel(encode_pixel("A", [("string", None), ("i32", 7)]), base64=False, sender=Sender(0))

    assert event.payload == [(2, "i32", 7)]
