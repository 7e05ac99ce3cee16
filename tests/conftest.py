"""What holds for every test: how hard hypothesis looks, and when deep tests run.

    profile   used by      examples      seed
    fast      pytest       60            random: a new corner every day
    ci        CI=true      60            fixed: a red build is red again when it is repeated
    deep      make deep    20 times as many as the test or the default asks for, random

A failing example is printed with `@reproduce_failure`, so that it can be run again as it was.
"""

import os
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

_SHARED: dict[str, Any] = {
    "deadline": None,  # two shared cores: a slow example says nothing about the code
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow],
}
_DEEP_FACTOR = 20
_OWN_SETTINGS = "_hypothesis_internal_use_settings"  # where @settings keeps what it was told

settings.register_profile("fast", max_examples=60, **_SHARED)
settings.register_profile("ci", max_examples=60, derandomize=True, database=None, **_SHARED)
settings.register_profile("deep", max_examples=60 * _DEEP_FACTOR, **_SHARED)
settings.load_profile("ci" if os.environ.get("CI") else "fast")


def pytest_configure(config: pytest.Config) -> None:
    """Leave out deep tests unless `-m` says something."""
    if not config.option.markexpr:
        config.option.markexpr = "not deep"


def pytest_collection_modifyitems(config: pytest.Config, items: Iterable[pytest.Item]) -> None:
    """In the deep profile a test's own `max_examples` grows as well."""
    if config.getoption("--hypothesis-profile") != "deep":
        return
    for item in items:
        test: Any = getattr(item, "obj", None)
        test = getattr(test, "__func__", test)
        own = getattr(test, _OWN_SETTINGS, None)
        if own is not None and own.max_examples != settings().max_examples:
            examples = own.max_examples * _DEEP_FACTOR
            setattr(test, _OWN_SETTINGS, settings(own, max_examples=examples))
