# SPDX-License-Identifier: Apache-2.0
"""Lies about what KVM_GET_REG_LIST has listed on older kernels, and about registers that refuse."""

from __future__ import annotations

import errno

from tests.mutations.arm64.lies import GET, SET, VBAR, change_list, flip, list_without, of, reading
from tests.mutations.lies import accept, once, refuse
from tests.mutations.registry import lies
from vmm.arm64.registers import SYSTEM, cache, firmware, sysreg, x
from vmm.conformance.arm64.baseline import PMU

_PMCR, _KEY, _BVR, _CNTKCTL = (
    sysreg(3, 3, 9, 12, 0),
    sysreg(3, 0, 2, 3, 1),
    sysreg(2, 0, 0, 15, 4),
    sysreg(3, 0, 14, 1, 0),
)
_PMU = {int(register) for register in PMU}
_ISAR0 = SYSTEM["ID_AA64ISAR0_EL1"]

lies(
    "reglist.baseline",
    tpidr_el1_is_no_longer_listed=lambda: list_without(SYSTEM["TPIDR_EL1"]),
    cntkctl_el1_is_not_listed_with_sve=lambda: list_without(_CNTKCTL, 1),
    the_last_breakpoint_is_not_listed_without_sve=lambda: list_without(_BVR, 2),
    x30_is_no_longer_listed=lambda: list_without(x(30)),
    the_caches_end_earlier=lambda: list_without(cache(13)),
    a_bitmap_of_hypercalls_is_no_longer_listed=lambda: list_without(firmware(1, bitmap=True)),
    the_newest_bitmap_of_hypercalls_is_not_listed=lambda: list_without(firmware(3, bitmap=True)),
)

lies(
    "reglist.pmu-contents",
    pmcr_el0_is_not_listed=lambda: list_without(_PMCR),
    pmcr_el0_is_listed_without_a_pmu=lambda: change_list(
        lambda found: [int(_PMCR) if identifier == VBAR else identifier for identifier in found]
    ),
    pmcr_el0_can_be_read_without_a_pmu=lambda: accept(GET, of(_PMCR)),
)

lies(
    "reglist.get-set-every-feature",
    a_key_cannot_be_read=lambda: refuse(GET, errno.ENOENT, of(_KEY)),
    a_key_cannot_be_written=lambda: refuse(SET, errno.EINVAL, of(_KEY)),
    the_keys_are_not_listed=lambda: change_list(
        lambda found: [one for one in found if one & 0xFF80 != _KEY & 0xFF80 and one not in _PMU]
    ),
    vbar_el1_is_not_what_was_written=lambda: once(SET, reading(flip(1, 8), VBAR), when=of(VBAR)),
)

lies(
    "reglist.refused-keeps",
    a_refused_id_register_is_another_afterwards=lambda: once(
        SET, reading(flip(0), _ISAR0), when=of(_ISAR0), refused=True
    ),
    x3_is_not_what_it_was_when_written_back=lambda: once(SET, reading(flip(0), x(3)), when=of(x(3))),
    x3_does_not_take_its_own_value_back=lambda: once(SET, refuse(SET, errno.EINVAL, of(x(3))), when=of(x(3))),
    nothing_takes_another_value=lambda: refuse(SET, errno.EINVAL),
)
