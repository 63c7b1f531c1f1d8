# SPDX-License-Identifier: Apache-2.0
"""Features that an ID register shows or hides: the registers that come and go with them."""

from __future__ import annotations

import errno

from vmm.arm64.guest import Guest
from vmm.arm64.registers import SYSTEM, sysreg
from vmm.arm64.system_registers import field, replaced
from vmm.arm64.vcpu import read, write
from vmm.conformance.arm64.common import GUEST_RUNS, MASKS, call, plain_guest, plain_vcpu, writable
from vmm.conformance.arm64.fpmr import ENCODING, HOST_FPMR, VALUES
from vmm.conformance.arm64.instructions import mrs, msr
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused_indicative, succeeds, true
from vmm.conformance.registry import clause

_FPMR = sysreg(*ENCODING)
_PFR2, _MMFR3 = "ID_AA64PFR2_EL1", "ID_AA64MMFR3_EL1"
_UNDEFINED = 0
# A register of each feature that an ID register's field is about.
_FEATURES = (
    ("FPMR", ENCODING, _PFR2, "FPMR"),
    ("TCR2_EL1", (3, 0, 2, 0, 3), _MMFR3, "TCRX"),
    ("SCTLR2_EL1", (3, 0, 1, 0, 3), _MMFR3, "SCTLRX"),
    ("PIR_EL1", (3, 0, 10, 2, 3), _MMFR3, "S1PIE"),
)  # fmt: skip


@clause("id.fpmr", arch="arm64", needs=(HOST_FPMR, GUEST_RUNS))
def fpmr(context: Context) -> None:
    """FPMR is listed where ID_AA64PFR2_EL1.FPMR is not 0, and holds for the guest what the VMM writes and vice versa.

    Source: arch/arm64/kvm/sys_regs.c, fp8_visibility; arch/arm64/kvm/hyp/include/hyp/switch.h,
    kvm_hyp_handle_fpsimd; Linux 6.12.
    """
    guest = plain_guest(context)
    has = field(_PFR2, "FPMR", read(guest.vcpu, SYSTEM[_PFR2]))
    equal("FPMR in the list of registers", _FPMR in guest.vcpu.reg_list(), bool(has))
    if not has:
        context.skip("ID_AA64PFR2_EL1.FPMR is 0, although this process has FPMR")
    for value in VALUES:
        succeeds("writing FPMR", write, guest.vcpu, _FPMR, value)
        call(context, guest, "MRS FPMR", "execute", mrs(*ENCODING))
        equal("FPMR in the guest", guest.mailbox.values[0], value)
        other = value ^ VALUES[0]
        call(context, guest, "MSR FPMR", "execute", msr(*ENCODING), other)
        equal("FPMR after the guest wrote it", read(guest.vcpu, _FPMR), other)


def _hidden(context: Context, register: str, name: str) -> Guest | None:
    """A guest whose ID register has 0 in a field; None where it is 0 anyway or cannot be."""
    value = read(plain_vcpu(context), SYSTEM[register])
    mask = writable(context, context.vm()).get(SYSTEM[register], 0)
    if not field(register, name, value) or field(register, name, mask) != 0xF:
        return None
    guest = plain_guest(context)
    lower = replaced(register, name, value, 0)
    write(guest.vcpu, SYSTEM[register], lower)
    equal(f"{register} without {name}", read(guest.vcpu, SYSTEM[register]), lower)
    return guest


@clause("id.hidden-means-undefined", arch="arm64", needs=(MASKS, GUEST_RUNS))
def hidden(context: Context) -> None:
    """A feature that the VMM hides in an ID register is gone: its register is undefined and KVM does not know it.

    With the feature the guest has the register.

    Source: arch/arm64/kvm/sys_regs.c, visibility of TCR2_EL1, SCTLR2_EL1, PIR_EL1 and FPMR; arch/arm64/kvm/config.c.
    """
    looked = []
    for what, encoding, register, name in _FEATURES:
        without = _hidden(context, register, name)
        if without is None:
            continue
        looked.append(what)
        # Before the first run the list follows what was written.
        call(context, without, f"MRS {what} without {name}", "execute", mrs(*encoding))
        equal(f"faults of MRS {what} without {name}", without.mailbox.values[15], 1)
        equal("the exception's class", without.fault().exception_class, _UNDEFINED)
        refused_indicative(context, f"{what} without {name}", errno.ENOENT, read, without.vcpu, sysreg(*encoding))
        true(f"{what} without {name}", sysreg(*encoding) not in without.vcpu.reg_list(), "listed", "not in the list")
        guest = plain_guest(context)
        call(context, guest, f"MRS {what} with {name}", "execute", mrs(*encoding))
        equal(f"faults of MRS {what} with {name}", guest.mailbox.values[15], 0)
    if not looked:
        context.skip("no field for FPMR, TCR2_EL1, SCTLR2_EL1 or PIR_EL1 is there and can be hidden")
    context.note(f"looked at {', '.join(looked)}")
