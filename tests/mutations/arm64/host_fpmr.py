# SPDX-License-Identifier: Apache-2.0
"""Lies about the VMM's own FPMR."""

from __future__ import annotations

from tests.mutations.arm64.lies import executed, flip, reading, values
from tests.mutations.lies import RUN, after, nth
from tests.mutations.registry import lies
from vmm._kvm import lib
from vmm.arm64.registers import sysreg
from vmm.conformance.arm64.fpmr import ENCODING
from vmm.conformance.arm64.instructions import mrs, msr

lies(
    "host.fpmr-preserved",
    fpmr_is_the_guests_after_it_used_vectors=lambda: after(RUN, lambda call: lib.vmm_set_fpmr(0), nth(1)),
    fpmr_is_lost_after_some_exits=lambda: after(RUN, lambda call: lib.vmm_set_fpmr(0), nth(2)),
    fpmr_is_the_guests_after_it_used_its_own=lambda: after(RUN, lambda call: lib.vmm_set_fpmr(0x5522_0000), nth(3)),
    the_guest_has_the_vmms_fpmr=lambda: executed(mrs(*ENCODING), values(0, lambda old: 0)),
    the_guests_fpmr_is_undefined=lambda: executed(msr(*ENCODING), values(15, lambda old: 1)),
    the_guests_fpmr_is_lost=lambda: reading(flip(3), sysreg(*ENCODING)),
)
