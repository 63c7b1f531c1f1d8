# SPDX-License-Identifier: Apache-2.0
"""What the lies about x86 guests share: tiles, shadow stacks and memory types in a guest, and SSP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.mutations.lies import (
    RUN,
    Change,
    Proceed,
    Shared,
    after,
    after_entry,
    answer,
    before,
    called,
    given,
    nth,
    once,
)
from tests.mutations.x86.buffers import change_msr, flip_now, msr_values, of_msr, place, set_msr_now
from vmm._kvm import ffi, lib
from vmm.conformance.context import Context
from vmm.conformance.x86 import traced
from vmm.conformance.x86.caching import page
from vmm.conformance.x86.lists import ANSWERS, LIST
from vmm.conformance.x86.shadow import SSP_ID
from vmm.kvm.ioctl import Call, Interposer
from vmm.state.x86.world.events import EVENTS
from vmm.state.x86.world.lapic import LAPIC
from vmm.state.x86.world.modes import SREGS
from vmm.state.x86.world.msrs import MSRS
from vmm.state.x86.world.registers import DEBUGREGS, MP_STATE, REGS
from vmm.state.x86.world.vectors import FPU, XCRS, XSAVE
from vmm.x86.memory_types import MemoryType
from vmm.x86.msr_names import Msr
from vmm.x86.xfeature import XFeature

__all__ = [
    "A_FIELD",
    "CONFIGURATION",
    "GP",
    "MEMTYPE",
    "MSR_FILTER",
    "NM",
    "SLOW",
    "TILES",
    "UD",
    "after_init",
    "after_msr_entry",
    "at_msr_exit",
    "batch_value",
    "before_entry",
    "before_msr_answer",
    "before_run",
    "during",
    "faults",
    "get_ssp_now",
    "guest_did_not_fault",
    "guest_faulted",
    "guest_writes",
    "host_reads",
    "in_cet_guest",
    "in_lists",
    "in_tile_guest",
    "lose",
    "msr_readable",
    "not_restored",
    "of_ssp",
    "one_reg_number",
    "ptrace_shows",
    "set_in_guest",
    "set_ssp_now",
    "ssp_reads",
    "tile_byte",
    "timed",
]

# A field of each piece, for lies about ways through KVM.
A_FIELD = {
    SREGS: "cr2", XCRS: "xcrs[0].value", XSAVE: "SSE.XMM3", LAPIC: "LDR", REGS: "rbx", DEBUGREGS: "db[2]",
    MP_STATE: "mp_state", EVENTS: "nmi.masked", FPU: "fcw", MSRS: "LSTAR",
}  # fmt: skip


GET, GET_REG = "KVM_GET_MSRS", "KVM_GET_ONE_REG"
MSR_FILTER = "KVM_X86_SET_MSR_FILTER"
MEMTYPE = "memtype"
SLOW = 40
CONFIGURATION, TILES = int(XFeature.XTILECFG), int(XFeature.XTILEDATA)
GP, UD, NM = 13, 6, 7


def in_cet_guest(
    name: str, change: Callable[[Shared], object], when: Callable[[Shared], bool] | None = None
) -> Interposer:
    """After each run from an entry point of the cet payload, spoil what it left in memory."""
    return after_entry(name, change, payload="cet", when=when)


def before_entry(name: str, change: Callable[[Shared], object], payload: str = "cet") -> Interposer:
    """Before each run from an entry point of a payload, change something; its vCPU is ``Shared.vcpu``."""
    shared = Shared(payload)

    def interposer(call: Call, proceed: Proceed) -> int:
        shared.watch(call)
        if called(call) == RUN and shared.entry == shared.payload.symbol(name):
            change(shared)
        return proceed()

    return interposer


def set_in_guest(index: int, value: int) -> Callable[[Shared], None]:
    return lambda guest: set_msr_now(guest.vcpu, index, value)


def host_reads(index: int, value: Callable[[int], int]) -> Interposer:
    """Let the host read another value of an MSR."""
    return after(GET, change_msr(index, value))


def msr_readable(index: int, value: int) -> Interposer:
    """Let the host read one MSR, with this value, whether KVM has it or not."""

    def change(call: Call) -> bool:
        change_msr(index, lambda old: value)(call)
        return True

    return answer(GET, 1, lambda call: of_msr(index)(call) and change(call))


def after_init(lie: Interposer) -> Interposer:
    """A lie that begins with the INIT signal, which KVM_SIGNAL_MSI sends."""
    return once("KVM_SIGNAL_MSI", lie)


def of_ssp(call: Call) -> bool:
    """Met by a call about SSP."""
    return bool(call.argument.id == SSP_ID)


def one_reg_number(call: Call) -> Any:
    """What the address in a kvm_one_reg or a kvm_device_attr points at."""
    return ffi.cast("uint64_t *", call.argument.addr)


def ssp_reads(value: Callable[[int], int]) -> Interposer:
    """Let the host read another SSP."""

    def change(call: Call) -> None:
        one_reg_number(call)[0] = value(int(one_reg_number(call)[0]))

    return after(GET_REG, change, of_ssp)


def _ssp_now(fd: int, request: int, value: int) -> int:
    data = ffi.new("uint64_t *", value)
    register = ffi.new("struct kvm_one_reg *", {"id": SSP_ID, "addr": int(ffi.cast("uintptr_t", data))})
    lib.vmm_ioctl(fd, request, register)
    return int(data[0])


def get_ssp_now(fd: int) -> int:
    """Return SSP, read behind the clause's back."""
    return _ssp_now(fd, lib.KVM_GET_ONE_REG, 0)


