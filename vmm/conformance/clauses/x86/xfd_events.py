# SPDX-License-Identifier: Apache-2.0
"""An #NM by XFD as the host sees it: IA32_XFD_ERR right behind it, and while it is still pending."""

from __future__ import annotations

from vmm._kvm import lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, succeeds, true
from vmm.conformance.needs import capability
from vmm.conformance.registry import clause
from vmm.conformance.x86 import state
from vmm.conformance.x86.common import TILE_GUESTS, TILEDATA, judged_call
from vmm.conformance.x86.tiles import TileImage, tile_guest
from vmm.kvm.exits import Budget, Deadline
from vmm.x86.guest import EXCEPTION, Guest
from vmm.x86.msr import get_msr, set_msr
from vmm.x86.msr_names import Msr

_PAYLOAD = (*TILE_GUESTS, capability("KVM_CAP_EXCEPTION_PAYLOAD"))
_ARMED = 1 << TILEDATA
_NM = 7
# Of runs that end at any moment, one in a few ends between an #NM and its delivery.
_STOPS, _SLICE = 200, 0.0004


def _in_handler(context: Context, guest: Guest) -> None:
    """Run the guest to the first exit of its #NM handler, which has not read IA32_XFD_ERR yet."""
    guest.prepare("demand", 2)
    with judged("the guest's run to its #NM handler"):
        exit = guest.resume(context.timeout, ticks=1)
    equal("the exit of the #NM handler", exit, Budget(1))
    guest.vcpu.complete()


@clause("xfd.err-read-by-host", arch="x86", needs=TILE_GUESTS)
def error_is_read_by_host(context: Context) -> None:
    """Right behind an #NM KVM_GET_MSRS reads the guest's IA32_XFD_ERR, and what KVM_SET_MSRS puts there it reads.

    Source: arch/x86/kvm/x86.c, kvm_get_msr_common, kvm_set_msr_common (MSR_IA32_XFD_ERR, guest_fpu.xfd_err).
    """
    guest = tile_guest(context)
    TileImage.random(41).load(guest)
    equal("IA32_XFD_ERR before any #NM", get_msr(guest.vcpu, Msr.XFD_ERR), 0)
    for value in (_ARMED, 0):
        _in_handler(context, guest)
        equal("IA32_XFD_ERR behind the #NM", get_msr(guest.vcpu, Msr.XFD_ERR), _ARMED)
        equal("IA32_XFD behind the #NM", get_msr(guest.vcpu, Msr.XFD), _ARMED)
        equal(f"IA32_XFD_ERR {value:#x} accepted", set_msr(guest.vcpu, Msr.XFD_ERR, value), True)
        with judged("the rest of the handler"):
            guest.finish(guest.resume(context.timeout), "the rest of the handler")
        equal(f"IA32_XFD_ERR in the handler after KVM_SET_MSRS of {value:#x}", guest.mailbox.values[0], value)
        equal("IA32_XFD_ERR after the guest cleared it", get_msr(guest.vcpu, Msr.XFD_ERR), 0)


def _armed_guest(context: Context, *, permit: bool = True) -> Guest:
    """A guest with XFD armed and tiles configured, whose VM has exceptions' payloads enabled."""
    guest = tile_guest(context, permit=permit, payload="amx_os")
    guest.vm.enable_cap(lib.KVM_CAP_EXCEPTION_PAYLOAD, 1)
    equal("IA32_XFD accepted", set_msr(guest.vcpu, Msr.XFD, _ARMED), True)
    return guest


