# SPDX-License-Identifier: Apache-2.0
"""Migrations in which something breaks at a chosen point: see tests.migration.faults, which runs many more."""

from __future__ import annotations

import pytest

from tests.migration.faults import Point, faults_of, points, reference, run, survives
from vmm.migration.wire import Kind

pytestmark = pytest.mark.kvm

_POINTS = [
    # A second message of a kind does not come in every migration.
    *[point for point in points(40, seed=2) if not point.which][:6],
    Point("cut", Kind.HANDOVER, 0.5),
    Point("cut", Kind.RUNNING, 0.5),
    Point("flip", Kind.HANDOVER, 0.999),
    Point("kill-target", Kind.READY, 1.0),
    Point("kill-all", Kind.HANDOVER, 1.0),
    Point("kill-source", Kind.HANDOVER, 1.0),
]


@pytest.mark.parametrize("point", _POINTS, ids=str)
def test_a_fault_never_leaves_two_guests_and_loses_none_whose_side_lives(point: Point) -> None:
    survives(point, vcpus=1)


@pytest.mark.parametrize("vcpus", [1, 2])
def test_without_a_fault_nothing_is_wrong(vcpus: int) -> None:
    case = run(None, scale=20.0, vcpus=vcpus)
    assert faults_of(case, reference(vcpus)) == []
    assert list(case.digests) == ["target"]
