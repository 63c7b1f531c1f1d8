# SPDX-License-Identifier: Apache-2.0
"""What KVM_SET_VCPU_EVENTS prepares, as the guest takes it: an SError, an external abort."""

from __future__ import annotations

from typing import Any

from vmm._kvm import ffi
from vmm.arm64 import vcpu as vcpus
from vmm.arm64.guest import EXCEPTION, Guest
from vmm.arm64.registers import PC
from vmm.arm64.vcpu import read
from vmm.conformance.arm64.common import GUEST_RUNS, call, in_time, plain_guest
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, succeeds
from vmm.conformance.needs import Need, capability
from vmm.conformance.registry import clause
from vmm.kvm.vcpu import Vcpu
from vmm.probe.host import Host

_EVENTS = capability("KVM_CAP_VCPU_EVENTS")
_ABORTS = capability("KVM_CAP_ARM_INJECT_EXT_DABT")


def _not_protected(host: Host) -> tuple[bool, str]:
    mode = host.facts.mode
    return not mode.startswith("Protected") and "unknown" not in mode, f"its mode is {mode}"


# An abort is not tried on a host that it could harm, nor where nobody can tell.
_NOT_PROTECTED = Need("a KVM that is known not to be protected", _not_protected)
_ISS = 0x01234567  # any 25 bits
_ISS_BITS = (1 << 25) - 1
# Entries of the vector table at the current level with its own stack pointer. Arm ARM, D1.3.
_SYNCHRONOUS, _SERROR = 4, 7
_EC_SERROR, _EC_DATA_ABORT = 0x2F, 0x25
_EXTERNAL = 0x10  # DFSC: synchronous external abort, not on a table walk


def _set(vcpu: Vcpu, **fields: object) -> None:
    vcpu.set_events(ffi.new("struct kvm_vcpu_events *", {"exception": fields}))


def _pending(vcpu: Vcpu) -> Any:
    return succeeds("KVM_GET_VCPU_EVENTS", vcpu.get_events).exception


def _with_serror(context: Context, payload: str) -> tuple[Guest, int]:
    """A guest for which an SError is pending, and 1 if the host lets a VMM choose its syndrome."""
    guest = plain_guest(context, payload)
    chosen = int(_pending(guest.vcpu).serror_has_esr)
    fields = {"serror_pending": 1, "serror_has_esr": chosen, "serror_esr": _ISS * chosen}
    succeeds("KVM_SET_VCPU_EVENTS with a pending SError", _set, guest.vcpu, **fields)
    return guest, chosen


@clause("vm.serror-is-taken", arch="arm64", needs=(_EVENTS, GUEST_RUNS))
def serror(context: Context) -> None:
    """A pending SError waits while the guest masks it, is taken with its syndrome when it does not, and is gone then.

    Where the CPU has RAS the syndrome is the one that the VMM chose.

    Source: arch/arm64/kvm/inject_fault.c, kvm_inject_serror_esr; arch/arm64/kvm/guest.c, __kvm_arm_vcpu_get_events.
    """
    guest, chosen = _with_serror(context, "registers")
    call(context, guest, "a guest that masks SErrors", "ticks", 3)
    equal("a pending SError after it ran", _pending(guest.vcpu).serror_pending, 1)
    equal("its syndrome after it ran", _pending(guest.vcpu).serror_esr, _ISS * chosen)
    call(context, guest, "a guest that unmasks SErrors", "unmask")
    equal("exceptions", guest.mailbox.values[15], 1)
    fault = guest.fault()
    equal("the vector", fault.vector, _SERROR)
    equal("the exception class", fault.exception_class, _EC_SERROR)
    if chosen:
        equal("the syndrome in the guest", fault.esr & _ISS_BITS, _ISS)
    equal("a pending SError afterwards", _pending(guest.vcpu).serror_pending, 0)
    call(context, guest, "a guest that unmasks SErrors again", "unmask")
    equal("exceptions when it unmasks again", guest.mailbox.values[15], 0)


@clause("vm.serror-withdrawn-by-init", arch="arm64", needs=(_EVENTS, GUEST_RUNS))
def withdrawn(context: Context) -> None:
    """VCPU_INIT takes a pending SError back: the vCPU begins as a new one.

    Source: arch/arm64/kvm/arm.c, kvm_arch_vcpu_ioctl_vcpu_init (vcpu_reset_hcr); api.rst, 4.82.
    """
    guest, _ = _with_serror(context, "registers")
    equal("a pending SError", _pending(guest.vcpu).serror_pending, 1)
    succeeds("VCPU_INIT", vcpus.init, guest.vcpu, *guest.features)
    equal("a pending SError after VCPU_INIT", _pending(guest.vcpu).serror_pending, 0)
    call(context, guest, "a guest that unmasks SErrors", "unmask")
    equal("exceptions after VCPU_INIT", guest.mailbox.values[15], 0)


@clause("vm.external-abort", arch="arm64", needs=(_EVENTS, _ABORTS, _NOT_PROTECTED, GUEST_RUNS))
def external_abort(context: Context) -> None:
    """KVM_SET_VCPU_EVENTS with ext_dabt_pending gives the guest a synchronous external abort where it is, once.

    It is never told as pending: a VMM that saves has nothing to save.

    Source: arch/arm64/kvm/guest.c, __kvm_arm_vcpu_set_events; Documentation/virt/kvm/api.rst, 4.32; Linux 5.5.
    """
    guest = plain_guest(context)
    guest.prepare("ticks", 1)
    place = read(guest.vcpu, PC)
    succeeds("KVM_SET_VCPU_EVENTS with an abort", _set, guest.vcpu, ext_dabt_pending=1)
    equal("ext_dabt_pending afterwards", _pending(guest.vcpu).ext_dabt_pending, 0)
    equal("serror_pending afterwards", _pending(guest.vcpu).serror_pending, 0)
    exit = in_time(succeeds("KVM_RUN", guest.resume, context.timeout))
    equal("the guest's event", guest.event(exit), EXCEPTION)
    fault = guest.fault()
    equal("the vector", fault.vector, _SYNCHRONOUS)
    equal("the exception class", fault.exception_class, _EC_DATA_ABORT)
    equal("the fault's status", fault.esr & 0x3F, _EXTERNAL)
    equal("where it came", fault.elr, place)
    guest.complete()
    call(context, guest, "the guest once more", "ticks", 1)
