# SPDX-License-Identifier: Apache-2.0
"""A process that takes steps without end on a CPU, and a child whose death is a finding."""

from __future__ import annotations

import os
import signal

import pytest

from tests.patience import LIMIT
from vmm.conformance.expect import Violation
from vmm.conformance.neighbour import Neighbour, Step, in_child

CPU = min(os.sched_getaffinity(0))


def _idle() -> Step:
    return lambda: None


def _failing() -> Step:
    return lambda: "XMM3 differs"


def _dying() -> Step:
    return lambda: os.kill(os.getpid(), signal.SIGKILL)


def test_a_neighbour_takes_steps_until_it_is_closed() -> None:
    with Neighbour(CPU, _idle) as neighbour:
        neighbour.wait(LIMIT)
        done = neighbour.operations
        neighbour.wait(LIMIT)
        assert neighbour.operations > done
        assert neighbour.failure == ""


def test_a_step_that_fails_is_the_last_and_its_text_is_told() -> None:
    with Neighbour(CPU, _failing) as neighbour:
        neighbour.wait(LIMIT)
        assert neighbour.failure == "XMM3 differs"
        assert neighbour.operations == 0


def test_a_neighbour_that_dies_is_an_error_and_not_waited_for() -> None:
    with Neighbour(CPU, _dying) as neighbour, pytest.raises(RuntimeError, match="has died"):
        neighbour.wait(LIMIT)


def test_a_child_that_is_killed_is_a_violation() -> None:
    with pytest.raises(Violation, match=r"a child.*SIGKILL"):
        in_child("a child", lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_what_a_child_finds_is_its_parents_finding() -> None:
    def work() -> None:
        raise Violation("Z3", "1", "2")

    with pytest.raises(Violation, match="a child: Z3: expected 1, observed 2"):
        in_child("a child", work)


def test_a_child_that_succeeds_is_no_finding() -> None:
    in_child("a child", lambda: None)
