# SPDX-License-Identifier: Apache-2.0
"""ZCR_EL1: who has it, what it is at reset, and who sees what is written."""

from __future__ import annotations

import errno

from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import SYSTEM
from vmm.arm64.vcpu import Feature, read, write
from vmm.conformance.arm64.common import GUEST_RUNS, SVE, call, plain_vcpu, sve_guest, sve_vcpu
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused_indicative, succeeds
from vmm.conformance.registry import clause


@clause("sve.zcr.hidden-nonsve", arch="arm64")
def zcr_hidden(context: Context) -> None:
    """A vCPU without SVE has no ZCR_EL1: reading and writing it is ENOENT.

    Source: arch/arm64/kvm/sys_regs.c, sve_visibility.
    """
    vcpu = plain_vcpu(context)
    refused_indicative(context, "reading ZCR_EL1", errno.ENOENT, read, vcpu, SYSTEM["ZCR_EL1"])
    refused_indicative(context, "writing ZCR_EL1", errno.ENOENT, write, vcpu, SYSTEM["ZCR_EL1"], 0)


@clause("sve.zcr.reset-zero", arch="arm64", needs=(SVE,))
def zcr_reset(context: Context) -> None:
    """ZCR_EL1 is 0 after VCPU_INIT and after the next one: a guest starts with vectors of 128 bits.

    Source: arch/arm64/kvm/sys_regs.c, sys_reg_descs.
    """
    vcpu = sve_vcpu(context)
    equal("ZCR_EL1", read(vcpu, SYSTEM["ZCR_EL1"]), 0)
    write(vcpu, SYSTEM["ZCR_EL1"], 3)
    vcpus.init(vcpu, Feature.SVE)
    equal("ZCR_EL1 after VCPU_INIT", read(vcpu, SYSTEM["ZCR_EL1"]), 0)


@clause("sve.zcr.guest-user-agree", arch="arm64", needs=(SVE, GUEST_RUNS))
def zcr_agree(context: Context) -> None:
    """ZCR_EL1 written by KVM_SET_ONE_REG is what the guest reads and obeys; what the guest writes is read back.

    Source: arch/arm64/kvm/hyp/include/hyp/switch.h; arch/arm64/kvm/sys_regs.c.
    """
    lengths = context.host.facts.guest_lengths
    guest = sve_guest(context)
    for wanted in (0, lengths.maximum - 1, 1, 15, 0):
        succeeds(f"ZCR_EL1 = {wanted}", write, guest.vcpu, SYSTEM["ZCR_EL1"], wanted)
        call(context, guest, f"a guest with ZCR_EL1 = {wanted}", "rdvl")
        equal("ZCR_EL1 in the guest", guest.mailbox.values[1], wanted)
        equal(f"RDVL with LEN {wanted}", guest.mailbox.values[0], 16 * lengths.granted(wanted + 1))
    for wanted in (lengths.maximum - 1, 0, 15):
        call(context, guest, f"a guest that writes {wanted} to ZCR_EL1", "lengths", wanted)
        equal("ZCR_EL1 after the guest wrote it", read(guest.vcpu, SYSTEM["ZCR_EL1"]), wanted)


@clause("sve.zcr.verbatim", arch="arm64", needs=(SVE,), info=True)
def zcr_verbatim(context: Context) -> None:
    """KVM_SET_ONE_REG stores ZCR_EL1 as it is, reserved bits included.

    Source: arch/arm64/kvm/sys_regs.c, kvm_sys_reg_set_user.
    """
    vcpu = sve_vcpu(context)
    write(vcpu, SYSTEM["ZCR_EL1"], 0x1FF)
    context.note(f"ZCR_EL1 written as 0x1ff reads {read(vcpu, SYSTEM['ZCR_EL1']):#x}")
