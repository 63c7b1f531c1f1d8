# SPDX-License-Identifier: Apache-2.0
"""The state of an x86 vCPU and its VM: every piece, declared once, in the order of a restore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vmm._kvm import ffi, lib
from vmm.kvm.bits import bits
from vmm.kvm.ioctl import KvmError
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import VirtualMachine
from vmm.state.errors import StateRefused
from vmm.state.piece import ANY, Follows, Piece, Reading, Row, raw
from vmm.state.shape import Shape
from vmm.state.value import Part, VcpuState
from vmm.state.x86.area import CpuidTable, Xsave, table, without_disabled
from vmm.state.x86.msrs import XFD, ListedRegs, Msrs, allowed_plain_msrs, saved_msrs
from vmm.state.x86.structures import Fields, Lapic, Sregs, Xcrs, in_smm
from vmm.x86 import permission, xfeature
from vmm.x86.msr_names import Msr

__all__ = [
    "CAPABILITIES",
    "CAPTURE_ORDER",
    "MACHINE",
    "PIECES",
    "about",
    "capture_machine",
    "check_complete",
    "permit",
    "restore_machine",
    "without_disabled",
]

_U64 = 8
# KVM_GET_TSC_KHZ: an unstable TSC, or no such call.
_NO_TSC_KHZ = ("EIO", "EINVAL", "ENOTTY")


class _TscKhz(Piece):
    """The frequency of the guest's TSC in kHz, which is written only if this vCPU has another."""

    def __init__(self) -> None:
        super().__init__("TSC_KHZ", ("KVM_GET_TSC_KHZ", "KVM_SET_TSC_KHZ"), Shape.exactly(4, required=False))

    def read(self, vcpu: Vcpu) -> Reading | None:
        return Reading(
            [(lib.KVM_GET_TSC_KHZ, ffi.NULL, ANY)], lambda calls: int(calls[0].result).to_bytes(4, "little")
        )

    def unreadable(self, vcpu: Vcpu, row: int, result: int) -> None:
        error = KvmError(self.get, -result)
        if error.errno_name not in _NO_TSC_KHZ:
            raise error

    def write(self, part: Part) -> list[Row]:
        return [(lib.KVM_GET_TSC_KHZ, ffi.NULL, self._wanted(part))]

    def refused(self, vcpu: Vcpu, state: VcpuState, row: int, result: int) -> list[tuple[str, str]]:
        wanted = self._wanted(state.parts[self.name])
        try:
            vcpu.ioctl_value(lib.KVM_SET_TSC_KHZ, wanted)
        except KvmError as error:
            why = f"{wanted} kHz were refused ({error.errno_name}): this CPU cannot scale its TSC"
            return [(self.name, why)]
        return []

    def _wanted(self, part: Part) -> int:
        return int.from_bytes(raw(self.name, part, self.shape.largest), "little")

    def describe(self, part: Part, parts: Mapping[str, Part]) -> dict[str, str]:
        return {self.name: str(int.from_bytes(raw(self.name, part), "little"))}


_CPUID = "the guest's CPUID decides which bits CR4, EFER, XCR0 and the MSRs may have, and how large its XSAVE area is"
_AFTER_CPUID = Follows("CPUID", _CPUID, "arch/x86/kvm/cpuid.c, kvm_set_cpuid, kvm_vcpu_after_set_cpuid")


def _beyond_x87(parts: Mapping[str, Part]) -> bool:
    """XCR0, the first entry of struct kvm_xcrs, has a component that CPUID has to offer."""
    return int.from_bytes(raw("XCRS", parts["XCRS"])[16:24], "little") > 1


def _pending(parts: Mapping[str, Part]) -> bool:
    """An exception is pending, which is not yet injected: exception.pending of struct kvm_vcpu_events."""
    return bool(raw("EVENTS", parts["EVENTS"])[3])


_SREGS = Sregs("SREGS", "kvm_sregs2", 320, _AFTER_CPUID, calls="SREGS2")

