"""API keys: what a request has to bring, and what becomes of a changed or broken file."""

import logging
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from collector.api_key_file import ApiKey, ApiKeyFileError, NewKey, add_key, kept, new_key, read_keys, remove_key
from collector.keys import LOOK_S, KeyRefused, Keys

NOW_S = 1_790_000_000.0


class Clock:
    """A monotonic clock that the test moves."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def bearer(key: str) -> dict[str, Any]:
    return {"HTTP_AUTHORIZATION": f"Bearer {key}"}


def made(path: Path, *scopes: str, **about: Any) -> NewKey:
    """Put a new key into the file."""
    key = new_key()
    about = {"names": [], "expires": None, "note": "", **about}
    add_key(path, key.prefix, kept(key, scopes=scopes or ["post"], **about))
    return key


def judged(keys: Keys, environ: dict[str, Any], scope: Any = "post") -> tuple[str, str]:
    """Status and WWW-Authenticate of a refusal; or what was admitted."""
    try:
        return keys.judge(environ, scope).prefix, ""
    except KeyRefused as exc:
        return exc.status[:3], dict(exc.headers).get("WWW-Authenticate", "")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def test_a_key_counts_in_either_header_and_nothing_else_does(path: Path) -> None:
    key, other = made(path), made(path)
    keys = Keys(path)
    good = key.text

    for environ in (
        bearer(good),
        {"HTTP_AUTHORIZATION": f"bearer  {good} "},
        {"HTTP_X_API_KEY": good},
        {"HTTP_X_API_KEY": good, "HTTP_AUTHORIZATION": "Basic dTpw"},
    ):
        assert judged(keys, environ) == (key.prefix, "")
    invalid = ("401", 'Bearer realm="collector", error="invalid_token"')
    for wrong in (
        good[:-1],
        good + "A",
        good.swapcase(),
        f"ck_{key.prefix}_{other.text[12:]}",  # another key's secret
        f"ck_aaaaaaaa_{key.text[12:]}",
        read_keys(path)[key.prefix].sha256,
        f"{good},{good}",
        "\xff" * 10_000,
    ):
        assert judged(keys, bearer(wrong)) == invalid
    for environ in ({}, {"QUERY_STRING": f"key={good}"}, {"HTTP_AUTHORIZATION": f"Basic {good}"}, bearer("")):
        assert judged(keys, environ) == ("401", 'Bearer realm="collector"')


def test_a_key_is_good_for_its_scopes_until_it_expires(path: Path) -> None:
    at = datetime.fromtimestamp(NOW_S, UTC)
    post, admin, old = made(path), made(path, "admin", "read"), made(path, expires=at)
    keys = Keys(path, wall_s=lambda: NOW_S)

    assert judged(keys, bearer(post.text), "post") == (post.prefix, "")
    assert judged(keys, bearer(admin.text), "read") == (admin.prefix, "")
    assert judged(keys, bearer(admin.text), "post") == (
        "403",
        'Bearer realm="collector", error="insufficient_scope", scope="post"',
    )
    assert judged(keys, bearer(old.text))[0] == "401"
    assert judged(Keys(path, wall_s=lambda: NOW_S - 1), bearer(old.text)) == (old.prefix, "")


def test_a_key_says_which_events_it_may_send(path: Path) -> None:
    limited, free = made(path, names=["Shop*", "!ShopTest"]), made(path)
    keys = Keys(path)

    names = keys.judge(bearer(limited.text), "post").names
    assert [name for name in ("Shop", "ShopView", "ShopTest", "Other") if names.wants(name)] == ["Shop", "ShopView"]
    assert keys.judge(bearer(free.text), "post").names.all


def test_a_changed_file_is_noticed_within_a_second(path: Path) -> None:
    clock = Clock()
    old = made(path)
    keys = Keys(path, monotonic=clock)
    new = made(path)

    assert judged(keys, bearer(new.text))[0] == "401"
    clock.now_s += LOOK_S
    assert judged(keys, bearer(new.text)) == (new.prefix, "")
    assert judged(keys, bearer(old.text)) == (old.prefix, "")  # two at once, while clients are moved
    assert remove_key(path, old.prefix) is not None
    clock.now_s += LOOK_S
    assert judged(keys, bearer(old.text))[0] == "401"
    assert judged(keys, bearer(new.text)) == (new.prefix, "")


@pytest.mark.parametrize("text", [None, "", "keys = 1", "[keys.aaaaaaaa]\nsha256 = 'x'", "\xff", "[[["])
def test_a_broken_file_keeps_the_last_good_one_and_says_so_once(
    path: Path, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    key = made(path)
    keys = Keys(path, monotonic=clock)
    if text is None:
        path.unlink()
    elif text:
        path.write_bytes(text.encode("latin-1"))
    else:
        path.chmod(0o620)

    for _ in range(3):
        clock.now_s += LOOK_S
        assert judged(keys, bearer(key.text)) == (key.prefix, "")

    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.message for record in errors] == ["the API keys cannot be read"]
    assert key.text not in caplog.text


def test_while_no_key_can_be_known_clients_are_told_to_come_back(path: Path) -> None:
    clock = Clock()
    keys = Keys(path, monotonic=clock)

    assert judged(keys, bearer(new_key().text))[0] == "503"
    key = made(path)
    clock.now_s += LOOK_S
    assert judged(keys, bearer(key.text)) == (key.prefix, "")


def test_the_file_holds_no_key_and_is_its_owners_alone(path: Path) -> None:
    link = path.with_name("link.toml")
    link.symlink_to(path)
    key = made(
        link, "post", "read", names=['a"b\\', "é*"], note="line\nbreak", expires=datetime(2030, 1, 2, tzinfo=UTC)
    )

    assert (path.stat().st_mode & 0o777, link.is_symlink()) == (0o600, True)
    assert key.text[12:] not in path.read_text()
    assert [each.name for each in path.parent.iterdir() if each.name.startswith(".")] == []
    [(prefix, kept_key)] = read_keys(path).items()
    assert (prefix, kept_key.names, kept_key.note) == (key.prefix, ['a"b\\', "é*"], "line\nbreak")
    assert (kept_key.scopes, kept_key.expires) == (["post", "read"], datetime(2030, 1, 2, tzinfo=UTC))


def test_commands_that_add_keys_at_the_same_time_lose_none(path: Path) -> None:
    threads = [threading.Thread(target=made, args=(path,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(read_keys(path)) == 8


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_made_by_root_belongs_to_the_spools_owner(path: Path, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    os.chown(spool, 12_345, 12_346)

    for _ in range(2):
        key = new_key()
        about: ApiKey = kept(key, scopes=["post"], names=[], expires=None, note="")
        add_key(path, key.prefix, about, like=spool)

    assert (path.stat().st_uid, path.stat().st_gid) == (12_345, 12_346)


def test_a_file_that_others_may_write_is_not_believed(path: Path) -> None:
    made(path)
    path.chmod(0o660)

    with pytest.raises(ApiKeyFileError, match="chmod go-w"):
        read_keys(path)
