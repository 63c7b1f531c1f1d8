# SPDX-License-Identifier: Apache-2.0
"""Tests in any order: ``VMM_TEST_SHUFFLE=SEED`` has pytest run them in another one, the same for the same seed."""

from __future__ import annotations

import os
import random

import pytest

_SEED = os.environ.get("VMM_TEST_SHUFFLE", "")


def pytest_report_header() -> list[str]:
    """Say how to run the tests in this order again."""
    return [f"order: VMM_TEST_SHUFFLE={_SEED}"] if _SEED else []


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the items into the order of the seed."""
    if _SEED:
        items.sort(key=lambda item: item.nodeid)
        random.Random(_SEED).shuffle(items)
