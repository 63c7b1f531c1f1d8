# SPDX-License-Identifier: Apache-2.0
"""KVM_SET_CPUID2: what is refused, what is kept, and which bits KVM keeps up to date by itself."""

from __future__ import annotations

import errno
from dataclasses import replace

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, no_difference, refused, succeeds
from vmm.conformance.registry import clause
from vmm.conformance.x86 import shadow
from vmm.conformance.x86.common import (
    AVX,
    GUEST_XSAVE,
    HOST_XFD,
    MASKABLE,
    TILE_GUESTS,
    XCOMP_GUEST,
    XSAVE2,
    configured,
    judged_call,
    maskable,
    pattern,
    permit_tiles,
    permitted_size,
    plain_features,
    tile_table,
    untiled_features,
)
from vmm.conformance.x86.shadow import SHSTK, XSAVES, shadow_guest
from vmm.kvm.ioctl import KvmError
from vmm.x86 import cpuid, xfeature
from vmm.x86.boot import CR4_OSXSAVE
from vmm.x86.cpuid import Cpuid, Entry, get_cpuid, set_cpuid
from vmm.x86.guest import Guest
from vmm.x86.msr_names import Msr
from vmm.x86.registers import set_cr4_bits, set_xcr0
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import LEGACY_SIZE, Layout, XsaveArea, get_xsave, largest_size, set_xsave

_TILES = (HOST_XFD, XCOMP_GUEST)


@clause("setcpuid.perm-eperm", arch="x86", needs=_TILES)
def needs_permission(context: Context) -> None:
    """Tile data in CPUID 0xD.0 without guest permission fails with EPERM.

    Source: arch/x86/kvm/cpuid.c, kvm_check_cpuid; arch/x86/kernel/fpu/core.c, fpu_enable_guest_xfd_features.
    """
    vcpu = context.vcpu()
    refused("KVM_SET_CPUID2 with XTILEDATA", errno.EPERM, set_cpuid, vcpu, tile_table(context))


@clause("setcpuid.only-0xd0-matters", arch="x86", needs=_TILES)
def only_leaf_d_matters(context: Context) -> None:
    """Without permission AMX_TILE, XFD or XTILECFG in CPUID are accepted: only 0xD.0's tile data is refused.

    Source: arch/x86/kvm/cpuid.c, kvm_check_cpuid (XFEATURE_MASK_USER_DYNAMIC).
    """
    table = context.host.facts.cpuid
    leaf7 = table.get(7)
    variants = {
        "AMX_TILE": table.edit(7, 0, edx=leaf7.edx | 1 << 24),
        "XFD": table.edit(0xD, 1, eax=table.get(0xD, 1).eax | 1 << 4),
        "XTILECFG alone": table.with_xcr0(table.xcr0 | 1 << XFeature.XTILECFG),
    }
    for name, variant in variants.items():
        vcpu = context.vcpu()
        succeeds(f"KVM_SET_CPUID2 with {name}", set_cpuid, vcpu, variant)


@clause("setcpuid.failure-keeps-old", arch="x86", info=True)
def failure_keeps_old(context: Context) -> None:
    """Whether a refused KVM_SET_CPUID2 leaves the previous table in place.

    The documentation promises nothing after a failure.

    Source: arch/x86/kvm/cpuid.c, kvm_set_cpuid (the error path swaps back); Documentation/virt/kvm/api.rst 4.20.
    """
    vcpu = configured(context)
    before = get_cpuid(vcpu)
    bad = before.edit(0x80000008, 0, eax=52 << 8 | 46).edit(1, 0, eax=0)
    refused("52-bit virtual addresses", errno.EINVAL, set_cpuid, vcpu, bad)
    equal("differences after the refusal", before.compare(get_cpuid(vcpu)), [])
    equal("the same table, in the same order", get_cpuid(vcpu) == before, True)


@clause("setcpuid.expands-buffer", arch="x86", needs=(*_TILES, XSAVE2))
def expands_buffer(context: Context) -> None:
    """Tile data in CPUID 0xD.0 enlarges the vCPU's XSAVE area to the size of all that is permitted.

    Source: arch/x86/kernel/fpu/xstate.c, fpstate_realloc (fpstate->user_size, gfpu->uabi_size).
    """
    permit_tiles(context)
    vcpu = configured(context, tile_table(context))
    equal("bytes KVM_GET_XSAVE2 writes", len(get_xsave(vcpu).data), permitted_size())


