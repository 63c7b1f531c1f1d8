# SPDX-License-Identifier: Apache-2.0
"""KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE: sizes, formats, refusals, and a move while L2 runs."""

from __future__ import annotations

import errno
import struct
from dataclasses import replace
from typing import Any

from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.expect import equal, judged, refused, succeeds, true
from vmm.conformance.needs import Need, capability
from vmm.conformance.registry import clause
from vmm.conformance.x86 import state
from vmm.conformance.x86.common import TILE_GUESTS, TILEDATA, configured, permit_tiles
from vmm.conformance.x86.vmx import EXIT_VMCALL, VMX_GUESTS, nested_guest, prepare_l2, run_l1
from vmm.kvm.exits import Budget
from vmm.kvm.vcpu import Vcpu
from vmm.probe.host import Host
from vmm.probe.x86.facts import CAPABILITIES
from vmm.x86.msr_names import Msr
from vmm.x86.nested_state import GIF_SET, GUEST_MODE, HEADER, NONE, RUN_PENDING, SVM, VMX, NestedState, buffer
from vmm.x86.registers import get_sregs, set_sregs, set_xcr0

_ARMED = 1 << TILEDATA
_UNKNOWN_FLAG = 1 << 15
_EFER_SVME = 1 << 12
_VMCS = 4096


def _offered(host: Host) -> int | None:
    """The format of what guests are offered: VMX, SVM or neither."""
    table = host.facts.cpuid
    if table.has("VMX"):
        return VMX
    return SVM if table.get(0x80000001).ecx >> 2 & 1 else None


def _offers_nested(host: Host) -> tuple[bool, str]:
    kind = _offered(host)
    return kind is not None, f"KVM_GET_SUPPORTED_CPUID has {'neither' if kind is None else ('VMX', 'SVM')[kind]}"


def _offers_svm(host: Host) -> tuple[bool, str]:
    return _offered(host) == SVM, f"KVM_GET_SUPPORTED_CPUID has SVM {'set' if _offered(host) == SVM else 'clear'}"


_SVM = Need("SVM for guests", _offers_svm)
_NESTED = (capability("KVM_CAP_NESTED_STATE"), Need("VMX or SVM for guests", _offers_nested))


def _idle(context: Context) -> NestedState:
    """What a vCPU has that does not virtualize; GIF is 1 from reset on."""
    kind = _offered(context.host)
    assert kind is not None  # the needs say so
    nowhere = NONE if kind == VMX else 0
    return NestedState(GIF_SET if kind == SVM else 0, kind, HEADER, nowhere, nowhere, 0, b"")


def _header(vcpu: Vcpu) -> NestedState:
    """The header of the state that KVM_GET_NESTED_STATE gives."""
    return NestedState.get(vcpu).header


def _needed(vcpu: Vcpu, size: int) -> int:
    """The size that KVM asks for when the buffer is said to have too few bytes."""
    data = buffer(size, 1 << 13)
    refused(f"a buffer of {size} bytes", errno.E2BIG, vcpu.ioctl, lib.KVM_GET_NESTED_STATE, data)
    return int(struct.unpack_from("<I", ffi.buffer(data), 4)[0])


@clause("nested.state-idle", arch="x86", needs=_NESTED)
def idle(context: Context) -> None:
    """The nested state of a vCPU that does not virtualize is a header of 128 bytes without any address.

    Too small a buffer is E2BIG and gets the size that is needed; KVM_CAP_NESTED_STATE is the largest there is.

    Source: Documentation/virt/kvm/api.rst, 4.114; arch/x86/kvm/vmx/nested.c, vmx_get_nested_state;
    arch/x86/kvm/svm/nested.c, svm_get_nested_state.
    """
    vcpu = configured(context)
    equal("the state's header", succeeds("KVM_GET_NESTED_STATE", _header, vcpu), _idle(context))
    for size in (8, HEADER - 1):
        equal(f"the size wanted instead of {size}", _needed(vcpu, size), HEADER)
    data = buffer(HEADER, 2 * HEADER, fill=0xAA)
    succeeds(f"a buffer of {HEADER} bytes", vcpu.ioctl, lib.KVM_GET_NESTED_STATE, data)
    equal("bytes behind the buffer", bytes(ffi.buffer(data))[HEADER:], b"\xaa" * HEADER)
    largest = context.kvm.check_extension(CAPABILITIES["KVM_CAP_NESTED_STATE"])
    true("KVM_CAP_NESTED_STATE", largest >= HEADER + _VMCS, largest, "room for a header and a VMCS or VMCB")


@clause("nested.state-refusals", arch="x86", needs=_NESTED)
def refusals(context: Context) -> None:
    """KVM_SET_NESTED_STATE takes an idle vCPU's own state and refuses what contradicts itself or the vCPU.

    All by EINVAL. What is refused changes nothing.

    Source: arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl (KVM_SET_NESTED_STATE); arch/x86/kvm/vmx/nested.c,
    vmx_set_nested_state; arch/x86/kvm/svm/nested.c, svm_set_nested_state.
    """
    vcpu = configured(context)
    own = _idle(context)
    whole = NestedState.get(vcpu)
    succeeds("the vCPU's own state", whole.set, vcpu)
    bad: dict[str, dict[str, Any]] = {
        "a size of 127": {"size": HEADER - 1},
        "an unknown flag": {"flags": own.flags | _UNKNOWN_FLAG},
        "a pending entry without L2": {"flags": own.flags | RUN_PENDING},
        "L2 in a vCPU that does not virtualize": {"flags": own.flags | GUEST_MODE},
        "the other vendor's format": {"format": VMX + SVM - own.format},
        "a format that does not exist": {"format": 7},
    }
    if own.format == VMX:
        bad |= {
            "a VMCS without VMXON": {"vmcs": 0x2000},
            "SMM's VMXON without VMXON": {"smm": 2},
            "a VMXON region that is not aligned": {"vmxon": 0x1001},
            "L2 in SMM": {"vmxon": 0x1000, "smm": 3, "flags": GUEST_MODE},
        }
    for what, fields in bad.items():
        refused(what, errno.EINVAL, replace(whole, **fields).set, vcpu)
        equal(f"the state's header after {what}", _header(vcpu), own)


