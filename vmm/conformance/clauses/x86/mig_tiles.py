# SPDX-License-Identifier: Apache-2.0
"""In which orders XCR0, IA32_XFD and the XSAVE area of a guest with live tiles may be restored."""

from __future__ import annotations

import itertools

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, succeeds, true
from vmm.conformance.registry import clause
from vmm.conformance.x86 import state
from vmm.conformance.x86.common import TILE_GUESTS, TILEDATA, judged_call, tile_table
from vmm.conformance.x86.tiles import TileImage, explain, loaded, tile_guest, verify
from vmm.kvm.vcpu import Vcpu
from vmm.x86.cpuid import set_cpuid
from vmm.x86.msr import get_msr, set_msr
from vmm.x86.msr_names import Msr
from vmm.x86.registers import get_xcr0
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import XsaveArea, get_xsave, set_xsave

_ARMED = 1 << TILEDATA
_ORDERS = tuple(itertools.permutations(("XCRS", "MSRS", "XSAVE")))


def _restore(vcpu: Vcpu, saved: state.State, order: tuple[str, ...]) -> None:
    with judged(f"order {' '.join(order)}", "accepted"):
        state.restore(vcpu, saved, order)


def _check(vcpu: Vcpu, saved: state.State, what: str) -> None:
    """XCR0 and both MSRs have to be those that were saved."""
    equal(f"XCR0, {what}", get_xcr0(vcpu), saved["XCRS"])
    for msr, value in saved["MSRS"].items():
        equal(f"{Msr(msr).name}, {what}", get_msr(vcpu, msr), value)


def _tile_data(vcpu: Vcpu, image: TileImage, what: str, *, optional: bool = False) -> bool:
    """The area has to hold the tiles, or if that is allowed their configuration without them; tell which."""
    area = get_xsave(vcpu)
    has = bool(area.xstate_bv >> TILEDATA & 1)
    true(f"XSTATE_BV[18], {what}", has or optional, 0, "1")
    tiles = area.component(XFeature.XTILEDATA) if has else image.tiles
    lines = explain(image.data, area.component(XFeature.XTILECFG) + tiles)
    true(f"the tiles, {what}", not lines, "; ".join(lines[:4]), "those that were saved")
    return has


def _saved(context: Context) -> tuple[state.State, TileImage]:
    """What is saved of a guest with live tiles, XFD disarmed and an IA32_XFD_ERR that is not 0."""
    guest, image = loaded(context, 71)
    judged_call(context, guest, "wrmsr", Msr.XFD_ERR, _ARMED)
    saved = state.capture(guest.vcpu, (Msr.XFD, Msr.XFD_ERR))
    image.check_area(saved["XSAVE"])
    equal("the saved XCR0", saved["XCRS"], guest.cpuid.xcr0)
    equal("the saved MSRs", saved["MSRS"], {Msr.XFD: 0, Msr.XFD_ERR: _ARMED})
    guest.close()
    return saved, image


@clause("mig.order-matrix-tiles", arch="x86", needs=TILE_GUESTS, timeout=30)
def order_matrix(context: Context) -> None:
    """XCR0, IA32_XFD with IA32_XFD_ERR, and an area with live tiles may come in any order: the guest has its tiles.

    All six orders, into new VMs; the guest of each then stores its tiles.

    Source: Documentation/virt/kvm/api.rst, "Ordering of KVM_GET_*/KVM_SET_* ioctls"; arch/x86/kvm/x86.c,
    kvm_vcpu_ioctl_x86_set_xsave (looks at XFD and not at XCR0), __kvm_set_xcr.
    """
    saved, image = _saved(context)
    for order in _ORDERS:
        twin = tile_guest(context, permit=False)
        # A restore into a vCPU whose XCR0 has no tiles yet.
        fresh = {"XCRS": 1}
        state.restore(twin.vcpu, fresh, fresh)
        _restore(twin.vcpu, saved, order)
        what = " ".join(order)
        _check(twin.vcpu, saved, what)
        _tile_data(twin.vcpu, image, what)
        image.load(twin)
        verify(context, twin, image)
        judged_call(context, twin, "rdmsr", Msr.XFD_ERR)
        equal(f"IA32_XFD_ERR in the guest, {what}", twin.mailbox.values[0], _ARMED)
        twin.close()


@clause("mig.order-xfd-armed", arch="x86", needs=TILE_GUESTS)
def order_with_xfd(context: Context) -> None:
    """Where IA32_XFD is armed, before or by the restore, no order loses anything but tile data.

    While it is armed KVM_SET_XSAVE takes no tile data, so a vCPU whose XFD is armed has to get the saved XFD first:
    in the orders in which it does, tiles come back. In all others, and with a saved XFD that is armed, the kernel may
    drop tile data at any time; XCR0, TILECFG, XFD and XFD_ERR have to be what was saved. Read back only.

    Source: arch/x86/kernel/fpu/core.c, fpu_update_guest_xfd; arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_set_xsave.
    """
    live, image = _saved(context)
    armed = live | {"MSRS": {Msr.XFD: _ARMED, Msr.XFD_ERR: _ARMED}}
    lost, table = [], tile_table(context)
    with context.kvm.create_vm() as vm:
        for number, (order, saved) in enumerate(itertools.product(_ORDERS, (live, armed))):
            with vm.create_vcpu(number) as vcpu:
                set_cpuid(vcpu, table)
                equal("IA32_XFD accepted before the restore", set_msr(vcpu, Msr.XFD, _ARMED), True)
                _restore(vcpu, saved, order)
                what = f"{' '.join(order)}, {'armed' if saved is armed else 'disarmed'} by the restore"
                _check(vcpu, saved, what)
                in_time = saved is live and order.index("MSRS") < order.index("XSAVE")
                if not _tile_data(vcpu, image, what, optional=not in_time):
                    lost.append(what)
                # Nothing of it is ever run: kernels before 6.19 could have tiles there behind an armed XFD.
                succeeds("an area without tiles", set_xsave, vcpu, XsaveArea.initial(len(live["XSAVE"].data)))
    context.note(f"without tile data afterwards: {len(lost)} of {2 * len(_ORDERS)}")
