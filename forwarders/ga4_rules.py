"""What Google Analytics allows in a name, and how much of anything: the Measurement Protocol's rules.

Source: developers.google.com/analytics/devguides/collection/protocol/ga4, "Limitations" and "Reserved names".
"""

import re
from typing import Final

NAME_MAX_CHARS: Final = 40
PARAMS_MAX: Final = 25
VALUE_MAX_CHARS: Final = 100
LONGER_VALUES: Final = {"page_title": 300, "page_referrer": 420, "page_location": 1000}
ID_MAX_CHARS: Final = 256
EVENTS_PER_REQUEST: Final = 25
REQUEST_MAX_BYTES: Final = 130_000
ITEMS_MAX: Final = 200
OWN_ITEM_KEYS_MAX: Final = 10
AGE_MAX_MS: Final = 72 * 3600 * 1000

RESERVED_PREFIXES: Final = ("_", "firebase_", "ga_", "google_", "gtag.")
RESERVED: Final = frozenset(
    ("ad_activeview", "ad_click", "ad_exposure", "ad_impression", "ad_query", "ad_reward", "adunit_exposure",
     "app_background", "app_clear_data", "app_exception", "app_install", "app_remove", "app_store_refund",
     "app_store_subscription_cancel", "app_store_subscription_convert", "app_store_subscription_renew", "app_update",
     "app_upgrade", "dynamic_link_app_open", "dynamic_link_app_update", "dynamic_link_first_open", "error",
     "first_open", "first_visit", "in_app_purchase", "notification_dismiss", "notification_foreground",
     "notification_open", "notification_receive", "notification_send", "os_update", "session_start",
     "session_start_with_rollout", "user_engagement")
)  # fmt: skip
#: What the tag of web pages sends by itself.
OF_THE_TAG: Final = frozenset(
    ("click", "file_download", "form_start", "form_submit", "page_view", "scroll", "video_complete", "video_progress",
     "video_start", "view_complete", "view_search_results")
)  # fmt: skip
#: What Google knows of an item.
ITEM_KEYS: Final = frozenset(
    ("affiliation", "coupon", "creative_name", "creative_slot", "currency", "discount", "index", "item_brand",
     "item_category", "item_category2", "item_category3", "item_category4", "item_category5", "item_id",
     "item_list_id", "item_list_name", "item_name", "item_variant", "location_id", "price", "promotion_id",
     "promotion_name", "quantity")
)  # fmt: skip

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_]")


def wrong_with_name(name: str) -> str:
    """Which rule for names this one breaks, as the end of a sentence; empty: none."""
    if not _NAME.fullmatch(name):
        return "is not a letter followed by letters, digits and _"
    if len(name) > NAME_MAX_CHARS:
        return f"is longer than {NAME_MAX_CHARS} characters"
    prefix = next((each for each in RESERVED_PREFIXES if name.startswith(each)), None)
    return f"begins with {prefix}, which is reserved" if prefix else ""


def clean_name(name: str, reserved: frozenset[str] = frozenset()) -> str:
    """The nearest name that breaks no rule."""
    name = _NOT_IN_NAMES.sub("_", name)
    if not name[:1].isalpha() or name.startswith(RESERVED_PREFIXES) or name in reserved:
        name = f"x_{name}"
    return name[:NAME_MAX_CHARS]
