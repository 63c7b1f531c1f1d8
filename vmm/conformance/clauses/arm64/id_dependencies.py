# SPDX-License-Identifier: Apache-2.0
"""Fields of ID registers that stand on others: what the first run makes of a feature whose ground was taken."""

from __future__ import annotations

import errno

from vmm.arm64.registers import SYSTEM, Register
from vmm.arm64.system_registers import field, replaced
from vmm.arm64.vcpu import read, write
from vmm.conformance.arm64.common import GUEST_RUNS, MASKS, call, plain_guest
from vmm.conformance.arm64.instructions import mrs
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused_indicative, succeeds
from vmm.conformance.needs import kernel
from vmm.conformance.registry import clause

_MMFR3, _ISAR2 = "ID_AA64MMFR3_EL1", "ID_AA64ISAR2_EL1"
_PERMISSIONS = {SYSTEM["PIR_EL1"], SYSTEM["PIRE0_EL1"]}
# FEAT_S1PIE stands on FEAT_TCR2 and FEAT_ATS1A: the register and the lowest bit of their fields.
_GROUNDS = {"TCRX": (_MMFR3, 0), "ATS1A": (_ISAR2, 60)}


@clause("id.dependencies-at-first-run", arch="arm64", needs=(kernel("7.3"), MASKS, GUEST_RUNS))
def dependencies(context: Context) -> None:
    """Without TCRX or ATS1A, on which S1PIE stands, the first run clears S1PIE and its registers leave the list.

    Until then it reads as it was written: states saved before and after a first run differ in it.

    Source: arch/arm64/kvm/config.c; arch/arm64/kvm/sys_regs.c, kvm_finalize_sys_regs; Linux 7.3.
    """
    for ground, (name, low) in _GROUNDS.items():
        guest = plain_guest(context)
        start, below = read(guest.vcpu, SYSTEM[_MMFR3]), read(guest.vcpu, SYSTEM[name])
        if not field(_MMFR3, "S1PIE", start) or not below >> low & 0xF:
            context.skip(f"{_MMFR3} is {start:#x} and {name} {below:#x}: no S1PIE, or no {ground} that it stands on")
        succeeds(f"{ground} = 0", write, guest.vcpu, SYSTEM[name], below & ~(0xF << low))
        before = read(guest.vcpu, SYSTEM[_MMFR3])
        equal(f"S1PIE without {ground} before the first run", field(_MMFR3, "S1PIE", before), 1)
        call(context, guest, f"MRS {_MMFR3}", "execute", mrs(*SYSTEM[_MMFR3].encoding))
        expected = replaced(_MMFR3, "S1PIE", before, 0)
        equal(f"{_MMFR3} without {ground} in the guest", guest.mailbox.values[0], expected)
        equal(f"{_MMFR3} without {ground} after the first run", read(guest.vcpu, SYSTEM[_MMFR3]), expected)
        refused_indicative(context, "S1PIE as before", errno.EBUSY, write, guest.vcpu, SYSTEM[_MMFR3], before)
        listed = {Register(identifier) for identifier in guest.vcpu.reg_list()}
        equal(f"S1PIE's registers listed without {ground}", sorted(map(str, _PERMISSIONS & listed)), [])
