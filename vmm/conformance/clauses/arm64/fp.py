# SPDX-License-Identifier: Apache-2.0
"""FPSIMD registers, with SVE and without."""

from __future__ import annotations

import errno

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import FPCR, FPSR, v
from vmm.arm64.vcpu import read, write
from vmm.arm64.vector import FPCR_BITS, FPSR_BITS, VectorState, differences
from vmm.conformance.arm64.common import (
    GUEST_RUNS,
    SVE,
    call,
    hold,
    plain_guest,
    plain_vcpu,
    sve_guest,
    sve_vcpu,
    verify,
)
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, no_difference, refused_indicative, succeeds
from vmm.conformance.registry import clause

_MRS_FPSR, _MRS_FPCR = 0xD53B4420, 0xD53B4400


@clause("fp.vregs-on-sve-einval", arch="arm64", needs=(SVE,))
def v_with_sve(context: Context) -> None:
    """A vCPU with SVE has no V registers: reading and writing them is EINVAL before and after FINALIZE.

    Their bits are the low ones of Z. A VMM that saves them from every vCPU fails here.

    Source: arch/arm64/kvm/guest.c, core_reg_size_from_offset; Documentation/virt/kvm/api.rst, 4.68.
    """
    vcpu = sve_vcpu(context, finalized=False)
    for when in ("before", "after"):
        for number in range(32):
            what = f"V{number} {when} FINALIZE"
            refused_indicative(context, f"reading {what}", errno.EINVAL, vcpu.get_one_reg, v(number))
            refused_indicative(context, f"writing {what}", errno.EINVAL, vcpu.set_one_reg, v(number), bytes(16))
        if when == "before":
            vcpus.finalize(vcpu)


@clause("fp.fpsr-fpcr-on-sve", arch="arm64", needs=(SVE, GUEST_RUNS))
def fpsr_fpcr(context: Context) -> None:
    """FPSR and FPCR are 32-bit core registers of a vCPU with SVE too, and what is written is what the guest reads.

    Source: arch/arm64/kvm/guest.c, core_reg_size_from_offset; Documentation/virt/kvm/api.rst, 4.68.
    """
    guest = sve_guest(context)
    for fpsr, fpcr in ((FPSR_BITS, 0), (0, FPCR_BITS), (0x08000000, 0x00400000)):
        guest.prepare("store")
        for register, value in ((FPSR, fpsr), (FPCR, fpcr)):
            succeeds(f"writing {register}", write, guest.vcpu, register, value)
            equal(f"{register} read back", succeeds(f"reading {register}", read, guest.vcpu, register), value)
        for name, instruction, value in (("FPSR", _MRS_FPSR, fpsr), ("FPCR", _MRS_FPCR, fpcr)):
            call(context, guest, f"MRS {name}", "execute", instruction)
            equal(f"{name} in the guest", guest.mailbox.values[0], value)


def _equal(what: str, found: VectorState, expected: VectorState) -> None:
    no_difference(what, differences(expected.image(), found.image()))


@clause("fp.vregs-nonsve-roundtrip", arch="arm64", needs=(GUEST_RUNS,))
def v_without_sve(context: Context) -> None:
    """A vCPU without SVE has V0 to V31 in 16 bytes each: written, read back, seen by the guest and kept over exits.

    Source: arch/arm64/kvm/guest.c, get_core_reg, set_core_reg; arch/arm64/kvm/fpsimd.c.
    """
    guest = plain_guest(context, "fpsimd")
    first, second = (VectorState.random(16, context.options.seed + n, sve=False) for n in range(2))
    with judged("writing and reading V0 to V31, FPSR and FPCR"):
        first.set_fpsimd(guest.vcpu)
        found = VectorState.get_fpsimd(guest.vcpu)
    _equal("the state read back", found, first)
    verify(context, guest, "what the guest finds", first)
    hold(context, guest, "what the guest keeps over exits", second)
    _equal("the state after the guest ran", VectorState.get_fpsimd(guest.vcpu), second)


@clause("fp.fpcr-raw", arch="arm64", info=True)
def fpcr_raw(context: Context) -> None:
    """FPSR and FPCR are stored as they are written, reserved bits included, until the guest runs with them loaded.

    A comparison of states from before and after a run may differ in them.

    Source: arch/arm64/kvm/guest.c, set_core_reg.
    """
    vcpu = plain_vcpu(context)
    for register in (FPSR, FPCR):
        write(vcpu, register, 0xFFFFFFFF)
        context.note(f"{register} written as 0xffffffff reads {read(vcpu, register):#x}")
