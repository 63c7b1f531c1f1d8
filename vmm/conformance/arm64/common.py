# SPDX-License-Identifier: Apache-2.0
"""What the arm64 clauses share: preconditions, ready-made vCPUs and guests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from vmm._kvm import ffi, lib
from vmm.arm64 import vcpu as vcpus
from vmm.arm64.guest import Guest
from vmm.arm64.id_registers import mask_index
from vmm.arm64.registers import PC, SYSTEM, Register, sysreg
from vmm.arm64.system_registers import FEATURES
from vmm.arm64.vcpu import Feature, write
from vmm.arm64.vector import VectorState, differences
from vmm.arm64.vls import VectorLengths
from vmm.conformance.context import Context
from vmm.conformance.expect import TimedOut, equal, judged, no_difference
from vmm.conformance.needs import Need, capability
from vmm.kvm.exits import Deadline, Exit
from vmm.kvm.vcpu import Vcpu
from vmm.kvm.vm import VirtualMachine
from vmm.probe.arm64.kernel_log import KernelLog, about_kvm
from vmm.probe.host import Host

__all__ = [
    "BAD_ADDRESS",
    "COUNTERS",
    "GUEST_RUNS",
    "HOLE",
    "MASKS",
    "NO_SVE",
    "OWN_SVE",
    "PAUTH",
    "SEVERAL",
    "SVE",
    "again",
    "call",
    "compare",
    "enter",
    "features",
    "finish",
    "get_bad",
    "guests",
    "hold",
    "in_time",
    "lengths",
    "lengths_to_try",
    "observed",
    "plain_guest",
    "plain_vcpu",
    "poisoned_get",
    "same_bytes",
    "set_bad",
    "set_image",
    "sve_guest",
    "sve_vcpu",
    "verify",
    "warnings",
    "widest_vcpu",
    "writable",
]

# An address that no process has mapped.
BAD_ADDRESS = 0x10
_HOLD_TICKS = 50
# Counters that change by themselves.
COUNTERS = frozenset({SYSTEM["CNTVCT_EL0"], SYSTEM["CNTPCT_EL0"]})

SVE = capability("KVM_CAP_ARM_SVE")
MASKS = capability("KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES")


def _guest_runs(host: Host) -> tuple[bool, str]:
    return not host.facts.guest, host.facts.guest or "it runs to its first exit"


def _own_sve(host: Host) -> tuple[bool, str]:
    found = host.facts.host_lengths
    return found is not None, f"its vector lengths are {'not available' if found is None else found}"


def _no_sve(host: Host) -> tuple[bool, str]:
    value = host.facts.capabilities["KVM_CAP_ARM_SVE"]
    return value == 0, f"KVM_CAP_ARM_SVE is {value}"


def _guest_lengths(host: Host) -> VectorLengths:
    return VectorLengths(host.facts.guest_lengths or ())


def _several(host: Host) -> tuple[bool, str]:
    found = _guest_lengths(host)
    return len(found) > 1, f"a guest's vector lengths are {found}"


def _hole(host: Host) -> tuple[bool, str]:
    found = _guest_lengths(host)
    return len(found) < found.maximum, f"a guest's vector lengths are {found}"


def _pauth(host: Host) -> tuple[bool, str]:
    names = ("KVM_CAP_ARM_PTRAUTH_ADDRESS", "KVM_CAP_ARM_PTRAUTH_GENERIC")
    values = [host.facts.capabilities[name] for name in names]
    return all(values), f"KVM_CAP_ARM_PTRAUTH_ADDRESS and _GENERIC are {values[0]} and {values[1]}"


# What all clauses need that run a guest: where none runs, guest.runs says so, once.
GUEST_RUNS = Need("a guest that runs", _guest_runs)
OWN_SVE = Need("SVE for this process (PR_SVE_SET_VL)", _own_sve)
NO_SVE = Need("a host without SVE", _no_sve)
SEVERAL = Need("two vector lengths", _several)
HOLE = Need("a vector length below the largest that the CPU lacks", _hole)
PAUTH = Need("pointer authentication for guests", _pauth)


def lengths(context: Context) -> VectorLengths:
    """The vector lengths a vCPU with SVE starts with, as measured once."""
    return _guest_lengths(context.host)


def lengths_to_try(context: Context) -> list[VectorLengths]:
    """Every set that KVM can give a guest here, from the smallest to all."""
    return [lengths(context).up_to(vq) for vq in sorted(lengths(context))]


def sve_vcpu(
    context: Context, sizes: Iterable[int] | None = None, *, finalized: bool = True, vm: VirtualMachine | None = None
) -> Vcpu:
    """A new vCPU with SVE, in a VM of its own or in ``vm``, with vector lengths ``sizes``."""
    vcpu = context.vcpu() if vm is None else vm.create_vcpu(1)
    vcpus.init(vcpu, Feature.SVE)
    if sizes is not None:
        vcpus.set_vls(vcpu, sizes)
    if finalized:
        vcpus.finalize(vcpu)
    return vcpu


def plain_vcpu(context: Context) -> Vcpu:
    """A new vCPU without SVE."""
    vcpu = context.vcpu()
    vcpus.init(vcpu)
    return vcpu


def features(context: Context) -> tuple[Feature, ...]:
    """SVE where KVM has it."""
    return (Feature.SVE,) if context.host.facts.capabilities["KVM_CAP_ARM_SVE"] else ()


def widest_vcpu(context: Context, vm: VirtualMachine | None = None, number: int = 0) -> Vcpu:
    """A new vCPU with what :func:`features` says, finalized, in a VM of its own or as one of ``vm``."""
    vcpu = (vm or context.vm()).create_vcpu(number)
    chosen = features(context)
    vcpus.init(vcpu, *chosen)
    if chosen:
        vcpus.finalize(vcpu)
    return vcpu


def writable(context: Context, vm: VirtualMachine) -> dict[Register, int]:
    """The writable bits of each feature ID register as KVM tells them; none where it does not (before Linux 6.7)."""
    if not context.host.facts.capabilities["KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES"]:
        return {}
    masks = vcpus.writable_masks(vm)
    return {sysreg(*encoding): masks[mask_index(encoding)] for encoding in FEATURES}


def sve_guest(context: Context, sizes: Iterable[int] | None = None, payload: str = "sve") -> Guest:
    """A guest with SVE and vector lengths ``sizes``."""
    features = (Feature.PSCI_0_2, Feature.SVE)
    return context.own(Guest(context.kvm, payload, features=features, lengths=sizes))


def plain_guest(context: Context, payload: str = "hello") -> Guest:
    """A guest without SVE."""
    return context.own(Guest(context.kvm, payload, features=(Feature.PSCI_0_2,)))


def guests(context: Context) -> Iterator[Guest]:
    """A guest with SVE, where KVM has it, and one without."""
    if features(context):
        yield sve_guest(context, payload="hello")
    yield plain_guest(context)


def enter(vcpu: Vcpu) -> None:
    """KVM_RUN with immediate_exit: what has to be right for it is checked, no instruction is executed."""
    vcpu.complete()


def get_bad(vcpu: Vcpu, register: int) -> None:
    """KVM_GET_ONE_REG to a bad address."""
    vcpus.one_reg(vcpu, lib.KVM_GET_ONE_REG, register, BAD_ADDRESS)


def set_bad(vcpu: Vcpu, register: int) -> None:
    """KVM_SET_ONE_REG from a bad address."""
    vcpus.one_reg(vcpu, lib.KVM_SET_ONE_REG, register, BAD_ADDRESS)


def poisoned_get(vcpu: Vcpu, register: Register, room: int, poison: int = 0xAA) -> bytes:
    """KVM_GET_ONE_REG into ``room`` bytes of poison; all of them are returned."""
    buffer = ffi.new("uint8_t[]", bytes([poison]) * room)
    vcpus.one_reg(vcpu, lib.KVM_GET_ONE_REG, register, int(ffi.cast("uintptr_t", buffer)))
    return bytes(ffi.buffer(buffer, room))


def same_bytes(what: str, found: bytes, expected: bytes) -> None:
    """Two values of a register have to be equal; the bytes that differ are the evidence."""
    equal(f"the length of {what}", len(found), len(expected))
    if found == expected:
        return
    pairs = enumerate(zip(expected, found, strict=True))
    no_difference(what, [f"byte {at}: {new:#04x} and not {old:#04x}" for at, (old, new) in pairs if old != new])


def set_image(guest: Guest, state: VectorState) -> None:
    """Give the payload the state that its registers should have."""
    guest.memory.write(guest.payload.symbol("image"), state.image())


def observed(guest: Guest) -> bytes:
    """The image that the payload's registers gave."""
    return guest.memory.read(guest.payload.symbol("observed"), guest.payload.symbol("AREA_BYTES"))


