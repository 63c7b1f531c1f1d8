# SPDX-License-Identifier: Apache-2.0
"""KVM_SET_XSAVE: what is accepted, what is refused, and that the guest sees what was set."""

from __future__ import annotations

import errno
import random

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, no_difference, refused, succeeds
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import (
    AREA,
    GUEST_XSAVE,
    MASKABLE,
    XSAVE2,
    configured,
    guest_supported,
    judged_call,
    maskable,
    pattern,
    plain_features,
    static_features,
    vector_guest,
    vector_level,
)
from vmm.conformance.x86.image import Image
from vmm.conformance.x86.shadow import DEPTH, SHSTK, XSAVES, goes_on, stopped_inside
from vmm.kvm.bits import bits
from vmm.kvm.ioctl import KvmError
from vmm.x86 import xfeature
from vmm.x86.cpuid import Cpuid, set_cpuid
from vmm.x86.msr import get_msr
from vmm.x86.msr_names import Msr
from vmm.x86.xsave import INITIAL_FCW, INITIAL_MXCSR, XsaveArea, get_xsave, set_xsave

_GUEST = (GUEST_XSAVE, XSAVE2)
_BAD_MXCSR = 1 << 31


def _only(bits: int) -> XsaveArea:
    area = XsaveArea.initial()
    area.xstate_bv = bits
    return area


@clause("xsave.set-unsupported-bit", arch="x86", needs=AREA)
def unsupported_bits(context: Context) -> None:
    """Each of the 64 bits of XSTATE_BV alone is accepted exactly if KVM supports the component without permission.

    Source: arch/x86/kernel/fpu/core.c, fpu_copy_uabi_to_guest_fpstate; arch/x86/kernel/fpu/xstate.c,
    validate_user_xstate_header.
    """
    vcpu = configured(context)
    accepted = 0
    for number in range(64):
        try:
            set_xsave(vcpu, _only(1 << number))
            accepted |= 1 << number
        except KvmError as error:
            if error.errno != errno.EINVAL:
                refused(f"bit {number}", errno.EINVAL, set_xsave, vcpu, _only(1 << number))
    equal("accepted bits", accepted, guest_supported(context) & static_features(context) | 3)


@clause("xsave.set-cpuid-independent", arch="x86", needs=(MASKABLE, XSAVE2))
def independent_of_cpuid(context: Context) -> None:
    """Components are accepted whatever the guest's CPUID says: before it is set, empty, and masked.

    Old streams would not restore otherwise.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_set_xsave (kvm_caps.supported_xcr0).
    """
    full, less = maskable(context)
    area = pattern(full, 11)
    vcpu = context.vcpu()
    succeeds("before KVM_SET_CPUID2", set_xsave, vcpu, area)
    set_cpuid(vcpu, context.host.facts.cpuid)
    no_difference("what was set before KVM_SET_CPUID2", area.same_state(get_xsave(vcpu)))
    for name, table in (
        ("an empty CPUID", Cpuid()),
        ("a masked CPUID", context.host.facts.cpuid.with_xcr0(less)),
    ):
        set_cpuid(vcpu, table)
        changed = pattern(full, 100 + len(table))
        succeeds(f"with {name}", set_xsave, vcpu, changed)
        set_cpuid(vcpu, context.host.facts.cpuid)
        no_difference(f"what was set with {name}", changed.same_state(get_xsave(vcpu)))


@clause("xsave.set-header-checks", arch="x86", needs=AREA)
def header_checks(context: Context) -> None:
    """A non-zero XCOMP_BV or reserved header byte is refused with EINVAL.

    Source: arch/x86/kernel/fpu/xstate.c, validate_user_xstate_header.
    """
    vcpu = configured(context)
    for bit in (0, 2, 62, 63):
        area = pattern(3, 12)
        area.xcomp_bv = 1 << bit
        refused(f"XCOMP_BV bit {bit}", errno.EINVAL, set_xsave, vcpu, area)
    for offset in (528, 551, 575):
        area = pattern(3, 12)
        area.data[offset] = 1
        refused(f"header byte {offset}", errno.EINVAL, set_xsave, vcpu, area)
    succeeds("the same area with a clean header", set_xsave, vcpu, pattern(3, 12))


