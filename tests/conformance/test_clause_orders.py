# SPDX-License-Identifier: Apache-2.0
"""The sample of restore orders that mig.order-matrix tries: what its statement promises about it."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from vmm.arch import ARCHITECTURE

pytestmark = pytest.mark.skipif(ARCHITECTURE != "x86", reason="mig.order-matrix is a clause of x86")


@pytest.mark.parametrize("seed", range(4))
def test_any_three_pieces_come_in_all_of_their_orders(seed: int) -> None:
    from vmm.conformance.clauses.x86 import mig_order

    context: Any = SimpleNamespace(options=SimpleNamespace(exhaustive=False, seed=seed))
    orders = mig_order._orders(context)
    assert len(set(orders)) == len(orders) == 100
    found = {triple for order in orders for triple in itertools.combinations(order, 3)}
    assert found == set(itertools.permutations(orders[0], 3))
