# SPDX-License-Identifier: Apache-2.0
"""XCR0 of a guest that may use tiles."""

from __future__ import annotations

import errno

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, refused, succeeds
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import TILE_GUESTS, TILEDATA, configured, judged_call, permit_tiles, tile_table
from vmm.x86.boot import CR4_OSXSAVE
from vmm.x86.guest import Guest
from vmm.x86.registers import get_xcr0, set_xcr0
from vmm.x86.xfeature import AVX512, XTILE, XFeature

_TILECFG, _TILEDATA = 1 << XFeature.XTILECFG, 1 << TILEDATA
_PARTS = (0, _TILECFG, _TILEDATA, XTILE)


def _bases(offered: int) -> list[int]:
    """Valid values without tiles, from x87 alone to all that is offered."""
    return sorted({value for value in (1, 3, 7, 7 | AVX512, offered & ~XTILE) if not value & ~offered})


@clause("xcrs.rules-with-tiles", arch="x86", needs=TILE_GUESTS)
def rules_with_tiles(context: Context) -> None:
    """XCR0 takes TILECFG and TILEDATA together or not at all, with any other components, from the host and the guest.

    One of them is EINVAL for the host and #GP for the guest, and changes nothing.

    Source: arch/x86/kvm/x86.c, __kvm_set_xcr, kvm_emulate_xsetbv; Intel SDM volume 1, 13.3.
    """
    permit_tiles(context)
    guest = context.own(Guest(context.kvm, "hello", cpuid=tile_table(context), cr4=CR4_OSXSAVE))
    vcpu = guest.vcpu
    for base in _bases(guest.cpuid.xcr0):
        for part in _PARTS:
            value = base | part
            set_xcr0(vcpu, 1)
            if part in (0, XTILE):
                succeeds(f"XCR0 {value:#x}", set_xcr0, vcpu, value)
            else:
                refused(f"XCR0 {value:#x}", errno.EINVAL, set_xcr0, vcpu, value)
            equal(f"XCR0 after {value:#x}", get_xcr0(vcpu), value if part in (0, XTILE) else 1)
    for part in _PARTS:
        set_xcr0(vcpu, 3)
        judged_call(context, guest, "xsetbv", 0, 3 | part)
        fails = part not in (0, XTILE)
        equal(f"faults of XSETBV {3 | part:#x}", guest.mailbox.read("values", 15), int(fails))
        if fails:
            equal(f"the fault of XSETBV {3 | part:#x}", guest.fault().name, "#GP")
        equal(f"XCR0 after XSETBV {3 | part:#x}", get_xcr0(vcpu), 3 if fails else 3 | part)


@clause("xcrs.half-a-tile-offered", arch="x86", needs=TILE_GUESTS)
def half_offered(context: Context) -> None:
    """A guest that is offered TILECFG without TILEDATA, as kernels before 6.4 did, can enable neither.

    Source: arch/x86/kvm/x86.c, __kvm_set_xcr (both or none, and guest_supported_xcr0).
    """
    permit_tiles(context)
    table = tile_table(context)
    vcpu = configured(context, table.with_xcr0(table.xcr0 & ~_TILEDATA))
    for part in (_TILECFG, _TILEDATA, XTILE):
        refused(f"XCR0 {3 | part:#x}", errno.EINVAL, set_xcr0, vcpu, 3 | part)
    equal("XCR0 after the refusals", get_xcr0(vcpu), 1)