def in_time(exit: Exit) -> Exit:
    """Return the exit of a run; raises TimedOut for a deadline, where that would be taken for an answer."""
    if isinstance(exit, Deadline):
        raise TimedOut("the guest did not leave in time")
    return exit


def call(context: Context, guest: Guest, what: str, entry: str, *parameters: int) -> int:
    """Run an entry point that has to come to its event, which is returned: DONE, or that something was different."""
    with judged(what):
        return guest.call(entry, *parameters, timeout=context.timeout)


def again(context: Context, guest: Guest, what: str, entry: str, *parameters: int) -> int:
    """Do as :func:`call` with a guest that has ended in one: only its PC is written, which is much less work."""
    processor = guest.processors[0]
    processor.complete()
    for number, value in enumerate(parameters):
        processor.mailbox.write("params", value, number)
    write(guest.vcpu, PC, guest.payload.symbol(entry))
    return finish(context, guest, what)


def finish(context: Context, guest: Guest, what: str) -> int:
    """Run a guest that is prepared or has left to its event, which has to come and is returned."""
    with judged(what):
        return guest.finish(guest.resume(context.timeout))


def compare(guest: Guest, what: str, event: int, state: VectorState) -> None:
    """``event`` is how the guest's own comparison of its registers with ``state`` ended: it has to be DONE."""
    differing = [] if event == guest.DONE else differences(state.image(), observed(guest))
    no_difference(what, differing or ["only the guest saw a difference"] * (event != guest.DONE))


def verify(context: Context, guest: Guest, what: str, state: VectorState, entry: str = "verify") -> None:
    """Let the guest compare its registers with ``state``; where they differ is the evidence."""
    set_image(guest, state)
    compare(guest, what, call(context, guest, what, entry, *([_HOLD_TICKS] * (entry == "hold"))), state)


def hold(context: Context, guest: Guest, what: str, state: VectorState) -> None:
    """Let the guest load ``state``, leave many times, and compare."""
    verify(context, guest, what, state, "hold")


def warnings(context: Context) -> Callable[[], None]:
    """Return a function that finds no warning about KVM or this process in the kernel's log since this call.

    Where the log cannot be read that is a note.
    """
    try:
        log = context.own(KernelLog(new=True))
    except OSError as error:
        context.note(f"the kernel's log cannot be read here ({error.strerror})")
        return lambda: None
    return lambda: equal("new warnings in the kernel's log", about_kvm(list(log.lines()), [os.getpid()]), [])