def set_ssp_now(fd: int, value: int) -> None:
    """Set SSP behind the clause's back."""
    _ssp_now(fd, lib.KVM_SET_ONE_REG, value)


def batch_value(call: Call, index: int) -> int | None:
    """What a batch has for an MSR."""
    return dict(msr_values(call)).get(index)


def after_msr_entry(entry: str, change: Callable[[Shared], object], index: int = Msr.PAT) -> Interposer:
    """Lie about what RDMSR or WRMSR of one MSR in the hello payload left."""
    return after_entry(entry, change, when=given(index))


def _left_for_msr(call: Call) -> bool:
    """Met by a run whose last exit is about an MSR."""
    return call.argument.run.exit_reason in (lib.KVM_EXIT_X86_RDMSR, lib.KVM_EXIT_X86_WRMSR)


def at_msr_exit(change: Change) -> Interposer:
    """Spoil what an exit says of the MSR that the guest asks the VMM for."""
    return after(RUN, lambda call: change(call) if _left_for_msr(call) else None)


def before_msr_answer(change: Change) -> Interposer:
    """Spoil what the VMM answers."""
    return before(RUN, change, _left_for_msr)


def guest_faulted(shared: Shared) -> None:
    shared.set("values", 1, 15)


def guest_did_not_fault(shared: Shared) -> None:
    shared.set("values", 0, 15)


def timed(entry: str, factor: float, *kinds: MemoryType) -> Interposer:
    """Loads or stores of some types take ``factor`` times as long as they did."""
    pages = [page(kind) for kind in kinds]
    return after_entry(
        entry,
        lambda shared: shared.set("values", int(shared.get("values") * factor)),
        payload=MEMTYPE,
        when=lambda shared: shared.get("params") in pages,
    )


def tile_byte(tile: int, row: int = 0, byte: int = 0) -> int:
    """Return the offset of a byte of a tile in the XSAVE area."""
    return place(TILES, 1024 * tile + 64 * row + byte)


def lose(*where: int) -> Callable[[int], None]:
    """Really change one byte of a vCPU's area."""
    return flip_now(tile_byte(*where), 0x10)


def before_run(number: int, change: Callable[[int], object]) -> Interposer:
    """Spoil the vCPU's state before the ``number``-th run of the clause."""
    return before(RUN, lambda call: change(call.fd), nth(number))


def in_tile_guest(
    name: str, change: Callable[[Shared], object], when: Callable[[Shared], bool] | None = None
) -> Interposer:
    """After each run from an entry point of the amx payload, spoil what it left in memory."""
    return after_entry(name, change, payload="amx", when=when)


def guest_writes(payload: str, index: int, value: int, number: int, vector: int = GP) -> Interposer:
    """Let one WRMSR of a guest with this payload fault ``number`` times."""
    return after_entry("wrmsr", faults(number, vector), payload=payload, when=given(index, value))


def ptrace_shows(change: Callable[[bytearray], object]) -> Interposer:
    """PTRACE_GETREGSET shows something else.

    The request is made by a child and passes no door of ours, so the answer is changed where it arrives.
    """
    honest = traced._ask

    def spoilt(context: Context) -> bytes:
        area = bytearray(honest(context))
        change(area)
        return bytes(area)

    traced._ask = spoilt
    return lambda call, proceed: proceed()


def faults(count: int, vector: int = UD) -> Callable[[Shared], None]:
    """Let the guest have counted this many faults, of this vector."""

    def change(guest: Shared) -> None:
        guest.set("values", count, 15)
        guest.set("vector", vector)

    return change


def in_lists(entry: str, change: Callable[[int, Any], object], size: int = 8) -> Interposer:
    """After each run from an entry point of the lists payload, spoil its answers.

    ``change`` is given the first 8 bytes of an operand, of which each has ``size``, and a ``uint32_t[4]``.
    """

    def spoil(shared: Shared) -> None:
        for number in range(shared.get("params", 1)):
            operand = int(shared.at(LIST + size * number)[0])
            change(operand, ffi.cast("uint32_t *", shared.at(ANSWERS + 16 * number)))

    return after_entry(entry, spoil, payload="lists")


def not_restored(index: int) -> Interposer:
    """An MSR is lost in restoring what was saved."""
    return once(GET, before("KVM_SET_MSRS", change_msr(index, lambda value: 0)))


def during(name: str, on: Callable[[Call], bool], lie: Interposer) -> Interposer:
    """``lie`` holds from a call of ``name`` that meets ``on`` to the next one that does not."""
    active = False

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal active
        if call.name == name:
            active = on(call)
        # The lie has to watch all calls to know where memory lies: it is told of what it may not change.
        return lie(call, proceed) if active or call.name != "KVM_RUN" else proceed()

    return interposer
