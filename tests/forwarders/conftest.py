"""The contract suite is a helper with assertions of its own: let pytest explain them like a test's."""

import pytest

pytest.register_assert_rewrite("contract_suite")
