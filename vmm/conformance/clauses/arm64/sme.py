# SPDX-License-Identifier: Apache-2.0
"""SME, which no guest has been given."""

from __future__ import annotations

import errno

from vmm.arm64.registers import SYSTEM
from vmm.arm64.system_registers import field, replaced
from vmm.arm64.vcpu import read, write
from vmm.conformance.arm64.common import GUEST_RUNS, call, guests
from vmm.conformance.arm64.instructions import mrs
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused_indicative
from vmm.conformance.registry import clause

_PFR1, _SMFR0 = "ID_AA64PFR1_EL1", "ID_AA64SMFR0_EL1"
# SMSTART, RDSVL X0, #1, and reads of SME's registers.
# SMPRI_EL1 and TPIDR2_EL0 are left out: only fine-grained traps reach them, which not every CPU with SME has.
_SME_INSTRUCTIONS = {
    "SMSTART": 0xD503477F, "RDSVL": 0x04BF5820, "MRS SVCR": mrs(3, 3, 4, 2, 2), "MRS SMCR_EL1": mrs(3, 0, 1, 2, 6),
}  # fmt: skip


@clause("sme.absent", arch="arm64", needs=(GUEST_RUNS,))
def sme_absent(context: Context) -> None:
    """A guest that was not given SME has none: its ID fields are 0 and cannot be set, its instructions are undefined.

    Also where the host has it.

    Source: arch/arm64/kvm/sys_regs.c, sys_reg_descs; arch/arm64/kvm/fpsimd.c.
    """
    guest = next(guests(context))
    start = read(guest.vcpu, SYSTEM[_PFR1])
    equal(f"{_PFR1}.SME", field(_PFR1, "SME", start), 0)
    equal(_SMFR0, read(guest.vcpu, SYSTEM[_SMFR0]), 0)
    for name, value in ((_PFR1, replaced(_PFR1, "SME", start, 1)), (_SMFR0, 1 << 63)):
        refused_indicative(context, f"{name} = {value:#x}", errno.EINVAL, write, guest.vcpu, SYSTEM[name], value)
    for name, instruction in _SME_INSTRUCTIONS.items():
        call(context, guest, f"a guest's {name}", "execute", instruction)
        equal(f"faults of {name}", guest.mailbox.values[15], 1)
        fault = guest.fault()
        equal(f"the exception class of {name}", fault.exception_class, 0)
        equal(f"where {name} faulted", fault.elr, guest.payload.symbol("slot"))
