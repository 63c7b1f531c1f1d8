# SPDX-License-Identifier: Apache-2.0
"""KVM_GET_XSAVE and KVM_GET_XSAVE2: what a fresh, a set and a running vCPU's area holds."""

from __future__ import annotations

import random

from vmm._kvm import ffi
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, no_difference, subset, succeeds, true
from vmm.conformance.registry import clause
from vmm.conformance.x86 import shadow
from vmm.conformance.x86.common import (
    AREA,
    GUEST_XSAVE,
    MASKABLE,
    XSAVE2,
    configured,
    judged_call,
    maskable,
    pattern,
    plain_features,
    vector_guest,
    vector_level,
)
from vmm.conformance.x86.image import Image
from vmm.conformance.x86.shadow import SHSTK, XSAVES, stopped_inside
from vmm.kvm.bits import bits
from vmm.x86 import xfeature
from vmm.x86.cpuid import Cpuid
from vmm.x86.msr import get_msr, name
from vmm.x86.msr_names import Msr
from vmm.x86.xsave import INITIAL_FCW, INITIAL_MXCSR, LEGACY_SIZE, POISON, get_xsave, get_xsave_raw, set_xsave

_GUEST = (GUEST_XSAVE, XSAVE2)
# What every MXCSR_MASK has: flags, masks, rounding and FZ. CPUs add DAZ, AMD's misaligned SSE too.
# Source: Intel SDM volume 1, 11.6.6 (the default mask).
_MXCSR_MASK = 0xFFBF


@clause("xsave.fresh-init", arch="x86", needs=AREA)
def fresh_init(context: Context) -> None:
    """A fresh vCPU's area is in its initial state: XSTATE_BV 0, FCW 0x37f, MXCSR 0x1f80, everything else 0.

    Bytes 464 to 471 name what the host supports, so areas of two hosts differ there by right.

    Source: arch/x86/kernel/fpu/core.c, fpstate_init_user; arch/x86/kernel/fpu/xstate.c, __copy_xstate_to_uabi_buf.
    """
    area = get_xsave(configured(context))
    equal("XSTATE_BV", area.xstate_bv, 0)
    equal("XCOMP_BV", area.xcomp_bv, 0)
    equal("FCW", area.fcw, INITIAL_FCW)
    equal("MXCSR", area.mxcsr, INITIAL_MXCSR)
    mask = area.mxcsr_mask
    true("MXCSR_MASK", mask & _MXCSR_MASK == _MXCSR_MASK, mask, f"the bits of {_MXCSR_MASK:#x}")
    supported = context.host.facts.xcomp_supported
    software = int.from_bytes(area.software[:8], "little")
    if supported is not None:
        equal("the software bytes' features", software, supported)
    for start, stop in ((2, 24), (32, 464), (472, len(area.data))):
        equal(f"bytes {start} to {stop - 1}", bytes(area.data[start:stop]).strip(b"\0"), b"")


@clause("xsave.get-writes-all", arch="x86", needs=AREA)
def writes_all(context: Context) -> None:
    """KVM_GET_XSAVE2 writes every byte of the area, gaps included, and none beyond it.

    A stale byte is a leak of kernel memory or of another guest's state.

    Source: arch/x86/kernel/fpu/xstate.c, __copy_xstate_to_uabi_buf (membuf_zero).
    """
    vcpu = configured(context)
    set_xsave(vcpu, pattern(plain_features(context), 1))
    images = []
    for poison in (POISON, POISON ^ 0xFF):
        data = get_xsave_raw(vcpu, 4 * LEGACY_SIZE, poison=poison)
        images.append(bytes(ffi.buffer(data)))
    written = [index for index in range(4 * LEGACY_SIZE) if images[0][index] == images[1][index]]
    equal("bytes written", len(written), LEGACY_SIZE)
    equal("the last byte written", written[-1], LEGACY_SIZE - 1)


@clause("xsave.get-xcomp-zero", arch="x86", needs=_GUEST)
def never_compacted(context: Context) -> None:
    """The area is never compacted: XCOMP_BV and the header's reserved bytes are 0, whatever is in use.

    Source: Documentation/virt/kvm/api.rst 4.134; arch/x86/kernel/fpu/xstate.c, __copy_xstate_to_uabi_buf.
    """
    vcpu = configured(context)
    set_xsave(vcpu, pattern(plain_features(context), 2))
    area = get_xsave(vcpu)
    equal("XSTATE_BV", area.xstate_bv & plain_features(context), plain_features(context))
    equal("XCOMP_BV", area.xcomp_bv, 0)
    equal("reserved header bytes", area.reserved.strip(b"\0"), b"")


@clause("xsave.get-masks-guest-cpuid", arch="x86", needs=(MASKABLE, XSAVE2))
def masked_by_guest_cpuid(context: Context) -> None:
    """The area shows no component that the guest's CPUID lacks: neither its bit nor its bytes.

    Before 6.6 a stream from a host with more components could not be restored on one with fewer.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_get_xsave2; commit 8647c52e9504.
    """
    full, less = maskable(context)
    vcpu = configured(context, context.host.facts.cpuid.with_xcr0(less))
    set_xsave(vcpu, pattern(full, 3))
    area = get_xsave(vcpu)
    subset("XSTATE_BV", area.xstate_bv, less | 3)
    for number in bits(full & ~less):
        equal(f"bytes of {xfeature.name(number)}", area.component(number).strip(b"\0"), b"")


