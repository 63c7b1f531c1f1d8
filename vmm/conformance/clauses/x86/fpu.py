# SPDX-License-Identifier: Apache-2.0
"""KVM_GET_FPU and KVM_SET_FPU: the x87 and SSE registers, field by field."""

from __future__ import annotations

import random

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, no_difference, succeeds
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import AREA, AVX, XSAVE2, judged_call, vector_guest, vector_level
from vmm.conformance.x86.image import Image
from vmm.conformance.x86.legacy import (
    POINTERS,
    Legacy,
    agrees,
    fxsave_guest,
    keeps_pointers,
    load,
    verify,
)
from vmm.x86.registers import get_fpu, set_fpu
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import POISON, get_xsave, set_xsave

_EXITS = 50
_FTWS = (0x00, 0x01, 0x80, 0x5A, 0xFF)
_ST_SIZE = 128


@clause("fpu.set-on-fresh", arch="x86")
def set_on_fresh(context: Context) -> None:
    """What KVM_SET_FPU writes to a vCPU that has not run is what its guest finds in x87 and XMM registers.

    KVM_GET_FPU shows FOP, FIP and FDP too: until the vCPU runs nothing depends on whether the CPU keeps them.

    Source: Documentation/virt/kvm/api.rst, KVM_SET_FPU ("Writes the floating point state to the vcpu");
    arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_set_fpu.
    """
    guest = fxsave_guest(context)
    image = Legacy.random(30, pointers=True)
    succeeds("KVM_SET_FPU with pointers", set_fpu, guest.vcpu, image.fpu())
    agrees("with pointers, of a vCPU that has not run", guest, image)
    image = Legacy.random(31)
    succeeds("KVM_SET_FPU", set_fpu, guest.vcpu, image.fpu())
    agrees("of a vCPU that has not run", guest, image)
    # MXCSR has a clause of its own.
    verify(context, guest, image.with_mxcsr(0x1F80), "on a fresh vCPU")


@clause("fpu.set-after-run", arch="x86")
def set_after_run(context: Context) -> None:
    """What KVM_SET_FPU writes to a vCPU that has used its registers is what the guest finds, field by field.

    Source: arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_set_fpu; Intel SDM volume 1, table 10-2.
    """
    guest = fxsave_guest(context)
    for seed in (32, 33):
        load(context, guest, Legacy.random(seed, ftw=0xFF))
        image = Legacy.random(seed + 10)
        succeeds("KVM_SET_FPU", set_fpu, guest.vcpu, image.fpu())
        verify(context, guest, image, "after KVM_SET_FPU")


@clause("fpu.get-agrees-with-xsave", arch="x86", needs=AREA)
def get_agrees(context: Context) -> None:
    """Each field that the guest loads is in KVM_GET_FPU and in the XSAVE area: FCW FSW FTW FOP FIP FDP ST0-7 XMM0-15.

    The pointers are 0 where the CPU does not keep them.

    Source: arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_get_fpu; arch/x86/kernel/fpu/xstate.c, __copy_xstate_to_uabi_buf.
    """
    guest = fxsave_guest(context)
    for seed in (34, 35):
        image = Legacy.random(seed, pointers=keeps_pointers())
        load(context, guest, image)
        area = get_xsave(guest.vcpu)
        agrees("after the guest loaded it", guest, image, area)
        equal("MXCSR in the XSAVE area", area.mxcsr, image.mxcsr)


@clause("fpu.set-shows-in-xsave", arch="x86", needs=AREA)
def set_shows(context: Context) -> None:
    """KVM_SET_FPU of a vCPU that has run shows in the XSAVE area, and KVM_SET_XSAVE shows in KVM_GET_FPU.

    Source: arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_set_fpu, kvm_vcpu_ioctl_x86_set_xsave (one fpstate).
    """
    guest = fxsave_guest(context)
    load(context, guest, Legacy.random(36))
    image = Legacy.random(37, pointers=keeps_pointers())
    succeeds("KVM_SET_FPU", set_fpu, guest.vcpu, image.fpu())
    agrees("after KVM_SET_FPU", guest, image, get_xsave(guest.vcpu))
    image = Legacy.random(38, pointers=keeps_pointers())
    succeeds("KVM_SET_XSAVE", set_xsave, guest.vcpu, image.area())
    agrees("after KVM_SET_XSAVE", guest, image, get_xsave(guest.vcpu))