@clause("nested.state-gif", arch="x86", needs=(capability("KVM_CAP_NESTED_STATE"), _SVM))
def gif(context: Context) -> None:
    """With SVM the state has the global interrupt flag: it can be cleared and set, and comes over to a new VM.

    Source: arch/x86/kvm/svm/nested.c, svm_get_nested_state, svm_set_nested_state; api.rst, 4.114.
    """
    own, vcpu = _idle(context), configured(context)
    sregs = get_sregs(vcpu)
    sregs.efer |= _EFER_SVME
    succeeds("EFER.SVME", set_sregs, vcpu, sregs)
    equal("the header with EFER.SVME", _header(vcpu), own)
    whole = NestedState.get(vcpu)
    for flags in (0, GIF_SET, 0):
        succeeds(f"a state with flags {flags:#x}", replace(whole, flags=flags).set, vcpu)
        equal(f"the header after flags {flags:#x}", _header(vcpu), replace(own, flags=flags))
    refused("L2 at no address", errno.EINVAL, replace(whole, flags=GUEST_MODE, vmxon=0x1001).set, vcpu)
    equal("the header after that", _header(vcpu), replace(own, flags=0))
    saved, twin = NestedState.get(vcpu), configured(context)
    set_sregs(twin, sregs)
    succeeds("the state in a new VM", saved.set, twin)
    equal("the header in the new VM", _header(twin), replace(own, flags=0))


@clause("nested.state-vmx-operation", arch="x86", needs=VMX_GUESTS)
def vmx_operation(context: Context) -> None:
    """After L1's VMXON the state has that region's address, and after VMPTRLD the VMCS's and 4 KiB of contents.

    A buffer for the header only is E2BIG then; the state restores in a new VM, where it is the same.

    Source: arch/x86/kvm/vmx/nested.c, vmx_get_nested_state, vmx_set_nested_state.
    """
    guest = nested_guest(context)
    region, vmcs = (guest.payload.symbol(name) for name in ("vmxon_region", "vmcs_region"))
    run_l1(context, guest, "vmxon")
    equal("the header after VMXON", _header(guest.vcpu), NestedState(0, VMX, HEADER, region, NONE, 0, b""))
    run_l1(context, guest, "vmptrld")
    loaded = NestedState(0, VMX, HEADER + _VMCS, region, vmcs, 0, b"")
    equal("the header after VMPTRLD", _header(guest.vcpu), loaded)
    equal("the size wanted instead of 128", _needed(guest.vcpu, HEADER), HEADER + _VMCS)
    saved = NestedState.get(guest.vcpu)
    twin = nested_guest(context, table=guest.cpuid)
    twin.prepare("_start")
    succeeds("KVM_SET_NESTED_STATE in a new VM", saved.set, twin.vcpu)
    equal("the header in the new VM", _header(twin.vcpu), loaded)
    equal("the VMCS in the new VM", NestedState.get(twin.vcpu).rest == saved.rest, True)


@clause("nested.state-moves", arch="x86", needs=(*TILE_GUESTS, *VMX_GUESTS))
def moves(context: Context) -> None:
    """A guest whose L2 is in its #NM handler moves with KVM_GET_NESTED_STATE, and L2 and L1 go on where they were.

    L2 reads IA32_XFD_ERR, which its #NM set before the move, and L1 then gets its exit.

    Source: Documentation/virt/kvm/api.rst, 4.114, 4.115; arch/x86/kvm/vmx/nested.c, vmx_set_nested_state.
    """
    permit_tiles(context)
    guest = nested_guest(context)
    set_xcr0(guest.vcpu, guest.cpuid.xcr0)
    prepare_l2(context, guest, "l2_demand")
    guest.prepare("launch", 3, 0, 0)
    with judged("L2's run to its #NM handler"):
        exit = guest.resume(context.timeout, ticks=2)
    equal("the exit of L2's #NM handler", exit, Budget(2))
    guest.vcpu.complete()
    saved, nested = state.capture(guest.vcpu, (Msr.XFD, Msr.XFD_ERR)), NestedState.get(guest.vcpu)
    equal("flags while L2 runs", nested.flags & GUEST_MODE, GUEST_MODE)
    equal("the size while L2 runs", nested.size, HEADER + _VMCS)
    equal("the saved MSRs", saved["MSRS"], {Msr.XFD: _ARMED, Msr.XFD_ERR: _ARMED})
    twin = nested_guest(context, table=guest.cpuid)
    twin.take_memory(guest)
    guest.close()
    with judged("restoring the guest and its nested state"):
        state.restore(twin.vcpu, saved)
        nested.set(twin.vcpu)
    equal("the header in the new VM", _header(twin.vcpu), nested.header)
    with judged("L2 and L1 after the move"):
        twin.finish(twin.resume(context.timeout), "L2 and L1 after the move")
    values = twin.mailbox.values
    equal("the reason of L2's exit", values[4] & 0xFFFF, EXIT_VMCALL)
    equal("the vector in L2's handler", values[1], 7)
    equal("IA32_XFD_ERR in L2's handler after the move", values[0], _ARMED)
    equal("IA32_XFD in L1 after the move", values[7], _ARMED)
