# SPDX-License-Identifier: Apache-2.0
"""Tiles and XFD of a guest's guest: L1 is a hypervisor with VMX, and L2 its guest."""

from __future__ import annotations

from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, true
from vmm.conformance.registry import clause
from vmm.conformance.x86.common import TILE_GUESTS, TILEDATA, permit_tiles
from vmm.conformance.x86.tiles import AREA_SIZE, TileImage, explain
from vmm.conformance.x86.vmx import EXIT_EXCEPTION, EXIT_VMCALL, VMX_GUESTS, nested_guest, prepare_l2, run_l1
from vmm.kvm.exits import Budget
from vmm.x86.guest import Guest
from vmm.x86.msr import get_msr, set_msr
from vmm.x86.msr_names import Msr
from vmm.x86.registers import set_xcr0
from vmm.x86.xfeature import XFeature
from vmm.x86.xsave import XsaveArea

_NEEDS = (*TILE_GUESTS, *VMX_GUESTS)
_ARMED = 1 << TILEDATA
_NM = 7
# Valid, a hardware exception, vector 7.
_NM_INFORMATION = 1 << 31 | 3 << 8 | _NM
_TICKS = 5


def _nested_tiles(context: Context, entry: str, *, intercepted: int = 0) -> Guest:
    """An L1 in VMX operation whose L2 may use tiles and begins at ``entry``."""
    permit_tiles(context)
    guest = nested_guest(context)
    set_xcr0(guest.vcpu, guest.cpuid.xcr0)
    prepare_l2(context, guest, entry, intercepted=intercepted)
    return guest


def _judged_l1(context: Context, guest: Guest, entry: str, *parameters: int) -> None:
    with judged(f"L1's {entry} and its L2"):
        run_l1(context, guest, entry, *parameters)


def _left(guest: Guest, what: str, reason: int) -> None:
    equal(f"the reason of L2's exit, {what}", guest.mailbox.values[4] & 0xFFFF, reason)


@clause("nested.xfd-err-l2", arch="x86", needs=_NEEDS)
def error_of_l2(context: Context) -> None:
    """L2's #NM by an XFD that it armed itself sets IA32_XFD_ERR for L2, over exits to the VMM, for L1 and the host.

    L1 intercepts neither #NM nor the MSRs, so that KVM has to see L2's writes and exceptions for itself.

    Source: arch/x86/kvm/vmx/vmx.c, vmx_update_exception_bitmap (guest mode), handle_nm_fault_irqoff;
    arch/x86/kvm/vmx/nested.c, nested_vmx_l0_wants_exit.
    """
    guest = _nested_tiles(context, "l2_demand")
    guest.prepare("launch", _TICKS, 0, 0)
    with judged("L2's run to its #NM handler"):
        exit = guest.resume(context.timeout, ticks=2)
    equal("the exit of L2's #NM handler", exit, Budget(2))
    guest.vcpu.complete()
    equal("IA32_XFD_ERR of L2 for the host", get_msr(guest.vcpu, Msr.XFD_ERR), _ARMED)
    with judged("the rest of L2's handler, and L1"):
        guest.finish(guest.resume(context.timeout), "the rest of L2's handler")
    values = guest.mailbox.values
    _left(guest, "by VMCALL", EXIT_VMCALL)
    equal("the vector in L2's handler", values[1], _NM)
    equal("RIP of L2's #NM", guest.fault().rip, guest.payload.symbol("at_l2_demand"))
    equal("IA32_XFD_ERR in L2's handler", values[0], _ARMED)
    equal("IA32_XFD_ERR in L1 afterwards", values[6], _ARMED)
    equal("IA32_XFD in L1 afterwards", values[7], _ARMED)
    equal("IA32_XFD_ERR for the host afterwards", get_msr(guest.vcpu, Msr.XFD_ERR), _ARMED)


@clause("nested.xfd-err-l1-intercepts", arch="x86", needs=_NEEDS)
def error_of_intercepted_nm(context: Context) -> None:
    """An L1 that intercepts #NM gets L2's as an exit, with IA32_XFD_ERR set and before L2's handler has run.

    L1 then disarms XFD and resumes L2, whose instruction works.

    Source: arch/x86/kvm/vmx/vmx.c, handle_nm_fault_irqoff (before the check for L1's interception),
    handle_exception_nmi.
    """
    guest = _nested_tiles(context, "l2_demand", intercepted=1 << _NM)
    _judged_l1(context, guest, "launch", 0, 0, 0)
    values = guest.mailbox.values
    _left(guest, "by #NM", EXIT_EXCEPTION)
    equal("the interruption information of L2's exit", values[5], _NM_INFORMATION)
    equal("the vector in L2's handler", guest.mailbox.read("vector"), 0)
    equal("IA32_XFD_ERR in L1", values[6], _ARMED)
    equal("IA32_XFD_ERR for the host", get_msr(guest.vcpu, Msr.XFD_ERR), _ARMED)
    equal("IA32_XFD_ERR 0 accepted", set_msr(guest.vcpu, Msr.XFD_ERR, 0), True)
    _judged_l1(context, guest, "again", 0, 0, 0)
    values = guest.mailbox.values
    _left(guest, "by VMCALL", EXIT_VMCALL)
    equal("the vector in L2's handler after L1 disarmed XFD", values[1], 0)
    equal("IA32_XFD_ERR in L1 after that", values[6], 0)


def _area(guest: Guest, number: int) -> int:
    return guest.payload.symbol("areas") + AREA_SIZE * number


def _check_area(guest: Guest, number: int, image: TileImage, what: str) -> None:
    area = XsaveArea(guest.memory.read(_area(guest, number), AREA_SIZE))
    seen = area.component(XFeature.XTILECFG) + area.component(XFeature.XTILEDATA)
    lines = explain(image.data, seen)
    true(what, not lines, "; ".join(lines[:4]), "those that were loaded")


@clause("nested.tiles-l1-l2", arch="x86", needs=_NEEDS)
def tiles_over_nested_exits(context: Context) -> None:
    """Tiles go as they are from L1 to L2 and back, over entries of L2, its exits to the VMM and those to L1.

    L2 finds L1's tiles, loads its own, leaves to the VMM five times and then to L1, which finds L2's.

    Source: arch/x86/kvm/x86.c, kvm_load_guest_fpu (one guest fpstate for L1 and L2); Intel SDM volume 3, 27.3, 28.3
    (no VM entry and no VM exit loads extended state).
    """
    guest = _nested_tiles(context, "l2_tiles")
    of_l1, of_l2 = TileImage.random(91), TileImage.random(92)
    for number, image in ((0, of_l1), (2, of_l2)):
        area = XsaveArea.initial(AREA_SIZE)
        image.put(area)
        guest.memory.write(_area(guest, number), bytes(area.data))
    _judged_l1(context, guest, "launch", _TICKS, 1, 0)
    _left(guest, "by VMCALL", EXIT_VMCALL)
    equal("ticks of L2", guest.vcpu.absorbed, _TICKS)
    _check_area(guest, 1, of_l1, "L1's tiles in L2")
    _check_area(guest, 3, of_l2, "L2's tiles in L1")
