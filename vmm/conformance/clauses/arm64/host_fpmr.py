# SPDX-License-Identifier: Apache-2.0
"""FPMR of the VMM itself beside a guest."""

from __future__ import annotations

from vmm._kvm import lib
from vmm.arm64.registers import SYSTEM, sysreg
from vmm.arm64.system_registers import field
from vmm.arm64.vcpu import read
from vmm.conformance.arm64.common import GUEST_RUNS, call, plain_guest
from vmm.conformance.arm64.fpmr import ENCODING, HOST_FPMR, VALUES
from vmm.conformance.arm64.instructions import mrs, msr
from vmm.conformance.context import Context
from vmm.conformance.expect import equal
from vmm.conformance.registry import clause

_OWN, _GUESTS = VALUES[:2]
_TICKS = 5
# MOVI V0.16B, #0: the guest's vectors, and with them FPMR, are loaded.
_MOVI = 0x4F000400


@clause("host.fpmr-preserved", arch="arm64", needs=(HOST_FPMR, GUEST_RUNS))
def preserved(context: Context) -> None:
    """The VMM's FPMR is what it was after a guest ran that used vectors or its own FPMR, which the guest keeps.

    Source: arch/arm64/kvm/hyp/include/hyp/switch.h, kvm_hyp_save_fpsimd_host; arch/arm64/kvm/fpsimd.c,
    kvm_arch_vcpu_load_fp; commit 93ae6b01bafe.
    """
    guest = plain_guest(context)
    has = field("ID_AA64PFR2_EL1", "FPMR", read(guest.vcpu, SYSTEM["ID_AA64PFR2_EL1"]))
    lib.vmm_set_fpmr(_OWN)
    equal("FPMR of the VMM before a guest ran", lib.vmm_get_fpmr(), _OWN)
    for what, instruction in (("vectors", _MOVI), *([("FPMR", msr(*ENCODING))] if has else [])):
        lib.vmm_set_fpmr(_OWN)
        call(context, guest, f"a guest that uses {what}", "execute", instruction, _GUESTS)
        equal(f"faults of a guest that uses {what}", guest.mailbox.values[15], 0)
        equal(f"FPMR of the VMM after a guest used {what}", lib.vmm_get_fpmr(), _OWN)
        call(context, guest, "a guest that leaves", "ticks", _TICKS)
        equal("FPMR of the VMM after it left again and again", lib.vmm_get_fpmr(), _OWN)
    if has:
        lib.vmm_set_fpmr(0)
        call(context, guest, "MRS FPMR", "execute", mrs(*ENCODING))
        equal("FPMR of the guest after the VMM wrote its own", guest.mailbox.values[0], _GUESTS)
        equal("by KVM", read(guest.vcpu, sysreg(*ENCODING)), _GUESTS)