@clause("fpu.set-keeps-rest", arch="x86", needs=(AVX, XSAVE2))
def set_keeps_rest(context: Context) -> None:
    """KVM_SET_FPU changes x87 and XMM registers only: MXCSR, YMM, ZMM above 128 bits and opmasks stay the guest's.

    Source: arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_set_fpu.
    """
    guest = vector_guest(context)
    level = vector_level(context)
    image = Image.random(random.Random(39))
    guest.memory.write(guest.payload.symbol("expected"), image.data)
    guest.call(f"fill_{level}", privilege=3, timeout=context.timeout)
    new = Legacy.random(40, ftw=0xFF)
    wanted = get_xsave(guest.vcpu)
    for number in (XFeature.FP, XFeature.SSE):
        wanted.set_component(number, new.area().component(number))
    wanted.mxcsr = image.mxcsr
    succeeds("KVM_SET_FPU", set_fpu, guest.vcpu, new.fpu())
    no_difference("the XSAVE area after KVM_SET_FPU", wanted.same_state(get_xsave(guest.vcpu)))
    image = image.with_legacy(new.area())
    guest.memory.write(guest.payload.symbol("expected"), image.data)
    judged_call(context, guest, f"verify_{level}", privilege=3)
    image.check(guest)


@clause("fpu.ftw-abridged", arch="x86")
def ftw_abridged(context: Context) -> None:
    """kvm_fpu.ftwx is the tag word of FXSAVE, one bit a register, in both directions: whichever registers are in use.

    Source: arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_get_fpu ("ftwx"); arch/x86/include/uapi/asm/kvm.h, struct kvm_fpu.
    """
    guest = fxsave_guest(context)
    for ftw in _FTWS:
        image = Legacy.random(41, ftw=ftw)
        load(context, guest, image)
        equal(f"ftwx with FTW {ftw:#04x} in the guest", get_fpu(guest.vcpu).ftwx, ftw)
        changed = Legacy.random(41, ftw=ftw ^ 0xFF)
        succeeds("KVM_SET_FPU", set_fpu, guest.vcpu, changed.fpu())
        verify(context, guest, changed, f"after ftwx {ftw ^ 0xFF:#04x}")


@clause("fpu.padding", arch="x86")
def padding(context: Context) -> None:
    """KVM_SET_FPU ignores pad1 and pad2; KVM_GET_FPU writes the whole structure, with 0 in them.

    Source: arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_set_fpu; virt/kvm/kvm_main.c, kvm_vcpu_ioctl (kzalloc).
    """
    guest = fxsave_guest(context)
    image = Legacy.random(42)
    load(context, guest, image)
    given = image.fpu()
    given.pad1, given.pad2 = 0xFF, 0xFFFFFFFF
    succeeds("KVM_SET_FPU with padding that is not 0", set_fpu, guest.vcpu, given)
    size = ffi.sizeof("struct kvm_fpu")
    buffer = ffi.new("uint8_t[]", bytes([POISON]) * 2 * size)
    guest.vcpu.ioctl(lib.KVM_GET_FPU, buffer)
    equal("bytes that KVM_GET_FPU writes", lib.vmm_written_length(buffer, 2 * size, POISON), size)
    seen = ffi.cast("struct kvm_fpu *", buffer)
    equal("pad1 and pad2", (seen.pad1, seen.pad2), (0, 0))
    verify(context, guest, image, "after padding that is not 0")


@clause("fpu.mxcsr", arch="x86", info=True)
def mxcsr(context: Context) -> None:
    """kvm_fpu.mxcsr is recorded in both directions: whether it is the guest's MXCSR, and whether the guest gets it.

    The documentation lists the field without a word, and KVM has never used it.

    Source: Documentation/virt/kvm/api.rst, KVM_GET_FPU; arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_get_fpu.
    """
    guest = fxsave_guest(context)
    image = Legacy.random(43)
    load(context, guest, image)
    fpu = get_fpu(guest.vcpu)
    context.note(f"KVM_GET_FPU shows {fpu.mxcsr:#x} while the guest has {image.mxcsr:#x}")
    fpu.mxcsr = 0x1F80
    set_fpu(guest.vcpu, fpu)
    guest.call("verify", privilege=3, timeout=context.timeout)
    seen = guest.memory.read(guest.payload.symbol("observed") + 24, 4)
    context.note(f"after KVM_SET_FPU with 0x1f80 the guest has {int.from_bytes(seen, 'little'):#x}")


@clause("fpu.pointers-kept", arch="x86", needs=(POINTERS, *AREA))
def pointers_kept(context: Context) -> None:
    """With an x87 exception pending FOP, FIP, FDP and FSW come through 50 exits, a copy of the area, and KVM_SET_FPU.

    Source: arch/x86/kernel/fpu/core.c, fpu_swap_kvm_fpstate; Intel SDM volume 1, 8.1.8, 13.8.
    """
    guest = fxsave_guest(context)
    image = Legacy.random(44, pointers=True)
    verify(context, guest, image, "after its exits", "churn", _EXITS)
    saved = get_xsave(guest.vcpu)
    agrees("after its exits", guest, image, saved)
    twin = fxsave_guest(context)
    succeeds("KVM_SET_XSAVE in a new VM", set_xsave, twin.vcpu, saved)
    verify(context, twin, image, "of a new VM")
    image = Legacy.random(45, pointers=True)
    succeeds("KVM_SET_FPU", set_fpu, twin.vcpu, image.fpu())
    verify(context, twin, image, "after KVM_SET_FPU")