@clause("xsave.set-software-bytes", arch="x86", needs=AREA)
def software_bytes(context: Context) -> None:
    """What KVM_SET_XSAVE is given in the bytes 416 to 511 is ignored: they are read as before, filled by the kernel.

    A stream of another host has that host's features there.

    Source: arch/x86/kernel/fpu/xstate.c, copy_uabi_to_xstate (not looked at), __copy_xstate_to_uabi_buf
    (xstate_fx_sw_bytes).
    """
    vcpu = configured(context)
    area = pattern(plain_features(context), 13)
    set_xsave(vcpu, area)
    before = get_xsave(vcpu)
    for garbage in (0x00, 0xFF, 0x5A):
        area.data[416:512] = bytes([garbage]) * 96
        succeeds(f"bytes 416 to 511 of {garbage:#x}", set_xsave, vcpu, area)
        after = get_xsave(vcpu)
        equal(f"bytes 416 to 511 after {garbage:#x}", bytes(after.data[416:512]), bytes(before.data[416:512]))
        no_difference(f"the state after {garbage:#x}", before.same_state(after))


@clause("xsave.set-mxcsr", arch="x86", needs=AREA)
def mxcsr_checked(context: Context) -> None:
    """A reserved MXCSR bit is refused with EINVAL if x87, SSE or AVX state comes along, and ignored if not.

    Source: arch/x86/kernel/fpu/xstate.c, copy_uabi_to_xstate.
    """
    vcpu = configured(context)
    plain = plain_features(context)
    for named in (1, 2, plain & 4, plain & 7):
        if named:
            area = _only(named)
            area.mxcsr = _BAD_MXCSR
            refused(f"reserved MXCSR bit with XSTATE_BV {named:#x}", errno.EINVAL, set_xsave, vcpu, area)
    for named in {0, plain & xfeature.AVX512}:
        area = _only(named)
        area.mxcsr = _BAD_MXCSR
        succeeds(f"reserved MXCSR bit with XSTATE_BV {named:#x}", set_xsave, vcpu, area)
        equal(f"MXCSR after XSTATE_BV {named:#x}", get_xsave(vcpu).mxcsr, INITIAL_MXCSR)


@clause("xsave.set-atomic", arch="x86", needs=AREA)
def refusal_changes_nothing(context: Context) -> None:
    """A refused area leaves the vCPU's state as it was.

    Source: arch/x86/kernel/fpu/xstate.c, copy_uabi_to_xstate (all checks come first).
    """
    vcpu = configured(context)
    set_xsave(vcpu, pattern(plain_features(context), 13))
    before = get_xsave(vcpu)
    spoilers = {
        "an unsupported component": ("xstate_bv", 1 << 63 | 3),
        "XCOMP_BV": ("xcomp_bv", 1 << 63),
        "a reserved MXCSR bit": ("mxcsr", _BAD_MXCSR),
    }
    for name, (field, value) in spoilers.items():
        area = pattern(plain_features(context), 14)
        setattr(area, field, value)
        refused(name, errno.EINVAL, set_xsave, vcpu, area)
        no_difference(f"the state after {name}", before.compare(get_xsave(vcpu)))


def _check_others(area: XsaveArea, seen: XsaveArea, cleared: int) -> None:
    """Every component but the cleared one has to be what was set, MXCSR included while SSE or AVX comes along."""
    for number in bits(area.xstate_bv):
        skip = 8 if number == 1 else 0
        name = f"bytes of {xfeature.name(number)} without {xfeature.name(cleared)}"
        equal(name, seen.component(number)[skip:], area.component(number)[skip:])
    loaded = area.xstate_bv & 6
    equal(f"MXCSR without {xfeature.name(cleared)}", seen.mxcsr, area.mxcsr if loaded else INITIAL_MXCSR)


@clause("xsave.set-bit-clear-means-init", arch="x86", needs=_GUEST)
def clear_bit_means_initial(context: Context) -> None:
    """A component whose bit is clear becomes initial, whatever bytes come along and whatever it held before.

    Source: arch/x86/kernel/fpu/xstate.c, copy_uabi_to_xstate (header.xfeatures is replaced).
    """
    vcpu = configured(context)
    plain = plain_features(context)
    for number in bits(plain):
        set_xsave(vcpu, pattern(plain, 15))
        area = pattern(plain, 16)
        area.xstate_bv = plain & ~(1 << number)
        name = xfeature.name(number)
        succeeds(f"KVM_SET_XSAVE without {name}", set_xsave, vcpu, area)
        seen = get_xsave(vcpu)
        _check_others(area, seen, number)
        equal(f"XSTATE_BV without {name}", seen.xstate_bv & plain, plain & ~(1 << number))
        data = seen.component(number)
        cleared = data[2:] if number == 0 else data[8:] if number == 1 else data
        equal(f"bytes of {name}", cleared.strip(b"\0"), b"")
        if number == 0:
            equal("FCW", seen.fcw, INITIAL_FCW)


