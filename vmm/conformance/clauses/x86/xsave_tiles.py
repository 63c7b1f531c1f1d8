# SPDX-License-Identifier: Apache-2.0
"""Tile data in the area: what it needs to be taken, and when it is not shown."""

from __future__ import annotations

import errno

from vmm._kvm import lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, succeeds
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import (
    TILE_GUESTS,
    TILEDATA,
    configured,
    guest_supported,
    judged_call,
    permit_tiles,
    permitted_size,
    tile_table,
)
from vmm.conformance.x86.tiles import TileImage, tile_guest
from vmm.x86 import xfeature
from vmm.x86.cpuid import set_cpuid
from vmm.x86.msr import set_msr
from vmm.x86.msr_names import Msr
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import XsaveArea, get_xsave, largest_size, set_xsave

_TILES = TILE_GUESTS
_XTILE = xfeature.XTILE
_ARMED = 1 << TILEDATA
_SAMPLES = 50


@clause("xsave.set-tile-needs-cpuid-first", arch="x86", needs=_TILES)
def tiles_need_cpuid(context: Context) -> None:
    """An area with tile data is EINVAL before KVM_SET_CPUID2 has offered it and accepted afterwards.

    TILECFG alone always is. So a restore has one forced order: permission, vCPU, CPUID, XSAVE.

    Source: arch/x86/kernel/fpu/xstate.c, fpstate_realloc, validate_user_xstate_header.
    """
    permit_tiles(context)
    vcpu = context.vcpu()
    area = XsaveArea.initial(largest_size())
    TileImage.random(1).put(area)
    refused("tile data before CPUID", errno.EINVAL, set_xsave, vcpu, area)
    config = area.copy()
    config.xstate_bv = 1 << XFeature.XTILECFG
    succeeds("TILECFG alone before CPUID", set_xsave, vcpu, config)
    succeeds("KVM_SET_CPUID2 with tile data", set_cpuid, vcpu, tile_table(context))
    succeeds("tile data after CPUID", set_xsave, vcpu, area)
    TileImage.random(1).check_area(get_xsave(vcpu))


@clause("xsave.set-without-perm-einval", arch="x86", needs=_TILES)
def tiles_need_permission(context: Context) -> None:
    """Without the permission an area with tile data is EINVAL, never taken without the tiles.

    Source: arch/x86/kernel/fpu/xstate.c, validate_user_xstate_header.
    """
    vcpu = configured(context)
    area = XsaveArea.initial(largest_size())
    TileImage.random(2).put(area)
    refused("tile data without permission", errno.EINVAL, set_xsave, vcpu, area)
    equal("XSTATE_BV after the refusal", get_xsave(vcpu).xstate_bv & _XTILE, 0)


@clause("xsave.xfd-hides-tiledata", arch="x86", needs=_TILES)
def armed_hides_tiles(context: Context) -> None:
    """While the guest has XFD armed the area shows no tile data: neither the bit nor a byte.

    The state may be lost then, as XSAVE itself would lose it.

    Source: arch/x86/kernel/fpu/core.c, fpu_update_guest_xfd (the comment on XSTATE_BV[i]=0).
    """
    guest = tile_guest(context)
    TileImage.random(3).load(guest)
    guest.call("load", timeout=context.timeout)
    equal("XSTATE_BV[18] before", get_xsave(guest.vcpu).xstate_bv >> TILEDATA & 1, 1)
    judged_call(context, guest, "wrmsr", Msr.XFD, _ARMED)
    area = get_xsave(guest.vcpu)
    equal("XSTATE_BV[18] with XFD armed", area.xstate_bv >> TILEDATA & 1, 0)
    equal("tile bytes with XFD armed", area.component(TILEDATA).strip(b"\0"), b"")
    equal("TILECFG with XFD armed", area.component(XFeature.XTILECFG), TileImage.random(3).config.data)


@clause("xsave.set-xfd-filter", arch="x86", needs=_TILES)
def armed_filters_tiles(context: Context) -> None:
    """With XFD armed KVM_SET_XSAVE takes an area with tile data and leaves the tile data out.

    Checked by reading back. Linux 6.19; stable kernels took it too: 6.12.67, 6.6.122, 6.1.162.

    Source: arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_set_xsave; commit b45f72177594; Linux 6.19.
    """
    permit_tiles(context)
    vcpu = configured(context, tile_table(context))
    equal("IA32_XFD accepted", set_msr(vcpu, Msr.XFD, _ARMED), True)
    area = XsaveArea.initial(largest_size())
    TileImage.random(4).put(area)
    try:
        succeeds("KVM_SET_XSAVE with tile data", set_xsave, vcpu, area)
        seen = get_xsave(vcpu)
        equal("XSTATE_BV[18]", seen.xstate_bv >> TILEDATA & 1, 0)
        equal("tile bytes", seen.component(TILEDATA).strip(b"\0"), b"")
        equal("XSTATE_BV[17]", seen.xstate_bv >> XFeature.XTILECFG & 1, 1)
    finally:
        set_xsave(vcpu, XsaveArea.initial(largest_size()))


@clause("xsave.xfd-after-xsave", arch="x86", needs=_TILES, info=True)
def armed_after_set(context: Context) -> None:
    """How often XSTATE_BV[18] is read as 1 when IA32_XFD is armed after, and before, KVM_SET_XSAVE.

    A restore has to write IA32_XFD before KVM_SET_XSAVE. Recorded by reading back only.

    Source: arch/x86/kernel/fpu/core.c, fpu_update_guest_xfd; arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_set_xsave.
    """
    permit_tiles(context)
    table = tile_table(context)
    area = XsaveArea.initial(largest_size())
    TileImage.random(5).put(area)
    counts = {"XSAVE then XFD": 0, "XFD then XSAVE": 0}
    with context.kvm.create_vm() as vm:
        for number in range(2 * _SAMPLES):
            with vm.create_vcpu(number) as vcpu:
                set_cpuid(vcpu, table)
                order = "XFD then XSAVE" if number % 2 else "XSAVE then XFD"
                if number % 2:
                    set_msr(vcpu, Msr.XFD, _ARMED)
                set_xsave(vcpu, area)
                if not number % 2:
                    set_msr(vcpu, Msr.XFD, _ARMED)
                counts[order] += get_xsave(vcpu).xstate_bv >> TILEDATA & 1
                set_xsave(vcpu, XsaveArea.initial(largest_size()))
    context.note(", ".join(f"{order}: {count} of {_SAMPLES}" for order, count in counts.items()))


@clause("xsave.size.sticky-permission", arch="x86", needs=_TILES)
def area_needs_both(context: Context) -> None:
    """Of two vCPUs in one process only the one with tile data in its CPUID has the large area.

    Source: arch/x86/kernel/fpu/xstate.c, fpstate_realloc; arch/x86/kernel/fpu/core.c, fpu_alloc_guest_fpstate.
    """
    permit_tiles(context)
    plain = context.host.facts.cpuid
    small = configured(context, plain.with_xcr0(plain.xcr0 & ~_XTILE))
    large = configured(context, tile_table(context))
    equal("bytes of the area without tile data", len(get_xsave(small).data), 4096)
    equal("bytes of the area with tile data", len(get_xsave(large).data), permitted_size())
    promised = context.kvm.check_extension(lib.KVM_CAP_XSAVE2)
    equal("KVM_CAP_XSAVE2", promised, permitted_size(guest_supported(context)))
