# SPDX-License-Identifier: Apache-2.0
"""PKRU and guests without protection keys: theirs is in no stream, and streams that have one do no harm."""

from __future__ import annotations

import errno
import random

from vmm._kvm import lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, no_difference, refused, succeeds, true
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import (
    GUEST_PKRU,
    GUEST_XSAVE,
    XSAVE2,
    judged_call,
    offers,
    untiled_features,
    vector_guest,
    vector_level,
)
from vmm.conformance.x86.image import Image
from vmm.x86.boot import CR4_OSXSAVE, CR4_PKE
from vmm.x86.cpuid import Cpuid
from vmm.x86.guest import EXCEPTION, Guest
from vmm.x86.registers import set_xcr0
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import XsaveArea, get_xsave, set_xsave

_PKRU = int(XFeature.PKRU)
_BIT = 1 << _PKRU
_VALUE = 0x5A5A5A50
_NEEDS = (GUEST_XSAVE, XSAVE2, GUEST_PKRU)


def _without(table: Cpuid) -> Cpuid:
    """The table without PKU (CPUID 7.ECX[3]) and without PKRU in leaf 0xD."""
    leaf = table.get(7)
    return table.with_xcr0(table.xcr0 & ~_BIT).edit(7, 0, ecx=leaf.ecx & ~(1 << 3))


def _plain_guest(context: Context, image: Image) -> Guest:
    """A guest without protection keys whose vector registers are an image's."""
    guest = vector_guest(context, table=_without(context.host.facts.cpuid))
    guest.memory.write(guest.payload.symbol("expected"), image.data)
    judged_call(context, guest, f"fill_{vector_level(context)}", privilege=3)
    return guest


def _hidden(what: str, area: XsaveArea) -> None:
    equal(f"XSTATE_BV[9] {what}", area.xstate_bv >> _PKRU & 1, 0)
    equal(f"PKRU's bytes {what}", bytes(area.component(_PKRU)).strip(b"\0"), b"")


@clause("pku.hidden-from-stream", arch="x86", needs=_NEEDS)
def hidden(context: Context) -> None:
    """The area of a guest that is offered no PKRU has neither its bit nor a byte of it, before and after runs.

    Also while the VMM's own PKRU is another. Kernels before 5.17 had the bit there, and such a guest could not move
    to a host without protection keys.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_get_xsave2; commits ad856280ddea, 8647c52e9504.
    """
    guest = vector_guest(context, table=_without(context.host.facts.cpuid))
    _hidden("of a fresh vCPU", get_xsave(guest.vcpu))
    guest.memory.write(guest.payload.symbol("expected"), Image.random(random.Random(81)).data)
    ours = lib.vmm_rdpkru()
    try:
        lib.vmm_wrpkru(ours ^ 0x30000000)
        judged_call(context, guest, f"churn_{vector_level(context)}", 3, privilege=3)
        lib.vmm_wrpkru(ours ^ 0x30000000)
        _hidden("after a run", get_xsave(guest.vcpu))
    finally:
        lib.vmm_wrpkru(ours)


@clause("pku.absent-from-guest", arch="x86", needs=_NEEDS)
def absent(context: Context) -> None:
    """A guest whose CPUID has no PKU cannot have XCR0[9], and RDPKRU is #UD there.

    Source: arch/x86/kvm/x86.c, __kvm_set_xcr; Intel SDM volume 2, RDPKRU (CR4.PKE, for which see cr4.*).
    """
    table = _without(context.host.facts.cpuid)
    guest = context.own(Guest(context.kvm, "pku", cpuid=table, cr4=CR4_OSXSAVE))
    refused("XCR0 with PKRU", errno.EINVAL, set_xcr0, guest.vcpu, 3 | _BIT)
    guest.prepare("rdpkru", privilege=3)
    exit = guest.resume(context.timeout)
    true("the exit of a guest that reads PKRU", guest.event(exit) == EXCEPTION, exit, "that of its exception handler")
    equal("the exception it took", guest.fault().name, "#UD")


@clause("pku.stream-without-pku-restores", arch="x86", needs=_NEEDS)
def restores(context: Context) -> None:
    """A guest without PKU takes its own stream, and one with PKRU in it: its registers are there, and PKRU is not.

    The second one is what kernels before 5.17 saved of a guest like this one, and what those up to 6.5 refused.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_set_xsave (the host's components, not the guest's);
    arch/x86/kernel/fpu/xstate.c, copy_uabi_to_xstate.
    """
    image = Image.random(random.Random(82))
    guest = _plain_guest(context, image)
    own = get_xsave(guest.vcpu)
    with_pkru = XsaveArea(bytes(own.data))
    size = with_pkru.layout[_PKRU].size
    with_pkru.set_component(_PKRU, _VALUE.to_bytes(4, "little") + bytes(size - 4))
    equal("PKRU in the stream that is made", with_pkru.xstate_bv >> _PKRU & 1, 1)
    ours = lib.vmm_rdpkru()
    for what, stream in (("its own stream", own), ("a stream with PKRU", with_pkru)):
        twin = vector_guest(context, table=guest.cpuid)
        twin.memory.write(twin.payload.symbol("expected"), image.data)
        succeeds(f"KVM_SET_XSAVE of {what}", set_xsave, twin.vcpu, stream)
        seen = get_xsave(twin.vcpu)
        _hidden(f"after {what}", seen)
        no_difference(f"the area after {what}", own.same_state(seen))
        judged_call(context, twin, f"verify_{vector_level(context)}", privilege=3)
        image.check(twin)
        equal(f"PKRU of the VMM thread after {what} ran", lib.vmm_rdpkru(), ours)


@clause("pku.stream-of-another-guest", arch="x86", needs=(*_NEEDS, offers("PKU")))
def other_guest(context: Context) -> None:
    """The stream of a guest without PKU restores into one with it, which finds its own PKRU; then the host does too.

    Before that guest has run, the area may say that PKRU is in its initial state: nothing promises more.

    Source: arch/x86/kernel/fpu/core.c, fpu_copy_uabi_to_guest_fpstate (PKRU is left alone).
    """
    own = get_xsave(_plain_guest(context, Image.random(random.Random(83))).vcpu)
    table = context.host.facts.cpuid
    guest = context.own(Guest(context.kvm, "pku", cpuid=table, cr4=CR4_OSXSAVE | CR4_PKE))
    set_xcr0(guest.vcpu, untiled_features(context))
    area = get_xsave(guest.vcpu)
    area.set_component(_PKRU, _VALUE.to_bytes(4, "little") + bytes(area.layout[_PKRU].size - 4))
    set_xsave(guest.vcpu, area)
    succeeds("KVM_SET_XSAVE of the other guest's stream", set_xsave, guest.vcpu, own)
    context.note(f"PKRU in the area before the guest runs: {_pkru(get_xsave(guest.vcpu)):#x}")
    judged_call(context, guest, "rdpkru", privilege=3)
    equal("RDPKRU in the guest", guest.mailbox.values[0], _VALUE)
    equal("PKRU in the area after the guest ran", _pkru(get_xsave(guest.vcpu)), _VALUE)


def _pkru(area: XsaveArea) -> int:
    return int.from_bytes(area.component(_PKRU)[:4], "little")
