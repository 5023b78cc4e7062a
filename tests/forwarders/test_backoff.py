"""The delays between attempts."""

import random

from forwarders.backoff import ASKED_MAX_S, BOUND_MAX_S, Backoff


def at_the_top(_low: float, high: float) -> float:
    return high


def test_the_bound_doubles_from_half_a_second_up_to_a_minute() -> None:
    backoff = Backoff(at_the_top)

    assert [backoff.failed() for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_the_delay_is_anywhere_below_the_bound() -> None:
    """Full jitter: half of the delays lie in the lower half, or the collectors return in step."""
    backoff = Backoff(random.Random(7).uniform)
    for _ in range(20):
        backoff.failed()

    delays = [backoff.failed() for _ in range(400)]
    assert min(delays) < 0.1 * BOUND_MAX_S
    assert max(delays) > 0.9 * BOUND_MAX_S
    assert 150 < sum(delay < BOUND_MAX_S / 2 for delay in delays) < 250


def test_a_day_of_failures_does_not_overflow() -> None:
    backoff = Backoff(at_the_top)
    for _ in range(100_000):
        backoff.failed()

    assert backoff.failed() == BOUND_MAX_S


def test_success_starts_again_from_the_shortest_delay() -> None:
    backoff = Backoff(at_the_top)
    backoff.failed()
    backoff.failed()
    backoff.reset()

    assert backoff.failures == 0
    assert backoff.failed() == 0.5


def test_what_the_destination_asked_for_is_never_undercut() -> None:
    backoff = Backoff(random.Random(7).uniform)

    assert all(30 <= Backoff(random.Random(seed).uniform).failed(30) <= 33 for seed in range(50))
    assert 120 <= backoff.failed(120) <= 132  # more than our own longest delay


def test_a_longer_delay_of_our_own_stands() -> None:
    backoff = Backoff(at_the_top)
    for _ in range(10):
        backoff.failed()

    assert backoff.failed(1.0) == BOUND_MAX_S


def test_an_absurd_wish_is_bounded() -> None:
    assert Backoff(at_the_top).failed(1e12) <= 1.1 * ASKED_MAX_S