@clause("setcpuid.buffer-sticky", arch="x86", needs=TILE_GUESTS)
def buffer_sticky(context: Context) -> None:
    """A later table without tile data does not shrink the area again, and hides the tile components.

    Source: arch/x86/kernel/fpu/xstate.c, fpstate_realloc (nothing shrinks); arch/x86/kvm/x86.c,
    kvm_vcpu_ioctl_x86_get_xsave2 (masked by the guest's CPUID).
    """
    permit_tiles(context)
    table = tile_table(context)
    vcpu = configured(context, table)
    filled = XsaveArea.initial(largest_size())
    filled.set_component(XFeature.XTILECFG, bytes([1]) + bytes(63))
    filled.set_component(XFeature.XTILEDATA, bytes([0x5A]) * 8192)
    set_xsave(vcpu, filled)
    large = len(get_xsave(vcpu).data)
    narrower = table.with_xcr0(table.xcr0 & ~xfeature.XTILE)
    succeeds("a later table without tile data", set_cpuid, vcpu, narrower)
    area = get_xsave(vcpu)
    equal("bytes KVM_GET_XSAVE2 writes", len(area.data), large)
    equal("tile components in XSTATE_BV", area.xstate_bv & xfeature.XTILE, 0)
    for number in (XFeature.XTILECFG, XFeature.XTILEDATA):
        equal(f"bytes of {number.name}", area.component(number).strip(b"\0"), b"")
    refused("KVM_GET_XSAVE", errno.EINVAL, get_xsave, vcpu, legacy=True)


@clause("setcpuid.buffer-not-expanded-without-tile", arch="x86", needs=(*_TILES, XSAVE2))
def buffer_not_expanded(context: Context) -> None:
    """With permission but without tile data in CPUID the area stays 4096 bytes, however large KVM_CAP_XSAVE2 is.

    The documentation says that KVM_GET_XSAVE2 copies as many bytes as the capability tells.

    Source: arch/x86/kernel/fpu/core.c, fpu_alloc_guest_fpstate (uabi_size); Documentation/virt/kvm/api.rst 4.134.
    """
    permit_tiles(context)
    vcpu = configured(context, context.host.facts.cpuid)
    equal("bytes KVM_GET_XSAVE2 writes", len(get_xsave(vcpu).data), LEGACY_SIZE)
    succeeds("KVM_GET_XSAVE", get_xsave, vcpu, legacy=True)


@clause("setcpuid.after-run", arch="x86")
def after_run(context: Context) -> None:
    """After KVM_RUN an identical table is accepted, and one with another value, order or length refused.

    Source: arch/x86/kvm/cpuid.c, kvm_set_cpuid, kvm_cpuid_check_equal.
    """
    guest = context.own(Guest(context.kvm, "hello"))
    guest.call("ticks", 1, timeout=context.timeout)
    table = get_cpuid(guest.vcpu)
    succeeds("the identical table", set_cpuid, guest.vcpu, table)
    changes = {
        "another 0xD.0 EAX": table.edit(0xD, 0, eax=table.get(0xD).eax ^ 4),
        "another order": Cpuid((*table.entries[1:], table.entries[0])),
        "one entry less": Cpuid(table.entries[:-1]),
        "one entry more": Cpuid((*table.entries, Entry(0x8FFFFFFF))),
    }
    for name, changed in changes.items():
        refused(name, errno.EINVAL, set_cpuid, guest.vcpu, changed)
    equal("the table after the refusals", get_cpuid(guest.vcpu) == table, True)


@clause("setcpuid.e2big", arch="x86")
def too_many_entries(context: Context) -> None:
    """Tables of 0 and of 256 entries are kept whole; one of 257 is refused with E2BIG, or kept whole as well.

    256 is the limit of Linux 5.11 to 7.2; no header has it, so a later kernel may take more, but not a part.

    Source: arch/x86/kvm/cpuid.c, kvm_vcpu_ioctl_set_cpuid2 (KVM_MAX_CPUID_ENTRIES).
    """
    vcpu = context.vcpu()
    filler = [Entry(0x8F000000 + number) for number in range(cpuid.MAX_ENTRIES + 1)]
    try:
        set_cpuid(vcpu, Cpuid(filler))
    except KvmError as error:
        equal("errno of 257 entries", error.errno_name, "E2BIG")
    else:
        equal("entries of an accepted table of 257", len(get_cpuid(vcpu, len(filler) + 1)), len(filler))
        context.note("257 entries are accepted")
    succeeds("256 entries", set_cpuid, vcpu, Cpuid(filler[:-1]))
    equal("entries of a table of 256", len(get_cpuid(vcpu)), cpuid.MAX_ENTRIES)
    succeeds("an empty table", set_cpuid, vcpu, Cpuid())
    equal("entries of the empty table", len(get_cpuid(vcpu)), 0)


