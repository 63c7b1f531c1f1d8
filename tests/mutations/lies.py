# SPDX-License-Identifier: Apache-2.0
"""What the lies are made of: interposers that change one answer, and handles on what the buffers hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, reduce
from typing import Any

from vmm._kvm import ffi, lib
from vmm.guest.payload import load
from vmm.kvm.ioctl import Call, Interposer
from vmm.kvm.system import Kvm
from vmm.x86 import cpuid
from vmm.x86.cpuid import Cpuid
from vmm.x86.xfeature import AVX512, XFeature, mask

__all__ = [
    "COMPLETE",
    "RUN",
    "Change",
    "Condition",
    "Proceed",
    "Shared",
    "accept",
    "after",
    "after_entry",
    "after_run",
    "always",
    "answer",
    "assign",
    "at_the_end",
    "before",
    "both",
    "called",
    "drift",
    "fewer_entries",
    "given",
    "honest",
    "kvm_table",
    "nth",
    "offered",
    "on_refusal",
    "once",
    "opposite",
    "refuse",
    "succeed_with",
    "toggle",
    "top_component",
]

Proceed = Callable[[], int]
Change = Callable[[Call], object]
Condition = Callable[[Call], bool]

# What called() says of the two ways into KVM_RUN: the shim's loop, and the one that completes an exit.
RUN, COMPLETE = "run", "complete"


def called(call: Call) -> str:
    """Return the call's name, with KVM_RUN split into RUN and COMPLETE."""
    if call.name != "KVM_RUN":
        return call.name
    return RUN if call.kind == "run" else COMPLETE


def always(call: Call) -> bool:
    """The condition that is met by every call."""
    return True


def honest(call: Call, proceed: Proceed) -> int:
    """The interposer of a mutation that lies elsewhere."""
    return proceed()


def nth(number: int) -> Condition:
    """Met by the ``number``-th call that is asked about (from 1) and by no other."""
    count = 0

    def condition(call: Call) -> bool:
        nonlocal count
        count += 1
        return count == number

    return condition


def after(name: str, change: Change, when: Condition = always) -> Interposer:
    """The kernel does what it is asked; ``change`` then spoils the answer if it was no refusal."""

    def interposer(call: Call, proceed: Proceed) -> int:
        matches = called(call) == name and when(call)
        result = proceed()
        if matches and result >= 0:
            change(call)
        return result

    return interposer


def before(name: str, change: Change, when: Condition = always) -> Interposer:
    """``change`` spoils what the kernel is given."""

    def interposer(call: Call, proceed: Proceed) -> int:
        if called(call) == name and when(call):
            change(call)
        return proceed()

    return interposer


def answer(name: str, result: int, when: Condition = always) -> Interposer:
    """The kernel does nothing and says ``result`` (0, a value, or -errno)."""

    def interposer(call: Call, proceed: Proceed) -> int:
        return result if called(call) == name and when(call) else proceed()

    return interposer


def refuse(name: str, errno: int, when: Condition = always) -> Interposer:
    """The kernel refuses what it has to do."""
    return answer(name, -errno, when)


def accept(name: str, when: Condition = always) -> Interposer:
    """The kernel says that it did what it refused."""

    def interposer(call: Call, proceed: Proceed) -> int:
        matches = called(call) == name and when(call)
        result = proceed()
        return max(result, 0) if matches else result

    return interposer


def succeed_with(name: str, value: Callable[[Call, int], int], when: Condition = always) -> Interposer:
    """The kernel succeeds with another value than its own: ``value(call, result)``."""

    def interposer(call: Call, proceed: Proceed) -> int:
        matches = called(call) == name and when(call)
        result = proceed()
        return value(call, result) if matches and result >= 0 else result

    return interposer


def drift(name: str, errno: int, when: Condition = always) -> Interposer:
    """A refusal comes with another errno."""

    def interposer(call: Call, proceed: Proceed) -> int:
        matches = called(call) == name and when(call)
        result = proceed()
        return -errno if matches and result < 0 else result

    return interposer


def on_refusal(name: str, change: Change) -> Interposer:
    """The call is refused, but not without an effect."""

    def interposer(call: Call, proceed: Proceed) -> int:
        result = proceed()
        if called(call) == name and result < 0:
            change(call)
        return result

    return interposer


def opposite(name: str, errno: int, when: Condition = always) -> Interposer:
    """A success becomes a refusal with ``errno``, and a refusal a success."""

    def interposer(call: Call, proceed: Proceed) -> int:
        matches = called(call) == name and when(call)
        result = proceed()
        if matches:
            return 0 if result < 0 else -errno
        return result

    return interposer


def both(*interposers: Interposer) -> Interposer:
    """All of them, the first one nearest to the kernel."""

    def combined(call: Call, proceed: Proceed) -> int:
        for one in interposers:
            proceed = _bound(one, call, proceed)
        return proceed()

    return combined


def _bound(interposer: Interposer, call: Call, proceed: Proceed) -> Proceed:
    return lambda: interposer(call, proceed)


def once(name: str, lie: Interposer, *, refused: bool = False, when: Condition = always) -> Interposer:
    """``lie`` begins behind the first call of ``name`` that succeeds, or with ``refused`` that fails."""
    begun = False

    def interposer(call: Call, proceed: Proceed) -> int:
        nonlocal begun
        if begun:
            return lie(call, proceed)
        matches = called(call) == name and when(call)
        result = proceed()
        begun = matches and (result < 0) == refused
        return result

    return interposer


