# SPDX-License-Identifier: Apache-2.0
"""A small x86 guest: one VM, one vCPU in long mode, one payload, called entry point by entry point.

>>> with Guest(kvm, "hello") as guest:
...     guest.call("cpuid", 0xD, 0)
...     print(guest.mailbox.values[:4])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from vmm._kvm import ffi
from vmm.exits import Budget, Exit, IoOut
from vmm.machine import VirtualMachine
from vmm.memory import GuestMemory
from vmm.payload import PARAMETERS, Mailbox, Payload, load
from vmm.system import Kvm
from vmm.vcpu import DEFAULT_TIMEOUT, Vcpu
from vmm.x86 import boot
from vmm.x86.cpuid import Cpuid, set_cpuid, supported
from vmm.x86.fields import Cr4, Xcr0
from vmm.x86.registers import get_regs, get_sregs, get_xcr0, set_regs

__all__ = ["DIFFERENT", "DONE", "EXCEPTION", "MEMORY_SIZE", "Fault", "Guest", "GuestError"]

# Events of guest_payloads/x86/mailbox.h.
DONE, EXCEPTION, DIFFERENT = 1, 2, 3
MEMORY_SIZE = 4 << 20
# Besides the TSS's bitmap: an emulated SVM CPU refuses the bitmap of a busy TSS, which VMRUN requires.
_IOPL3 = 3 << 12
_VECTORS = {
    0: "#DE", 1: "#DB", 3: "#BP", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP",
    14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM", 21: "#CP",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """An exception the guest's handler saw: vector, error code, and the registers pushed with it."""

    vector: int
    error: int
    rip: int
    cs: int
    rflags: int
    rsp: int
    cr2: int
    cr0: int

    @property
    def name(self) -> str:
        """The vector's mnemonic, such as #GP."""
        return _VECTORS.get(self.vector, f"vector {self.vector}")

    def __str__(self) -> str:
        return f"{self.name}({self.error:#x}) at {self.rip:#x}, CPL {self.cs & 3}, CR2 {self.cr2:#x}"


class GuestError(Exception):
    """The guest did not do what the entry point promises; ``exit`` is how it left."""

    def __init__(self, message: str, exit: Exit | Fault) -> None:
        super().__init__(message)
        self.exit = exit


class Guest:
    """One vCPU with a payload in ``memory``; ``cpuid`` defaults to all that KVM supports.

    ``cr4`` is added to the bits every payload needs. Closing the guest closes all of it.
    """

    DONE = DONE

    def __init__(
        self, kvm: Kvm, payload: str | Payload = "hello", *, cpuid: Cpuid | None = None, cr4: int = 0
    ) -> None:
        self.payload = payload if isinstance(payload, Payload) else load(payload)
        self.cpuid = supported(kvm) if cpuid is None else cpuid
        self.cr4 = cr4
        self.payload.check_range(boot.TABLES_END, MEMORY_SIZE)
        self.vm: VirtualMachine = kvm.create_vm()
        try:
            self.memory: GuestMemory = self.vm.add_memory(MEMORY_SIZE)
            self.vcpu: Vcpu = self.vm.create_vcpu()
            set_cpuid(self.vcpu, self.cpuid)
            boot.write_tables(self.memory, self.payload)
            self.payload.write_to(self.memory)
            self.mailbox = Mailbox(self.memory, self.payload)
            self.vcpu.tick = self.payload.symbol("TICK_PORT_NUMBER")
            self._event_port = self.payload.symbol("EVENT_PORT_NUMBER")
        except BaseException:
            self.vm.close()
            raise

    def prepare(self, entry: str | int, *parameters: int, privilege: int = 0, rflags: int = 2) -> None:
        """Point the vCPU at an entry point with its parameters in the mailbox; nothing runs yet."""
        if len(parameters) > PARAMETERS:
            raise ValueError(f"a payload takes at most {PARAMETERS} parameters, not {len(parameters)}")
        for index, value in enumerate(parameters):
            self.mailbox.write("params", value, index)
        boot.enter(self.vcpu, privilege=privilege, cr4=self.cr4)
        regs = get_regs(self.vcpu)
        regs.rip = entry if isinstance(entry, int) else self.payload.symbol(entry)
        regs.rsp = self.payload.symbol("user_stack_top" if privilege else "kernel_stack_top")
        regs.rflags = rflags | (_IOPL3 if privilege else 0)
        set_regs(self.vcpu, regs)

    def resume(self, timeout: float = DEFAULT_TIMEOUT, ticks: int = 1 << 62) -> Exit:
        """Run on from where the guest is, to the next exit that is not a tick."""
        return self.vcpu.run(timeout, ticks)

    def event(self, exit: Exit) -> int | None:
        """Return the event number if ``exit`` is the payload's way out, else None."""
        return exit.value if isinstance(exit, IoOut) and exit.port == self._event_port else None

    def call(self, entry: str | int, *parameters: int, privilege: int = 0, timeout: float = DEFAULT_TIMEOUT) -> int:
        """Run an entry point to its event and return that: DONE or DIFFERENT.

        Raises GuestError if the guest faults (``exit`` is the Fault), hangs or leaves in another way.
        """
        self.prepare(entry, *parameters, privilege=privilege)
        return self.finish(self.resume(timeout), f"{self.payload.name}.{entry}")

    def finish(self, exit: Exit, what: str = "the payload") -> int:
        """Turn the exit of a run into its event; GuestError if it is none."""
        event = self.event(exit)
        if event in (DONE, DIFFERENT):
            self.vcpu.complete()
            return int(event)
        if event == EXCEPTION:
            fault = self.fault()
            raise GuestError(f"{what} took {fault}", fault)
        if isinstance(exit, Budget):
            raise GuestError(f"{what} is still ticking after {exit.ticks} ticks", exit)
        raise GuestError(f"{what} left with {exit} at RIP {get_regs(self.vcpu).rip:#x}", exit)

    def fault(self) -> Fault:
        """Return the exception that the mailbox describes."""
        names = ("vector", "error", "rip", "cs", "rflags", "rsp", "cr2", "cr0")
        return Fault(*(self.mailbox.read(name) for name in names))

    def describe(self, event: int) -> str:
        """Say in words what an event means, with the values or the fault that came along."""
        if event == EXCEPTION:
            return f"exception: {self.fault()}"
        if event == DIFFERENT:
            where, count = self.mailbox.read("difference"), self.mailbox.read("differences")
            return f"different: {count} bytes, the first at offset {where} of the expected image"
        values = " ".join(f"{value:#x}" for value in self.mailbox.values if value)
        return f"done{': ' + values if values else ''}"

    def registers(self) -> list[str]:
        """Return the general registers, control registers and XCR0 as lines for people."""
        regs, sregs = get_regs(self.vcpu), get_sregs(self.vcpu)
        names = [name for name, _ in ffi.typeof("struct kvm_regs").fields]
        values = [f"{name:6} {getattr(regs, name):016x}" for name in names]
        lines = ["   ".join(values[start : start + 3]) for start in range(0, len(values), 3)]
        control = " ".join(f"{name} {getattr(sregs, name):#x}" for name in ("cr0", "cr2", "cr3", "efer"))
        lines.append(f"{control} cpl {sregs.cs.selector & 3}")
        return [*lines, f"cr4    {Cr4(sregs.cr4)}", f"xcr0   {Xcr0(get_xcr0(self.vcpu))}"]

    def close(self) -> None:
        """Close the VM with all it owns."""
        self.vm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