@clause("xsave.set-then-run", arch="x86", needs=_GUEST)
def guest_sees_what_was_set(context: Context) -> None:
    """The guest finds in its registers what KVM_SET_XSAVE put there, byte by byte, and its own verification says so.

    Source: arch/x86/kvm/x86.c, kvm_load_guest_fpu; Documentation/virt/kvm/api.rst 4.44.
    """
    guest = vector_guest(context)
    level = vector_level(context)
    image = Image.random(random.Random(17))
    guest.memory.write(guest.payload.symbol("expected"), image.data)
    area = XsaveArea.initial()
    area.set_component(0, image.fcw.to_bytes(2, "little") + bytes(2) + b"\xff" + bytes(19) + image.component(0))
    area.set_component(1, image.mxcsr.to_bytes(4, "little") + bytes(4) + image.component(1))
    for number in image.features(level)[2:]:
        area.set_component(number, image.component(number))
    succeeds("KVM_SET_XSAVE", set_xsave, guest.vcpu, area)
    judged_call(context, guest, f"verify_{level}", privilege=3)
    image.check(guest)


@clause("xsave.legacy-zero-header", arch="x86", needs=AREA)
def legacy_zero_header(context: Context) -> None:
    """An area of 4096 zeros, as streams from before XSAVE have it, is accepted and means the initial state.

    Source: arch/x86/kernel/fpu/core.c, fpu_copy_uabi_to_guest_fpstate.
    """
    vcpu = configured(context)
    fresh = get_xsave(vcpu)
    set_xsave(vcpu, pattern(plain_features(context), 18))
    succeeds("4096 zeros", set_xsave, vcpu, XsaveArea(bytes(4096)))
    no_difference("the state after 4096 zeros", fresh.compare(get_xsave(vcpu)))
    equal("FCW", get_xsave(vcpu).fcw, INITIAL_FCW)


@clause("xsave.set-get-identity", arch="x86", needs=_GUEST)
def set_get_identity(context: Context) -> None:
    """Every byte of every plain component that is set is read back, for each component alone and for all.

    Source: arch/x86/kernel/fpu/xstate.c, copy_uabi_to_xstate, __copy_xstate_to_uabi_buf.
    """
    vcpu = configured(context)
    plain = plain_features(context)
    for features in (*(1 << number for number in bits(plain)), plain):
        area = pattern(features, 19)
        succeeds(f"KVM_SET_XSAVE of {xfeature.describe(features)}", set_xsave, vcpu, area)
        seen = get_xsave(vcpu)
        equal("XSTATE_BV", seen.xstate_bv, features)
        for number in bits(features):
            skip = 8 if number == 1 else 0  # MXCSR_MASK is the CPU's
            name = xfeature.name(number)
            equal(f"bytes of {name}", seen.component(number)[skip:], area.component(number)[skip:])
        if features & 2:
            equal("MXCSR", seen.mxcsr, area.mxcsr)


@clause("xsave.set-preserves-supervisor", arch="x86", needs=(SHSTK, XSAVES))
def set_preserves_supervisor_state(context: Context) -> None:
    """KVM_SET_XSAVE with XSTATE_BV 0 leaves U_CET and the shadow stack pointers as they are.

    Source: arch/x86/kernel/fpu/xstate.c, copy_uabi_to_xstate (XFEATURE_MASK_SUPERVISOR_ALL is kept); Linux 6.18.
    """
    guest = stopped_inside(context)
    registers = (Msr.U_CET, Msr.PL0_SSP, Msr.PL1_SSP, Msr.PL2_SSP, Msr.PL3_SSP)
    before = [get_msr(guest.vcpu, msr) for msr in registers]
    succeeds("KVM_SET_XSAVE with XSTATE_BV 0", set_xsave, guest.vcpu, XsaveArea.initial())
    equal("U_CET and PLn_SSP", [get_msr(guest.vcpu, msr) for msr in registers], before)
    goes_on(context, guest, "the guest")
    equal("returns of the guest", guest.mailbox.values[0], DEPTH)