@clause("setcpuid.vaddr-bits", arch="x86")
def virtual_address_bits(context: Context) -> None:
    """CPUID 0x80000008 may say 48, 57 or 0 virtual address bits; anything else is EINVAL.

    Source: arch/x86/kvm/cpuid.c, kvm_check_cpuid.
    """
    table = context.host.facts.cpuid
    vcpu = context.vcpu()
    physical = table.get(0x80000008).eax & 0xFF
    for width in (48, 57, 0):
        changed = table.edit(0x80000008, 0, eax=width << 8 | physical)
        succeeds(f"{width} bits", set_cpuid, vcpu, changed)
        equal(f"bits after {width}", get_cpuid(vcpu).get(0x80000008).eax >> 8 & 0xFF, width)
    for width in (1, 47, 49, 52, 64, 255):
        changed = table.edit(0x80000008, 0, eax=width << 8 | physical)
        refused(f"{width} bits", errno.EINVAL, set_cpuid, vcpu, changed)


@clause("setcpuid.dup-entry-first-wins", arch="x86", needs=(MASKABLE,))
def first_duplicate_wins(context: Context) -> None:
    """Of two entries for leaf 0xD.0 the first one decides which XCR0 is allowed.

    Source: arch/x86/kvm/cpuid.c, kvm_find_cpuid_entry2.
    """
    full, less = maskable(context)
    table = context.host.facts.cpuid.with_xcr0(less)
    first = table.get(0xD)
    duplicated = []
    for entry in table:
        duplicated.append(entry)
        if entry is first:
            duplicated.append(replace(entry, eax=full))
    vcpu = context.vcpu()
    try:
        set_cpuid(vcpu, Cpuid(duplicated))
    except KvmError as error:
        context.skip(f"this KVM takes no table with two entries for 0xD.0: {error.errno_name}")
    succeeds("XCR0 of the first entry", set_xcr0, vcpu, less)
    refused("XCR0 of the second entry", errno.EINVAL, set_xcr0, vcpu, full)


def _valid_values(features: int) -> list[int]:
    values = [1, 3]
    if features & 1 << XFeature.YMM:
        values.append(7)
    if features & xfeature.AVX512 == xfeature.AVX512:
        values.append(7 | xfeature.AVX512)
    return values


@clause("setcpuid.runtime-size-0xd0", arch="x86", needs=(AVX,))
def runtime_size(context: Context) -> None:
    """CPUID 0xD.0 EBX follows XCR0 at once, for the host after KVM_SET_XCRS and for the guest after XSETBV.

    ECX, the size for all that XCR0 could enable, stays as it was set. Without AVX every XCR0 has the same size.

    Source: arch/x86/kvm/cpuid.c, kvm_update_cpuid_runtime (lazy since 6.15 or so: cpuid_dynamic_bits_dirty).
    """
    table = context.host.facts.cpuid
    layout = Layout.from_cpuid(table)
    guest = context.own(Guest(context.kvm, "hello", cpuid=table, cr4=CR4_OSXSAVE))
    for value in _valid_values(plain_features(context)):
        size = layout.size(value)
        set_xcr0(guest.vcpu, value)
        entry = get_cpuid(guest.vcpu).get(0xD)
        equal(f"0xD.0 EBX for the host, XCR0 {value:#x}", entry.ebx, size)
        equal(f"0xD.0 ECX for the host, XCR0 {value:#x}", entry.ecx, table.get(0xD).ecx)
        set_xcr0(guest.vcpu, 1)
        judged_call(context, guest, "xsetbv", 0, value)
        equal(f"faults of XSETBV {value:#x}", guest.mailbox.read("values", 15), 0)
        judged_call(context, guest, "cpuid", 0xD, 0)
        seen = guest.mailbox.values
        equal(f"0xD.0 EBX in the guest, XCR0 {value:#x}", seen[1], size)
        equal(f"0xD.0 ECX in the guest, XCR0 {value:#x}", seen[2], table.get(0xD).ecx)