PIECES: tuple[Piece, ...] = (
    CpuidTable(),
    _TscKhz(),
    _SREGS,
    Xcrs("XCRS", "kvm_xcrs", 392, replace(_AFTER_CPUID, always=_beyond_x87)),
    Msrs("XFD", lambda vcpu: XFD, lambda: frozenset(XFD), _AFTER_CPUID, required=False),
    Xsave(
        _AFTER_CPUID,
        Follows("XFD", "an XSTATE_BV bit that IA32_XFD disables must not remain after the write of IA32_XFD",
                "arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_set_xsave; arch/x86/kernel/fpu/core.c, fpu_update_guest_xfd"),
    ),
    Lapic(
        "LAPIC", "kvm_lapic_state", 1024,
        Follows("SREGS", "the APIC base register says where and in which mode the APIC is",
                "arch/x86/kvm/lapic.c, kvm_apic_set_state"),
        required=False,
    ),
    Msrs(
        "MSRS", saved_msrs, allowed_plain_msrs, _AFTER_CPUID,
        Follows("LAPIC", "KVM_ASYNC_PF_INT needs an enabled APIC", "arch/x86/kvm/x86.c, kvm_set_msr_common"),
    ),
    ListedRegs("ONE_REGS", _AFTER_CPUID, required=False),
    Msrs(
        "TSC", lambda vcpu: (Msr.TSC,), lambda: frozenset({Msr.TSC}),
        Follows("TSC_KHZ", "the value is turned into an offset at the frequency that is set",
                "arch/x86/kvm/x86.c, kvm_synchronize_tsc"),
    ),
    Fields(
        "REGS", "kvm_regs", 144,
        Follows("SREGS", "RFLAGS and RIP are taken in the mode that is set", "arch/x86/kvm/x86.c, __set_regs"),
    ),
    Fields("DEBUGREGS", "kvm_debugregs", 128),
    Fields("MP_STATE", "kvm_mp_state", 4),
    Fields(
        "EVENTS", "kvm_vcpu_events", 64,
        Follows("REGS", "KVM_SET_REGS discards a pending exception", "arch/x86/kvm/x86.c, __set_regs", _pending),
        calls="VCPU_EVENTS",
    ),
)  # fmt: skip

_REQUIRED = tuple(piece.name for piece in PIECES if piece.shape.required)
# KVM_GET_MP_STATE takes in INIT and SIPI, which changes registers; events are read when nothing else can raise one.
CAPTURE_ORDER: tuple[str, ...] = (
    "MP_STATE", "REGS", "SREGS", "XSAVE", "XCRS", "XFD", "DEBUGREGS", "LAPIC", "CPUID", "TSC_KHZ", "MSRS", "ONE_REGS",
    "EVENTS", "TSC",
)  # fmt: skip


# --- the VM ---------------------------------------------------------------------------------------

# KVM_CAP_EXCEPTION_PAYLOAD and KVM_CAP_X86_TRIPLE_FAULT_EVENT: without them pending exceptions and triple faults are
# not told apart.
CAPABILITIES = frozenset({164, 218})
MACHINE: Mapping[str, Shape] = {"CAPS": Shape(required=False), "CLOCK": Shape.exactly(_U64)}


def capture_machine(vm: VirtualMachine) -> Mapping[str, Part]:
    """Return the parts that belong to the VM: CLOCK, the kvmclock."""
    value = ffi.new("struct kvm_clock_data *")
    vm.ioctl(lib.KVM_GET_CLOCK, value)
    return {"CLOCK": int(value.clock).to_bytes(_U64, "little")}


def restore_machine(vm: VirtualMachine, parts: Mapping[str, Part]) -> None:
    """Write the parts that belong to the VM; StateRefused if they are others than CLOCK."""
    if set(parts) != {"CLOCK"}:
        raise StateRefused(f"the state's VM-wide parts are {', '.join(parts) or 'none'} and not CLOCK")
    clock = int.from_bytes(raw("CLOCK", parts["CLOCK"], _U64), "little")
    vm.ioctl(lib.KVM_SET_CLOCK, ffi.new("struct kvm_clock_data *", {"clock": clock}))


# --- a state as a whole ---------------------------------------------------------------------------


def check_complete(parts: Mapping[str, Part]) -> None:
    """Raise StateRefused if a part is missing, or the guest uses what is not captured: nested virtualization, SMM."""
    if missing := [name for name in _REQUIRED if name not in parts]:
        raise StateRefused(f"the state is incomplete, it lacks {', '.join(missing)}")
    if _SREGS.nested(parts["SREGS"]):
        raise StateRefused("the guest has CR4.VMXE or EFER.SVME set: nested state cannot be saved")
    if in_smm(parts["EVENTS"]):
        raise StateRefused(
            "the vCPU is in system management mode or has an SMI pending: the memory it sees there (KVM's address "
            "space 1) cannot be saved"
        )


def permit(vcpu: VcpuState) -> None:
    """Request the guest permission for the dynamic components that the state's CPUID names, where it is missing."""
    wanted = table(vcpu.parts).xcr0 & xfeature.DYNAMIC
    if not wanted:
        return
    try:
        for feature in bits(wanted & ~permission.guest_permitted()):
            permission.request_guest(feature)
    except KvmError as error:
        raise StateRefused(
            f"CPUID: the guest has {xfeature.describe(wanted)}, for which this process gets no permission "
            f"({error.errno_name}): the CPU or kernel lacks it, or a vCPU was made before"
        ) from error


def about() -> dict[str, str]:
    """Return what a state says about its host, beside the kernel: nothing, CPUID says it all."""
    return {}
