# SPDX-License-Identifier: Apache-2.0
"""Handles for lies about arm64: a vCPU's registers by id, and a guest's memory and code."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tests.mutations.lies import (
    RUN,
    Condition,
    Proceed,
    Shared,
    after,
    after_entry,
    answer,
    before,
    called,
    given,
    nth,
)
from vmm._kvm import ffi, lib
from vmm.arm64.registers import PC, SYSTEM, Register, v, z
from vmm.kvm.ioctl import Call, Interposer
from vmm.kvm.system import Kvm

__all__ = [
    "COUNTER",
    "EVENTS",
    "FINALIZE",
    "GET",
    "INIT",
    "LIST",
    "ONLY_1",
    "SET",
    "VBAR",
    "ZCR",
    "View",
    "at_bad_address",
    "before_entry",
    "behind",
    "change_list",
    "change_now",
    "executed",
    "flip",
    "forget",
    "get_now",
    "group",
    "guest_left",
    "has_sve",
    "leave_out",
    "list_without",
    "number",
    "of",
    "reading",
    "set_now",
    "spoiled_exit",
    "value",
    "values",
    "widest",
    "writing",
]

GET, SET, LIST = "KVM_GET_ONE_REG", "KVM_SET_ONE_REG", "KVM_GET_REG_LIST"
INIT, FINALIZE, EVENTS = "KVM_ARM_VCPU_INIT", "KVM_ARM_VCPU_FINALIZE", "KVM_GET_VCPU_EVENTS"
# Below this no address is a process's: what a clause passes on purpose.
_LOWEST = 0x1000

View = memoryview
Spoil = Callable[[View], object]


# --- the argument of KVM_GET_ONE_REG and KVM_SET_ONE_REG ------------------------------------------


def of(*registers: int) -> Condition:
    """Met by a call about one of these registers."""
    wanted = {int(register) for register in registers}
    return lambda call: int(call.argument.id) in wanted


def group(number: int) -> Condition:
    """Met by a call about a register of this group."""
    return lambda call: Register(call.argument.id).group == number


def at_bad_address(call: Call) -> bool:
    """Met by a call whose value is at a bad address."""
    return bool(call.argument.addr < _LOWEST)


def value(call: Call) -> View:
    """The caller's bytes of the register; none where the address is bad."""
    size = 0 if at_bad_address(call) else Register(call.argument.id).size
    return memoryview(ffi.buffer(ffi.cast("uint8_t *", call.argument.addr), size)).cast("B")


def flip(offset: int, bits: int = 1) -> Spoil:
    """Change some bits of one byte of a register's value."""

    def spoil(view: View) -> None:
        if view:
            view[offset] ^= bits

    return spoil


def number(new: int) -> Spoil:
    """Replace a register's value."""

    def spoil(view: View) -> None:
        view[:] = new.to_bytes(len(view), "little")

    return spoil


def reading(spoil: Spoil, *registers: int) -> Interposer:
    """What is read of these registers is spoiled."""
    return after(GET, lambda call: spoil(value(call)), of(*registers))


def writing(spoil: Spoil, *registers: int) -> Interposer:
    """What is written to these registers is spoiled on its way."""
    return before(SET, lambda call: spoil(value(call)), of(*registers))


def forget(*registers: int) -> Interposer:
    """Writing these registers succeeds and does nothing."""
    return answer(SET, 0, of(*registers))


def behind(length: int, *registers: int) -> Interposer:
    """Reading these registers writes one byte more than ``length``."""

    def change(call: Call) -> None:
        ffi.cast("uint8_t *", call.argument.addr)[length] ^= 1

    return after(GET, change, of(*registers))


def leave_out(offset: int, *registers: int) -> Interposer:
    """Reading these registers writes nothing from ``offset`` on."""

    def interposer(call: Call, proceed: Proceed) -> int:
        if called(call) != GET or not of(*registers)(call):
            return proceed()
        old = bytes(value(call)[offset:])
        result = proceed()
        value(call)[offset:] = old
        return result

    return interposer


@cache
def has_sve() -> bool:
    """Whether this KVM has SVE, asked behind the clause's back."""
    with Kvm() as kvm:
        return kvm.check_extension(lib.KVM_CAP_ARM_SVE) > 0