@clause("xsave.get-fpsse-without-cpuid", arch="x86", needs=AREA)
def legacy_state_without_cpuid(context: Context) -> None:
    """x87 and SSE state goes through the area even if the guest's CPUID has no XSAVE at all.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_get_xsave2 (XFEATURE_MASK_FPSSE).
    """
    vcpu = configured(context, Cpuid())
    area = pattern(3, 4)
    succeeds("KVM_SET_XSAVE of x87 and SSE state", set_xsave, vcpu, area)
    seen = get_xsave(vcpu)
    equal("XSTATE_BV", seen.xstate_bv, 3)
    equal("x87", seen.component(0), area.component(0))
    equal("XMM registers", seen.component(1)[8:], area.component(1)[8:])
    equal("MXCSR", seen.mxcsr, area.mxcsr)


@clause("xsave.get-pure", arch="x86", needs=AREA)
def get_is_pure(context: Context) -> None:
    """Reading the area changes nothing: two reads agree, and so do a write of what was read and a third.

    Source: arch/x86/kernel/fpu/core.c, fpu_copy_guest_fpstate_to_uabi.
    """
    vcpu = configured(context)
    set_xsave(vcpu, pattern(plain_features(context), 5))
    first, second = get_xsave(vcpu), get_xsave(vcpu)
    equal("two reads, software bytes included", bytes(first.data) == bytes(second.data), True)
    succeeds("writing what was read", set_xsave, vcpu, second)
    no_difference("reading what was written back", first.compare(get_xsave(vcpu)))


@clause("xsave.live-after-run", arch="x86", needs=_GUEST)
def live_after_run(context: Context) -> None:
    """What the guest loads into its registers is what the area holds after the exit, component by component.

    Source: arch/x86/kvm/x86.c, kvm_put_guest_fpu; Intel SDM volume 1, 13.5.
    """
    guest = vector_guest(context)
    level = vector_level(context)
    image = Image.random(random.Random(6))
    guest.memory.write(guest.payload.symbol("expected"), image.data)
    guest.call(f"fill_{level}", privilege=3, timeout=context.timeout)
    image.check_area("after the exit", get_xsave(guest.vcpu), level)


@clause("xsave.init-optimisation", arch="x86", needs=_GUEST)
def init_optimisation(context: Context) -> None:
    """When the guest has put a component back into its initial state its bytes read as 0, whatever its bit says.

    Source: arch/x86/kernel/fpu/xstate.c, __copy_xstate_to_uabi_buf (init_fpstate for absent components).
    """
    guest = vector_guest(context)
    level = vector_level(context)
    image = Image.random(random.Random(7))
    guest.memory.write(guest.payload.symbol("expected"), image.data)
    guest.call(f"fill_{level}", privilege=3, timeout=context.timeout)
    guest.call(f"init_{level}", privilege=3, timeout=context.timeout)
    area = get_xsave(guest.vcpu)
    for number in image.features(level):
        data = area.component(number)
        # FNINIT leaves the stack registers' contents, and the legacy components hold control words.
        shown = data[8:] if number == 1 else b"" if number == 0 else data
        equal(f"bytes of {xfeature.name(number)}", shown.strip(b"\0"), b"")
    equal("FCW", area.fcw, INITIAL_FCW)
    equal("MXCSR", area.mxcsr, INITIAL_MXCSR)
    subset("XSTATE_BV", area.xstate_bv, context.host.facts.cpuid.xcr0)


@clause("xsave.survives-exits", arch="x86", needs=_GUEST, timeout=60)
def survives_exits(context: Context) -> None:
    """A guest's registers survive 500 exits: the guest itself finds every byte as it left it.

    Source: arch/x86/kvm/x86.c, kvm_load_guest_fpu, kvm_put_guest_fpu.
    """
    guest = vector_guest(context)
    image = Image.random(random.Random(8))
    guest.memory.write(guest.payload.symbol("expected"), image.data)
    before = guest.vcpu.entries
    judged_call(context, guest, f"churn_{vector_level(context)}", 500, privilege=3, patience=4)
    true("entries of the guest", guest.vcpu.entries - before >= 500, guest.vcpu.entries - before, "500 or more")
    image.check(guest)


@clause("xsave.legacy-get-agrees", arch="x86", needs=AREA)
def legacy_get_agrees(context: Context) -> None:
    """KVM_GET_XSAVE and KVM_GET_XSAVE2 return the same bytes for an area of 4096.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_get_xsave.
    """
    vcpu = configured(context)
    set_xsave(vcpu, pattern(plain_features(context), 9))
    raw = [get_xsave_raw(vcpu, LEGACY_SIZE, legacy=legacy) for legacy in (False, True)]
    equal("the two calls", bytes(ffi.buffer(raw[0])) == bytes(ffi.buffer(raw[1])), True)


@clause("xsave.no-supervisor", arch="x86", needs=(SHSTK, XSAVES))
def area_has_no_supervisor_state(context: Context) -> None:
    """The XSAVE area never shows CET components, however live: neither bits nor bytes nor a larger size.

    CET state travels in MSRs and KVM_REG_GUEST_SSP.

    Source: arch/x86/kernel/fpu/xstate.c, __copy_xstate_to_uabi_buf (user_xfeatures); Linux 6.18.
    """
    guest = stopped_inside(context)
    area = get_xsave(guest.vcpu)
    equal("CET components in XSTATE_BV", area.xstate_bv & shadow.CET, 0)
    size = context.host.facts.capabilities["KVM_CAP_XSAVE2"] or LEGACY_SIZE
    equal("bytes of the area", len(area.data), size)
    for msr in (Msr.PL3_SSP, Msr.PL0_SSP):
        pointer = get_msr(guest.vcpu, msr)
        true(name(msr), pointer != 0, pointer, "in use")
        equal(f"place of {name(msr)} in the area", area.data.find(pointer.to_bytes(8, "little")), -1)