@clause("xfd.nm-payload", arch="x86", needs=_PAYLOAD)
def pending_nm(context: Context) -> None:
    """A pending #NM with a payload is read back as it was set, and is delivered with nothing of the payload anywhere.

    Linux 6.15 and later give an #NM by XFD the payload IA32_XFD_ERR; delivery writes it to no register.

    Source: Documentation/virt/kvm/api.rst, 7.22 KVM_CAP_EXCEPTION_PAYLOAD, 4.31; arch/x86/kvm/x86.c,
    kvm_vcpu_ioctl_x86_set_vcpu_events, kvm_deliver_exception_payload (#DB and #PF only).
    """
    guest = _armed_guest(context)
    guest.prepare("_start")
    events = guest.vcpu.get_events()
    events.flags |= lib.KVM_VCPUEVENT_VALID_PAYLOAD
    events.exception.pending, events.exception.injected, events.exception.nr = 1, 0, _NM
    events.exception_has_payload, events.exception_payload = 1, _ARMED
    succeeds("KVM_SET_VCPU_EVENTS of a pending #NM with a payload", guest.vcpu.set_events, events)
    seen = guest.vcpu.get_events().exception
    equal("the #NM: pending, injected, number", (seen.pending, seen.injected, seen.nr), (1, 0, _NM))
    equal("the #NM's payload", _payload(guest), (1, _ARMED))
    exit = guest.resume(context.timeout)
    taken = guest.event(exit) == EXCEPTION
    true("the exit of a guest with a pending #NM", taken, exit, "that of its exception handler")
    equal("the exception it took", guest.fault().name, "#NM")
    equal("where it took it", guest.fault().rip, guest.payload.symbol("_start"))
    equal("CR2 in the handler", guest.fault().cr2, 0)
    equal("IA32_XFD_ERR", get_msr(guest.vcpu, Msr.XFD_ERR), 0)
    equal("payloads left", _payload(guest)[0], 0)


def _payload(guest: Guest) -> tuple[int, int]:
    events = guest.vcpu.get_events()
    return int(events.exception_has_payload), int(events.exception_payload)


def _stop_at_pending(context: Context, guest: Guest) -> None:
    """Stop a guest that takes #NM after #NM until one is pending; Skipped if none ever is."""
    guest.prepare("storm")
    for _ in range(_STOPS):
        exit = guest.resume(_SLICE)
        true("the exit of a guest that takes #NM for ever", exit == Deadline(), exit, "none")
        if guest.vcpu.get_events().exception.pending:
            return
    context.skip(f"needs a guest that stops between an #NM and its delivery: {_STOPS} stops were elsewhere")


@clause("xfd.nm-pending-moves", arch="x86", needs=_PAYLOAD, timeout=30)
def pending_nm_moves(context: Context) -> None:
    """A guest stopped between its #NM and the delivery has it pending with IA32_XFD_ERR set, and takes it elsewhere.

    Its payload, if it has one, is IA32_XFD_ERR: Linux 6.15 and later.

    Source: arch/x86/kvm/vmx/vmx.c, handle_nm_fault_irqoff, handle_exception_nmi (the MSR is read before the exception
    is queued); arch/x86/kvm/x86.c, vcpu_run (a signal may come between that and the next entry).
    """
    guest = _armed_guest(context)
    judged_call(context, guest, "configure")
    _stop_at_pending(context, guest)
    saved = state.capture(guest.vcpu, state.saved_xfd_msrs(context.kvm))
    equal("the pending exception", guest.vcpu.get_events().exception.nr, _NM)
    equal("IA32_XFD_ERR with the #NM pending", saved["MSRS"].get(Msr.XFD_ERR), _ARMED)
    has, payload = _payload(guest)
    context.note("no payload" if not has else f"payload {payload:#x}")
    equal("the payload of the #NM", payload if has else _ARMED, _ARMED)
    twin = _armed_guest(context, permit=False)
    twin.take_memory(guest)
    with judged("restoring the state with the #NM pending"):
        state.restore(twin.vcpu, saved)
    equal("the payload in the copy", _payload(twin), (has, payload))
    twin.mailbox.write("fixup", 0)  # so that the handler reports it
    exit = twin.resume(context.timeout)
    taken = twin.event(exit) == EXCEPTION
    true("the exit of the copy", taken, exit, "that of its exception handler")
    equal("the exception in the copy", twin.fault().name, "#NM")
    equal("where it is", twin.fault().rip, twin.payload.symbol("at_storm"))
    equal("IA32_XFD_ERR in the copy", get_msr(twin.vcpu, Msr.XFD_ERR), _ARMED)