def widest(number: int) -> Register:
    """Z0 to Z31, or V0 to V31 where KVM has no SVE."""
    return z(number) if has_sve() else v(number)


# --- a vCPU behind the clause's back --------------------------------------------------------------


def _one_reg(fd: int, request: int, register: Register, data: Any) -> None:
    argument = ffi.new("struct kvm_one_reg *", {"id": int(register), "addr": int(ffi.cast("uintptr_t", data))})
    result = lib.vmm_ioctl(fd, request, argument)
    if result < 0:
        raise RuntimeError(f"the lie cannot reach {register}: errno {-result}")


def get_now(fd: int, register: Register) -> bytes:
    """Read a register of the vCPU."""
    data = ffi.new("uint8_t[]", register.size)
    _one_reg(fd, lib.KVM_GET_ONE_REG, register, data)
    return bytes(ffi.buffer(data))


def set_now(fd: int, register: Register, new: int) -> None:
    """Write a register of the vCPU."""
    _one_reg(fd, lib.KVM_SET_ONE_REG, register, ffi.new("uint8_t[]", new.to_bytes(register.size, "little")))


def change_now(register: Register, bits: int = 1) -> Callable[[int], None]:
    """A function that changes some bits of a register of the vCPU ``fd``."""
    return lambda fd: set_now(fd, register, int.from_bytes(get_now(fd, register), "little") ^ bits)


def change_list(change: Callable[[list[int]], list[int]]) -> Interposer:
    """KVM_GET_REG_LIST lists ``change(list)``, which must not be longer than the list."""

    def spoil(call: Call) -> None:
        found = call.argument
        new = change(list(found.reg[0 : found.n]))
        for index, identifier in enumerate(new):
            found.reg[index] = identifier
        found.n = len(new)

    return after(LIST, spoil)


# --- the guest ------------------------------------------------------------------------------------


class _Guest(Shared):
    """A guest whose entry point is what was last written to PC."""

    def watch(self, call: Call) -> None:
        """Learn from a call where memory lies and where the guest will start."""
        if call.name != "KVM_SET_USER_MEMORY_REGION" or call.argument.slot == 0:  # where payloads are
            super().watch(call)
        if call.name == SET and int(call.argument.id) == PC:
            self.entry, self.vcpu = int.from_bytes(value(call), "little"), call.fd


def guest_left(
    entry: str,
    change: Callable[[Shared], object],
    *,
    payload: str = "hello",
    when: Callable[[Shared], bool] | None = None,
) -> Interposer:
    """After each run from the entry point ``change`` spoils what the guest left in its memory."""
    return after_entry(entry, change, payload=payload, when=when, kind=_Guest)


def values(index: int, new: Callable[[int], int]) -> Callable[[Shared], None]:
    """A function that replaces one of the mailbox's values."""
    return lambda guest: guest.set("values", new(guest.get("values", index)), index)


def before_entry(entry: str, change: Callable[[Shared, int], object], *, payload: str = "sve") -> Interposer:
    """Before each run from the entry point ``change(guest, fd)`` spoils its memory or its vCPU."""
    shared = _Guest(payload)

    def interposer(call: Call, proceed: Proceed) -> int:
        shared.watch(call)
        if called(call) == RUN and shared.entry == shared.payload.symbol(entry):
            change(shared, call.fd)
            shared.entry = 0  # what follows goes on from an exit
        return proceed()

    return interposer


ONLY_1 = 1
COUNTER = SYSTEM["CNTVCT_EL0"]
VBAR = SYSTEM["VBAR_EL1"]
ZCR = SYSTEM["ZCR_EL1"]


def executed(instruction: int | None, change: Callable[[Shared], object], payload: str = "hello") -> Interposer:
    """Spoil what the guest left behind an instruction; None is any."""
    when = None if instruction is None else given(instruction)
    return guest_left("execute", change, payload=payload, when=when)


def list_without(register: Register, when: int | None = None) -> Interposer:
    """The list lacks a register, always or at one call."""
    calls = nth(when) if when else None

    def change(found: list[int]) -> list[int]:
        if calls is not None and not calls(None):  # type: ignore[arg-type]
            return found
        return [identifier for identifier in found if identifier != register]

    return change_list(change)


def spoiled_exit(change: Callable[[Call], object], turn: int = 1) -> Interposer:
    """Spoil kvm_run after a run."""
    return after(RUN, change, nth(turn))
