"""Dates and granularities as clients write them."""

import math
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.event import TIME_MAX_MS, TIME_MIN_MS, FormatError, Granularity
from formats.times import granularity_of, parse_date, parse_granularity, time_of

JANUARY_2ND = 1230854400000  # 2009-01-02T00:00:00Z


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("2009-01-02", JANUARY_2ND),
        ("2009-01-02T03", 1230865200000),
        ("2009-01-02T03:04", 1230865440000),
        ("2009-01-02T03:04:05", 1230865445000),
        ("2009-01-02T03:04:05Z", 1230865445000),
        ("2009-01-02T03:04:05.006Z", 1230865445006),
        ("2009-01-02T03:04:05,006Z", 1230865445006),
        ("2009-01-02T03:04:05.1", 1230865445100),
        ("2009-01-02T03:04:05.0069999999Z", 1230865445006),
        ("2009-01-02T03:04:05+02:00", 1230858245000),
        ("2009-01-02T03:04:05-0230", 1230874445000),
        ("2009-01-02T03:04:05+02", 1230858245000),
        ("2000-02-29", 951782400000),
        ("1960-01-01T00:00:00.0009Z", -315619200000),
        ("0001-01-01", TIME_MIN_MS),
        ("9999-12-31T23:59:59.999999Z", TIME_MAX_MS),
        ("1230865445006", 1230865445006),
        ("-1230865445006", -1230865445006),
        ("123456789", 123456789),
        ("000000000", 0),
    ],
)
def test_a_date_is_read_as_milliseconds(text: str, time_ms: int) -> None:
    assert parse_date(text) == time_ms


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "garbage", "2009", "20090102", "12345678", "2009-1-2", "2009-01", "2009-13-01", "2009-02-29",
        "2009-01-02 03:04:05", "2009-01-02T03:04:05 02:00", "2009-01-02T", "2009-01-02T24:00:01", "2009-01-02T03:60",
        "2009-01-02T03:04:05.", "2009-01-02T03:04:05+25:00", "2009-01-02Z", "2009-01-02T03:04:05ZZ", "T10:00",
        "2009-W01-1", "0000-01-01", "10000-01-01", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00",
        "253402300800000", "-62135596800001", "9" * 30, "9" * 30_000, "1_000_000_000", "٣٣٣٣٣٣٣٣٣٣", "+1230865445006",
        "1230865445006.5", "2009-01-02\n", "２００９-01-02",
    ],
)  # fmt: skip
def test_anything_else_is_no_date(text: str) -> None:
    with pytest.raises(FormatError, match="date"):
        parse_date(text)


@given(st.datetimes(), st.integers(-1439, 1439))
def test_what_a_program_writes_as_iso_8601_is_read_to_the_millisecond(local: datetime, offset_minutes: int) -> None:
    moment = local.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))
    time_ms = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    if TIME_MIN_MS <= time_ms <= TIME_MAX_MS:
        assert parse_date(moment.isoformat()) == time_ms


@given(st.text())
def test_any_text_is_a_date_in_range_or_refused(text: str) -> None:
    with suppress(FormatError):
        assert TIME_MIN_MS <= parse_date(text) <= TIME_MAX_MS


@pytest.mark.parametrize(("text", "granularity"), [("daily", Granularity.DAILY), ("WeeKly", Granularity.WEEKLY)])
def test_a_granularity_is_read_in_any_case(text: str, granularity: Granularity) -> None:
    assert parse_granularity(text) is granularity


@pytest.mark.parametrize("text", ["", " ", "\t"])
def test_a_blank_granularity_is_hourly(text: str) -> None:
    assert parse_granularity(text) is Granularity.HOURLY


@pytest.mark.parametrize("text", ["bogus", "DAILY ", "daıly", "../../x", "1"])
def test_other_granularities_are_refused(text: str) -> None:
    with pytest.raises(FormatError, match="granularity"):
        parse_granularity(text)


@pytest.mark.parametrize(
    ("value", "time_ms"),
    [
        (None, 7),
        ("", 7),
        (" ", 7),
        (0, 0),
        (-1, -1),
        (1230865445006.9, 1230865445006),
        (-1.9, -1),
        ("1230865445006", 1230865445006),
        ("2009-01-02", JANUARY_2ND),
        (datetime(2009, 1, 2, tzinfo=UTC), JANUARY_2ND),
        (TIME_MAX_MS, TIME_MAX_MS),
    ],
)
def test_the_date_of_a_payload_is_a_number_or_a_text(value: object, time_ms: int) -> None:
    assert time_of(value, 7) == time_ms


@pytest.mark.parametrize(
    "value", [True, False, {}, [], b"x", math.nan, math.inf, 1e300, 10**30, TIME_MAX_MS + 1, TIME_MIN_MS - 1, "x"]
)
def test_other_dates_of_a_payload_are_refused(value: object) -> None:
    with pytest.raises(FormatError):
        time_of(value, 7)


def test_a_payload_without_granularity_has_that_of_the_request() -> None:
    assert granularity_of(None, Granularity.DAILY) is Granularity.DAILY
    assert granularity_of(" ", Granularity.DAILY) is Granularity.DAILY
    assert granularity_of("yearly", Granularity.DAILY) is Granularity.YEARLY
    with pytest.raises(FormatError):
        granularity_of(3, Granularity.DAILY)