def _field(call: Call, path: str) -> tuple[Any, str]:
    """What has the field of the argument that a path of names leads to, and the last of them."""
    *outer, last = path.split(".")
    return reduce(getattr, outer, call.argument), last


def toggle(field: str, bits: int) -> Change:
    """Change some bits of a field of the argument (a struct or, with an empty name, a number behind a pointer).

    Dots lead into the structures that a struct has.
    """

    def change(call: Call) -> None:
        if field:
            owner, name = _field(call, field)
            setattr(owner, name, getattr(owner, name) ^ bits)
        else:
            call.argument[0] ^= bits

    return change


def assign(field: str, value: object) -> Change:
    """Give a field of the argument a value; dots lead into the structures that it has."""
    return lambda call: setattr(*_field(call, field), value)


@cache
def kvm_table() -> Cpuid:
    """What this KVM supports, asked behind the clause's back."""
    with Kvm() as kvm:
        return cpuid.supported(kvm)


def offered() -> int:
    """The components without meaning to the CPU that KVM offers: x87, SSE, AVX, AVX-512."""
    return kvm_table().xcr0 & (mask(XFeature.FP, XFeature.SSE, XFeature.YMM) | AVX512)


def top_component() -> int:
    """The highest of the offered components: HI16_ZMM, YMM or SSE."""
    return offered().bit_length() - 1


class Shared:
    """The memory that the latest VM shares with this process, and a payload's mailbox in it."""

    def __init__(self, payload: str) -> None:
        self.payload = load(payload)
        self.entry = self.vcpu = 0
        self.user = False
        self._base = 0

    def watch(self, call: Call) -> None:
        """Learn from a call where memory lies, and where and at which privilege the guest will start."""
        if call.name == "KVM_SET_USER_MEMORY_REGION" and call.argument.memory_size:
            self._base = int(call.argument.userspace_addr - call.argument.guest_phys_addr)
        elif call.name == "KVM_SET_REGS":
            self.entry, self.vcpu = int(call.argument.rip), call.fd
        elif call.name == "KVM_SET_SREGS":
            self.user = call.argument.cs.dpl == 3

    def at(self, gpa: int) -> Any:
        """Return a ``uint64_t *`` to a guest physical address."""
        return ffi.cast("uint64_t *", self._base + gpa)

    def get(self, field: str, index: int = 0) -> int:
        """Return a field of the mailbox."""
        return int(self.at(self.payload.symbol("mailbox_" + field))[index])

    def set(self, field: str, value: int, index: int = 0) -> None:
        """Change a field of the mailbox."""
        self.at(self.payload.symbol("mailbox_" + field))[index] = value

    def byte(self, symbol: str, offset: int = 0) -> int:
        """Return a byte behind a symbol of the payload."""
        return int(ffi.cast("uint8_t *", self.at(self.payload.symbol(symbol) + offset))[0])

    def poke(self, symbol: str, offset: int = 0, bits: int = 1) -> None:
        """Change some bits of a byte behind a symbol of the payload."""
        ffi.cast("uint8_t *", self.at(self.payload.symbol(symbol) + offset))[0] ^= bits


def given(*parameters: int) -> Callable[[Shared], bool]:
    """Met by a guest whose first parameters are these."""
    return lambda guest: all(guest.get("params", at) == value for at, value in enumerate(parameters))


def after_entry(
    entry: str,
    change: Callable[[Shared], object],
    *,
    payload: str = "hello",
    when: Callable[[Shared], bool] | None = None,
    kind: type[Shared] = Shared,
) -> Interposer:
    """After each run from the entry point ``change`` spoils what the guest left in its memory.

    ``when`` sees the parameters, before the run.
    """
    shared = kind(payload)

    def interposer(call: Call, proceed: Proceed) -> int:
        shared.watch(call)
        ours = called(call) == RUN and shared.entry == shared.payload.symbol(entry)
        ours = ours and (when is None or when(shared))
        result = proceed()
        if ours and result >= 0:
            change(shared)
        return result

    return interposer


def at_the_end(payload: str, change: Callable[[Shared], object]) -> Interposer:
    """Whenever a guest has left for good ``change`` spoils what it left in its memory, wherever it had begun."""
    shared = Shared(payload)

    def interposer(call: Call, proceed: Proceed) -> int:
        shared.watch(call)
        result = proceed()
        if called(call) == RUN and result == lib.VMM_RUN_EXIT:
            change(shared)
        return result

    return interposer


def fewer_entries() -> Interposer:
    """The guest leaves less often than it ticks."""

    def change(call: Call) -> None:
        call.argument.entries -= 100

    return after(RUN, change)


def after_run(change: Callable[[int], object], ticks: int = 5) -> Interposer:
    """After so many of a run's ticks the vCPU is taken out, ``change(fd)`` spoils its state, and it runs on."""

    def interposer(call: Call, proceed: Proceed) -> int:
        if called(call) != RUN:
            return proceed()
        control = call.argument
        wanted, control.budget = control.budget, ticks
        result = proceed()
        control.budget = wanted
        if result != lib.VMM_RUN_BUDGET:
            return result
        change(call.fd)
        return proceed()

    return interposer
