# SPDX-License-Identifier: Apache-2.0
"""The state of an x86 vCPU: its steps, in the order of a restore, and the names inside its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from weakref import WeakKeyDictionary

from vmm._kvm import ffi, lib
from vmm.kvm.bits import bits
from vmm.kvm.ioctl import KvmError, Refused
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import VirtualMachine
from vmm.state.errors import StateRefused
from vmm.state.step import Follows, Policy, Step
from vmm.state.value import Packed, Part, Registers, VcpuState
from vmm.state.x86.names import STRUCTURES, describe, different, explain, one_reg_name, raw, requests
from vmm.x86 import msr, permission, xfeature
from vmm.x86.cpuid import Cpuid, get_cpuid, set_cpuid
from vmm.x86.fields import describe_msr
from vmm.x86.msr_names import Msr, saved_name
from vmm.x86.xsave import XsaveArea, get_xsave, set_xsave

__all__ = [
    "CAPABILITIES",
    "CAPTURE_ORDER",
    "STEPS",
    "STRUCTURES",
    "about",
    "capture_machine",
    "check_complete",
    "describe",
    "different",
    "explain",
    "permit",
    "restore_machine",
    "saved_msrs",
    "why",
]

# What a state may have enabled on its VM: without them pending exceptions and triple faults are not told apart.
CAPABILITIES = frozenset({lib.KVM_CAP_EXCEPTION_PAYLOAD, lib.KVM_CAP_X86_TRIPLE_FAULT_EVENT})
_U64 = 8
_XFD = (Msr.XFD, Msr.XFD_ERR)
# What has a step of its own, or no meaning outside of the host it was read on: see volatile.toml.
_NOT_IN_MSRS = frozenset({*_XFD, Msr.TSC, Msr.TSC_DEADLINE, Msr.HV_VP_RUNTIME, Msr.HV_TIME_REF_COUNT})
_LAPIC_MSRS = frozenset({Msr.KVM_ASYNC_PF_INT})


# --- structures -----------------------------------------------------------------------------------


def _structure(name: str, after: tuple[Follows, ...] = (), there: Callable[[Vcpu], bool] | None = None) -> Step:
    """A step that is one structure; ``there`` tells whether a vCPU has it, if not all have."""
    kind = ffi.typeof(f"struct {STRUCTURES[name]} *")
    size = ffi.sizeof(f"struct {STRUCTURES[name]}")
    names = requests(name)
    get, put = (getattr(lib, request) for request in names)

    def capture(vcpu: Vcpu) -> Part | None:
        if there is not None and not there(vcpu):
            return None
        value = ffi.new(kind)
        vcpu.ioctl(get, value)
        return bytes(ffi.buffer(value))

    def restore(vcpu: Vcpu, part: Part, policy: Policy) -> None:
        value = ffi.new(kind)
        ffi.memmove(value, raw(name, part, size), size)
        vcpu.ioctl(put, value)

    return Step(name, *names, capture, restore, after)


def _registers(name: str, part: Part) -> Registers:
    if isinstance(part, bytes):
        raise StateRefused(f"{name} has to be a set of registers: the state is damaged")
    return part


# --- parts with a call of their own ---------------------------------------------------------------


def _restore_cpuid(vcpu: Vcpu, part: Part, policy: Policy) -> None:
    set_cpuid(vcpu, Cpuid.unpack(raw("CPUID", part)))


def _capture_tsc_khz(vcpu: Vcpu) -> Part | None:
    try:
        return vcpu.ioctl_value(lib.KVM_GET_TSC_KHZ).to_bytes(4, "little")
    except KvmError as error:
        if error.errno_name in ("EIO", "EINVAL", "ENOTTY"):  # an unstable TSC, or no such call
            return None
        raise


def _restore_tsc_khz(vcpu: Vcpu, part: Part, policy: Policy) -> None:
    wanted = int.from_bytes(raw("TSC_KHZ", part, 4), "little")
    if _capture_tsc_khz(vcpu) == part:
        return
    try:
        vcpu.ioctl_value(lib.KVM_SET_TSC_KHZ, wanted)
    except KvmError as error:
        policy.refuse("TSC_KHZ", f"{wanted} kHz were refused ({error.errno_name}): this CPU cannot scale its TSC")


def _capture_xsave(vcpu: Vcpu) -> Part | None:
    return bytes(get_xsave(vcpu).data)


def _restore_xsave(vcpu: Vcpu, part: Part, policy: Policy) -> None:
    set_xsave(vcpu, XsaveArea(raw("XSAVE", part)))


# --- MSRs -----------------------------------------------------------------------------------------

# Rows of the MSRs that KVM lets be read, by the list asked and the guest's CPUID: each refusal costs a call.
_READABLE: dict[tuple[tuple[int, ...], bytes], bytes] = {}
_MOST_ROWS = (msr.MAX_BATCH - 1) * Packed.ROW.size
_MSRS = ffi.typeof("struct kvm_msrs *")


@cache
def _index_list(lapic: bool) -> tuple[int, ...]:
    """KVM_GET_MSR_INDEX_LIST, once a process: it does not depend on the VM."""
    excluded = _NOT_IN_MSRS if lapic else _NOT_IN_MSRS | _LAPIC_MSRS
    with Kvm() as kvm:
        return tuple(sorted(index for index in msr.index_list(kvm) if index not in excluded))


def saved_msrs(vcpu: Vcpu) -> tuple[int, ...]:
    """Return the MSRs that belong to the part MSRS of this vCPU, whether its CPUID lets them be read or not."""
    return _index_list(_has_lapic(vcpu))


def _read_msrs(vcpu: Vcpu, asked: tuple[int, ...]) -> Part | None:
    """Read those MSRs that KVM lets be read; None if there is none."""
    key = asked, vcpu.chosen.get("CPUID", b"")
    rows = _READABLE.get(key)
    if rows is None:
        readable = msr.get_readable(vcpu, asked)
        rows = _READABLE[key] = b"".join(Packed.ROW.pack(index, 0, 0) for index in readable)
    if not rows:
        return None
    found = _call_msrs(vcpu, lib.KVM_GET_MSRS, rows)
    if len(found) < len(rows):
        index = Packed.ROW.unpack_from(rows, len(found))[0]
        raise Refused(f"KVM no longer lets {msr.name(index)} be read, although it did earlier")
    return Packed(found)


def _call_msrs(vcpu: Vcpu, request: int, rows: bytes) -> bytes:
    """Call with all rows, a batch at a time; return the rows up to the first that KVM refused."""
    done = b""
    for start in range(0, len(rows), _MOST_ROWS):
        batch = rows[start : start + _MOST_ROWS]
        count = len(batch) // Packed.ROW.size
        value = ffi.new(_MSRS, {"nmsrs": count, "entries": count})
        ffi.memmove(value.entries, batch, len(batch))
        taken = vcpu.ioctl(request, value)
        done += ffi.buffer(value.entries, taken * Packed.ROW.size)[:]
        if taken < count:
            break
    return done


def _restore_msrs(name: str) -> Callable[[Vcpu, Part, Policy], None]:
    def restore(vcpu: Vcpu, part: Part, policy: Policy) -> None:
        registers = _registers(name, part)
        rows = registers.rows if isinstance(registers, Packed) else _rows(name, registers)
        refusals = []
        while rows:
            rows = rows[len(_call_msrs(vcpu, lib.KVM_SET_MSRS, rows)) :]
            if rows:  # KVM refused the first of them
                index, _, value = Packed.ROW.unpack_from(rows)
                refusals.append(
                    (f"{name}.{saved_name(index)}", f"KVM refused the value {describe_msr(index, value)}")
                )
                rows = rows[Packed.ROW.size :]
        policy.refuse_all(refusals)

    return restore


def _rows(name: str, registers: Registers) -> bytes:
    if any(len(value) != _U64 for value in registers.values()):
        raise StateRefused(f"{name}: an MSR has {_U64} bytes, the state is damaged")
    return b"".join(Packed.ROW.pack(index, 0, int.from_bytes(value, "little")) for index, value in registers.items())


def _capture_msrs(vcpu: Vcpu) -> Part | None:
    return _read_msrs(vcpu, saved_msrs(vcpu))


# An APIC comes with the vCPU or never.
_LAPICS: WeakKeyDictionary[Vcpu, bool] = WeakKeyDictionary()


def _has_lapic(vcpu: Vcpu) -> bool:
    if vcpu not in _LAPICS:
        _LAPICS[vcpu] = _asked_for_lapic(vcpu)
    return _LAPICS[vcpu]


def _asked_for_lapic(vcpu: Vcpu) -> bool:
    try:
        vcpu.ioctl(lib.KVM_GET_LAPIC, ffi.new("struct kvm_lapic_state *"))
    except KvmError:
        return False
    return True


# --- registers of KVM_GET_REG_LIST ----------------------------------------------------------------


# The registers of KVM_GET_REG_LIST by the guest's CPUID.
_ONE_REGS: dict[bytes, tuple[int, ...]] = {}


def _one_reg_list(vcpu: Vcpu) -> tuple[int, ...]:
    try:
        return tuple(vcpu.reg_list())
    except KvmError as error:
        if error.errno_name in ("ENOTTY", "EINVAL"):  # before Linux 6.18
            return ()
        raise


def _capture_one_regs(vcpu: Vcpu) -> Part | None:
    key = vcpu.chosen.get("CPUID", b"")
    if key not in _ONE_REGS:
        _ONE_REGS[key] = _one_reg_list(vcpu)
    identifiers = _ONE_REGS[key]
    return {identifier: vcpu.get_one_reg(identifier) for identifier in identifiers} or None


def _restore_one_regs(vcpu: Vcpu, part: Part, policy: Policy) -> None:
    for identifier, value in _registers("ONE_REGS", part).items():
        try:
            vcpu.set_one_reg(identifier, value)
        except KvmError as error:
            policy.refuse(f"ONE_REGS.{one_reg_name(identifier)}", f"KVM refused it with {error.errno_name}")


# --- the steps ------------------------------------------------------------------------------------

_CPUID = "the guest's CPUID decides which bits CR4, EFER, XCR0 and the MSRs may have, and how large its XSAVE area is"
_AFTER_CPUID = Follows("CPUID", _CPUID, "arch/x86/kvm/cpuid.c, kvm_set_cpuid, kvm_vcpu_after_set_cpuid")

STEPS: tuple[Step, ...] = (
    Step("CPUID", "KVM_GET_CPUID2", "KVM_SET_CPUID2", lambda vcpu: get_cpuid(vcpu).packed, _restore_cpuid),
    Step("TSC_KHZ", "KVM_GET_TSC_KHZ", "KVM_SET_TSC_KHZ", _capture_tsc_khz, _restore_tsc_khz),
    _structure("SREGS", (_AFTER_CPUID,)),
    _structure("XCRS", (_AFTER_CPUID,)),
    Step("XFD", "KVM_GET_MSRS", "KVM_SET_MSRS", lambda vcpu: _read_msrs(vcpu, _XFD), _restore_msrs("XFD"), (
        _AFTER_CPUID,
    )),
    Step("XSAVE", "KVM_GET_XSAVE2", "KVM_SET_XSAVE", _capture_xsave, _restore_xsave, (
        _AFTER_CPUID,
        Follows("XFD", "an XSTATE_BV bit that IA32_XFD disables must not remain after the write of IA32_XFD",
                "arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_set_xsave; arch/x86/kernel/fpu/core.c, fpu_update_guest_xfd"),
    )),
    _structure("LAPIC", (
        Follows("SREGS", "the APIC base register says where and in which mode the APIC is",
                "arch/x86/kvm/lapic.c, kvm_apic_set_state"),
    ), _has_lapic),
    Step("MSRS", "KVM_GET_MSRS", "KVM_SET_MSRS", _capture_msrs, _restore_msrs("MSRS"), (
        _AFTER_CPUID,
        Follows("LAPIC", "KVM_ASYNC_PF_INT needs an enabled APIC", "arch/x86/kvm/x86.c, kvm_set_msr_common"),
    )),
    Step("ONE_REGS", "KVM_GET_ONE_REG", "KVM_SET_ONE_REG", _capture_one_regs, _restore_one_regs, (_AFTER_CPUID,)),
    Step("TSC", "KVM_GET_MSRS", "KVM_SET_MSRS", lambda vcpu: _read_msrs(vcpu, (Msr.TSC,)), _restore_msrs("TSC"), (
        Follows("TSC_KHZ", "the value is turned into an offset at the frequency that is set",
                "arch/x86/kvm/x86.c, kvm_synchronize_tsc"),
    )),
    _structure("REGS", (
        Follows("SREGS", "RFLAGS and RIP are taken in the mode that is set", "arch/x86/kvm/x86.c, __set_regs"),
    )),
    _structure("DEBUGREGS"),
    _structure("MP_STATE"),
    _structure("EVENTS", (
        Follows("REGS", "KVM_SET_REGS discards a pending exception", "arch/x86/kvm/x86.c, __set_regs"),
    )),
)  # fmt: skip

# KVM_GET_MP_STATE takes in INIT and SIPI, which changes registers; events are read when nothing else can raise one.
CAPTURE_ORDER = (
    "MP_STATE", "REGS", "SREGS", "XSAVE", "XCRS", "XFD", "DEBUGREGS", "LAPIC", "CPUID", "TSC_KHZ", "MSRS", "ONE_REGS",
    "EVENTS", "TSC",
)  # fmt: skip


# --- the VM ---------------------------------------------------------------------------------------


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

_CR4_EFER = (ffi.offsetof("struct kvm_sregs2", "cr4"), ffi.offsetof("struct kvm_sregs2", "efer"))
# What every vCPU has; the others depend on its CPUID, the kernel, or an APIC in the kernel.
_REQUIRED = ("CPUID", "SREGS", "XCRS", "XSAVE", "MSRS", "TSC", "REGS", "DEBUGREGS", "MP_STATE", "EVENTS")


def check_complete(parts: Mapping[str, Part]) -> None:
    """Raise StateRefused if a part is missing, or the guest uses what is not captured (nested virtualization)."""
    if missing := [name for name in _REQUIRED if name not in parts]:
        raise StateRefused(f"the state is incomplete, it lacks {', '.join(missing)}")
    data = raw("SREGS", parts["SREGS"], ffi.sizeof("struct kvm_sregs2"))
    cr4, efer = (int.from_bytes(data[at : at + _U64], "little") for at in _CR4_EFER)
    if cr4 >> 13 & 1 or efer >> 12 & 1:
        raise StateRefused("the guest has CR4.VMXE or EFER.SVME set: nested state cannot be saved")


def permit(vcpu: VcpuState) -> None:
    """Request the guest permission for the dynamic components that the state's CPUID names, where it is missing."""
    wanted = Cpuid.unpack(raw("CPUID", vcpu.parts["CPUID"])).xcr0 & xfeature.DYNAMIC
    if not wanted:
        return
    try:
        missing = wanted & ~permission.guest_permitted()
        for feature in bits(missing):
            permission.request_guest(feature)
    except KvmError as error:
        raise StateRefused(
            f"CPUID: the guest has {xfeature.describe(wanted)}, for which this process gets no permission "
            f"({error.errno_name}): the CPU or kernel lacks it, or a vCPU was made before"
        ) from error


def about() -> dict[str, str]:
    """Return what a state says about its host, beside the kernel: nothing, CPUID says it all."""
    return {}


def why(step: str, state: VcpuState, error: KvmError) -> str:
    """Return the likely cause of a refusal in the terms of the state, or nothing."""
    if step == "XSAVE":
        offered = Cpuid.unpack(raw("CPUID", state.parts["CPUID"])).xcr0
        area = XsaveArea(raw("XSAVE", state.parts["XSAVE"]))
        return f": XSTATE_BV is {xfeature.describe(area.xstate_bv)}, the guest may have {xfeature.describe(offered)}"
    if step == "CPUID" and error.errno_name == "EPERM":
        return ": it names a component without guest permission"
    return ""
