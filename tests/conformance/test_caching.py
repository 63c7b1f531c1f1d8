# SPDX-License-Identifier: Apache-2.0
"""How a guest's timing is judged: ratios, their controls, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from vmm.arch import ARCHITECTURE
from vmm.conformance.expect import Skipped, Violation
from vmm.conformance.x86 import caching
from vmm.probe.host import Host
from vmm.probe.process import Process

pytestmark = pytest.mark.skipif(ARCHITECTURE != "x86", reason=f"memory types are x86's; this is {ARCHITECTURE}")


class Talk:
    """As much of a context as a verdict needs."""

    def __init__(self, nested: bool = False) -> None:
        self.notes: list[str] = []
        facts = type("Facts", (), {"memory_types": SimpleNamespace(nested=nested)})
        self.host = Host("6.18.1", "x86", facts, Process(0, 1024, 4096, ""))

    def note(self, text: str) -> None:
        self.notes.append(text)


def judge(
    expect: Callable[..., None],
    values: list[float],
    *more: float,
    nested: bool = False,
    again: tuple[float, ...] = (),
    flushed: tuple[float, ...] = (),
) -> str:
    """Return pass, fail or skip."""
    context = Talk(nested)
    try:
        expect(context, caching.Ratio("loads", tuple(values), again, flushed), *more)
    except Violation:
        return "fail"
    except Skipped:
        return "skip"
    assert context.notes and context.notes[0].startswith("sure: loads")
    return "pass"


@pytest.mark.parametrize(
    ("values", "cached", "uncached"),
    [
        ([1.0] * 9, "pass", "fail"),
        ([1.0] * 8 + [50.0], "pass", "fail"),
        ([1.0] * 7 + [50.0] * 2, "skip", "skip"),
        ([60.0] * 9, "fail", "pass"),
        ([60.0] * 8 + [1.0], "fail", "pass"),
        ([5.0] * 9, "skip", "skip"),
        ([1.0] * 3 + [50.0], "skip", "skip"),
        ([2.9] * 9, "pass", "fail"),
        ([8.1] * 9, "fail", "pass"),
    ],
)
def test_a_ratio_is_judged_only_where_nearly_all_rounds_agree(
    values: list[float], cached: str, uncached: str
) -> None:
    assert judge(caching.expect_cached, values) == cached
    assert judge(caching.expect_uncached, values) == uncached


def test_a_hypervisor_below_is_not_blamed_on_this_kernel() -> None:
    assert judge(caching.expect_uncached, [1.0] * 9, nested=True) == "skip"
    assert judge(caching.expect_uncached, [50.0] * 9, nested=True) == "pass"
    assert judge(caching.expect_cached, [50.0] * 9, nested=True) == "fail"


@pytest.mark.parametrize(
    ("again", "flushed", "fails"),
    [
        ((1.0,) * 9, (60.0,) * 9, True),
        ((1.0,) * 8 + (30.0,), (60.0,) * 8 + (1.0,), True),
        ((1.0,) * 7 + (30.0,) * 2, (60.0,) * 9, False),
        ((0.2,) * 9, (60.0,) * 9, False),
        ((1.0,) * 9, (60.0,) * 7 + (1.0,) * 2, False),
    ],
)
def test_nothing_fails_where_the_controls_of_the_same_rounds_do_not_hold(
    again: tuple[float, ...], flushed: tuple[float, ...], fails: bool
) -> None:
    wanted = "fail" if fails else "skip"
    assert judge(caching.expect_cached, [60.0] * 9, again=again, flushed=flushed) == wanted
    assert judge(caching.expect_uncached, [1.0] * 9, again=again, flushed=flushed) == wanted
    assert judge(caching.expect_slower, [1.0] * 9, 2.0, again=again, flushed=flushed) == wanted
    assert judge(caching.expect_cached, [1.0] * 9, again=again, flushed=flushed) == "pass"


def test_fast_stores_above_a_hypervisor_are_not_judged() -> None:
    assert judge(caching.expect_slower, [1.2] * 9, 2.0, nested=True) == "skip"
    assert judge(caching.expect_slower, [4.0] * 9, 2.0, nested=True) == "pass"


def test_stores_are_judged_only_where_the_rounds_agree() -> None:
    assert judge(caching.expect_slower, [4.0] * 9, 2.0) == "pass"
    assert judge(caching.expect_slower, [1.2] * 9, 2.0) == "fail"
    assert judge(caching.expect_slower, [1.2] * 5 + [4.0] * 4, 2.0) == "skip"