@clause("setcpuid.osxsave-ospke-mirror", arch="x86", needs=(GUEST_XSAVE,))
def osxsave_mirror(context: Context) -> None:
    """CPUID 1.ECX[27] mirrors CR4.OSXSAVE whatever userspace wrote there, for the host and in the guest.

    Source: arch/x86/kvm/cpuid.c, kvm_update_cpuid_runtime.
    """
    table = context.host.facts.cpuid
    table = table.edit(1, 0, ecx=table.get(1).ecx | 1 << 26)
    for enabled in (False, True):
        # Say the opposite in the table: it must not matter.
        ecx = table.get(1).ecx & ~(1 << 27) | (not enabled) << 27
        guest = context.own(Guest(context.kvm, "hello", cpuid=table.edit(1, 0, ecx=ecx), cr4=CR4_OSXSAVE * enabled))
        set_cr4_bits(guest.vcpu, CR4_OSXSAVE, on=enabled)
        seen = get_cpuid(guest.vcpu).get(1).ecx >> 27 & 1
        equal(f"OSXSAVE for the host, CR4.OSXSAVE={int(enabled)}", seen, int(enabled))
        judged_call(context, guest, "cpuid", 1, 0)
        equal(
            f"OSXSAVE in the guest, CR4.OSXSAVE={int(enabled)}",
            guest.mailbox.values[2] >> 27 & 1,
            int(enabled),
        )


@clause("setcpuid.mask-honoured", arch="x86", needs=(MASKABLE,))
def mask_honoured(context: Context) -> None:
    """KVM_GET_CPUID2 returns 0xD.0 EAX as it was set, and XCR0 cannot go beyond it.

    Hiding components is how a migration pool of different CPUs is made.

    Source: arch/x86/kvm/cpuid.c, kvm_update_cpuid_runtime (only EBX is KVM's); arch/x86/kvm/x86.c, __kvm_set_xcr.
    """
    full, less = maskable(context)
    vcpu = configured(context, context.host.facts.cpuid.with_xcr0(less))
    equal("0xD.0 EAX", get_cpuid(vcpu).get(0xD).eax, less)
    succeeds(f"XCR0 {less:#x}", set_xcr0, vcpu, less)
    refused(f"XCR0 {full:#x}", errno.EINVAL, set_xcr0, vcpu, full)


@clause("setcpuid.keeps-xsave", arch="x86", needs=(MASKABLE, XSAVE2))
def keeps_xsave(context: Context) -> None:
    """KVM_SET_CPUID2 does not disturb the vCPU's XSAVE state: setting the full table again shows all of it.

    Source: arch/x86/kvm/cpuid.c, kvm_vcpu_after_set_cpuid; commit 8647c52e9504 (6.6).
    """
    full, less = maskable(context)
    table = context.host.facts.cpuid
    vcpu = configured(context, table)
    area = pattern(full, 41)
    set_xsave(vcpu, area)
    set_cpuid(vcpu, table.with_xcr0(less))
    set_cpuid(vcpu, table)
    no_difference("the state after two tables", area.same_state(get_xsave(vcpu)))


@clause("setcpuid.runtime-size-0xd1", arch="x86", needs=(XSAVES, SHSTK))
def compacted_size_follows(context: Context) -> None:
    """CPUID 0xD.1 EBX follows XCR0 and IA32_XSS: 16 bytes more with CET_U, 24 with CET_S, aligned as CPUID says.

    Source: arch/x86/kvm/cpuid.c, kvm_update_cpuid_runtime; Linux 6.18.
    """
    guest = shadow_guest(context, user=0)
    layout = Layout.from_cpuid(context.host.facts.cpuid)
    for xcr0 in (untiled_features(context), 3):
        set_xcr0(guest.vcpu, xcr0)
        for xss in (0, 1 << XFeature.CET_U, shadow.CET, 0):
            shadow.call(context, guest, "wrmsr", Msr.XSS, xss)
            equal(f"faults of WRMSR IA32_XSS {xss:#x}", guest.mailbox.read("values", 15), 0)
            wanted = layout.compacted_size(xcr0 | xss)
            where = f"with XCR0 {xcr0:#x}, IA32_XSS {xss:#x}"
            equal(f"0xD.1 EBX for the host {where}", get_cpuid(guest.vcpu).get(0xD, 1).ebx, wanted)
            shadow.call(context, guest, "cpuid", 0xD, 1)
            equal(f"0xD.1 EBX in the guest {where}", guest.mailbox.values[1], wanted)
    equal("bytes of CET_U", layout[XFeature.CET_U].size, 16)
    equal("bytes of CET_S", layout[XFeature.CET_S].size, 24)
