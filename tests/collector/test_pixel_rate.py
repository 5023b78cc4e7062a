"""One client gets its burst, then its rate; the others do not notice; memory is bounded."""

import tracemalloc

import pytest

from collector.pixel_rate import PixelRate

START_S = 1_000_000.0


class Clock:
    """A monotonic clock that the test moves."""

    now_s = START_S

    def __call__(self) -> float:
        return self.now_s


def allowed(rate: PixelRate, client: str, tries: int) -> int:
    return sum(not rate.take(client) for _ in range(tries))


@pytest.mark.parametrize(("per_s", "burst"), [(2.0, 5), (0.5, 1), (1000.0, 3)])
def test_a_client_gets_its_burst_at_once_and_then_its_rate(per_s: float, burst: int) -> None:
    clock = Clock()
    rate = PixelRate(per_s, burst, monotonic=clock)

    assert allowed(rate, "192.0.2.1", burst + 3) == burst
    assert rate.take("192.0.2.1") == pytest.approx(1 / per_s, abs=1e-6)
    clock.now_s += 3 / per_s
    assert allowed(rate, "192.0.2.1", burst + 3) == min(3, burst)
    clock.now_s += 1e6
    assert allowed(rate, "192.0.2.1", burst + 3) == burst  # more than the burst is not saved up


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("", "192.0.2.1", False),
        ("", "", True),  # clients whose address nobody gives share one bucket: the limit is not off because of that
    ],
)
def test_a_client_is_an_address_or_a_network_of_ipv6(one: str, other: str, are_one: bool) -> None:
    rate = PixelRate(1.0, 1, monotonic=Clock())

    assert not rate.take(one)
    assert bool(rate.take(other)) is are_one


def test_the_client_not_seen_for_longest_is_forgotten_first() -> None:
    rate = PixelRate(1.0, 1, max_clients=3, monotonic=Clock())
    for client in ("a", "b", "c", "a", "d"):  # a was refused, but seen
        rate.take(client)

    assert [bool(rate.take(client)) for client in ("a", "d", "c")] == [True, True, True]
    assert not rate.take("b")


def test_many_addresses_take_a_bounded_amount_of_memory() -> None:
    rate = PixelRate(1.0, 1, max_clients=1000)
    tracemalloc.start()
    for number in range(50_000):
        rate.take(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert used < 1_000_000
