"""The numbers of ``GET /2``."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.base64num import ALPHABET, decode_base64num, encode_base64num
from formats.event import FormatError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0),
        ("-", 0),
        ("!", 0),
        ("--", 0),
        ("-!", 0),
        ("0", 1),
        ("9", 10),
        ("A", 11),
        ("Z", 36),
        ("_", 37),
        ("a", 38),
        ("z", 63),
        ("10", 129),
        ("0-", 64),
        ("0!", 64),
        ("-0", -1),
        ("-1-", -128),
        ("A0", 705),
        ("C0C0C0", 13978833729),
        ("6zzzzzzzzzz", 2**63 - 1),
        ("-7!!!!!!!!!!", -(2**63)),
        ("!" * 30_000 + "z", 63),
        ("-" * 30_000 + "z", -63),
    ],
)
def test_a_number_is_read_most_significant_digit_first(text: str, value: int) -> None:
    assert decode_base64num(text) == value


@pytest.mark.parametrize("text", ["~", "+1", " ", "1 ", "é", "٣", "$$", "1.5", "\x00"])
def test_other_characters_are_refused(text: str) -> None:
    with pytest.raises(FormatError, match="no base 64 digit"):
        decode_base64num(text)


@pytest.mark.parametrize("text", ["z" * 11, "F!!!!!!!!!!", "0" * 30_000])
def test_what_64_bits_cannot_hold_is_refused_without_counting_it_out(text: str) -> None:
    with pytest.raises(FormatError, match="64 bits"):
        decode_base64num(text)


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_number_survives_the_way_there_and_back(value: int) -> None:
    assert decode_base64num(encode_base64num(value)) == value


@given(st.integers(1, 2**63 - 1))
def test_a_number_is_written_with_the_fewest_digits(value: int) -> None:
    text = encode_base64num(value)

    assert set(text) <= set(ALPHABET)
    assert not text.startswith("!")
