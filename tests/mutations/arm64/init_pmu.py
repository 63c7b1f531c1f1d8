# SPDX-License-Identifier: Apache-2.0
"""Lies about the PMU as a feature."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import INIT, list_without, number, reading
from tests.mutations.lies import COMPLETE, accept, drift, nth, refuse
from tests.mutations.registry import lies
from vmm.arm64.registers import sysreg

_PMMIR = sysreg(3, 0, 9, 14, 6)

lies(
    "init.pmu-unsupported",
    a_pmu_that_there_is_not_is_accepted=lambda: accept(INIT),
    a_pmu_that_there_is_not_is_enoent=lambda: drift(INIT, errno.ENOENT),
    a_vcpu_without_a_pmu_is_refused=lambda: refuse(INIT, errno.EINVAL),
)

lies(
    "init.pmu-needs-set-up",
    a_pmu_is_refused=lambda: refuse(INIT, errno.EINVAL, nth(1)),
    a_pmu_that_was_not_set_up_does_not_matter=lambda: accept(COMPLETE),
    a_pmu_that_was_not_set_up_is_enxio=lambda: drift(COMPLETE, errno.ENXIO),
    a_vcpu_without_a_pmu_cannot_run=lambda: refuse(COMPLETE, errno.EINVAL),
    a_vcpu_without_a_pmu_is_refused=lambda: refuse(INIT, errno.EINVAL, nth(2)),
)

lies(
    "init.pmu-strict",
    strictness_needs_no_pmu=lambda: accept(INIT),
    strictness_without_a_pmu_is_enoent=lambda: drift(INIT, errno.ENOENT),
    pmmir_el1_is_not_listed=lambda: list_without(_PMMIR),
    pmmir_el1_has_slots_without_a_pmu=lambda: reading(number(5), _PMMIR),
)
