# SPDX-License-Identifier: Apache-2.0
"""A small arm64 guest: one VM, one vCPU at EL1, one payload, called entry point by entry point.

>>> with Guest(kvm, "hello") as guest:
...     guest.call("hvc", 0x84000000)
...     print(hex(guest.mailbox.values[0]))
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

from vmm._kvm import lib
from vmm.arm64 import boot
from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import FPCR, FPSR, PC, PSTATE, SP, SYSTEM, core, x
from vmm.arm64.vcpu import Feature, read, write
from vmm.exits import Budget, Exit, MmioRead, MmioWrite
from vmm.machine import VirtualMachine
from vmm.memory import GuestMemory
from vmm.payload import PARAMETERS, Mailbox, Payload, PayloadError, load
from vmm.system import Kvm
from vmm.vcpu import DEFAULT_TIMEOUT, Vcpu

__all__ = ["DIFFERENT", "DONE", "EXCEPTION", "MEMORY_SIZE", "Fault", "Guest", "GuestError"]

# Events of guest_payloads/arm64/mailbox.h.
DONE, EXCEPTION, DIFFERENT = 1, 2, 3
MEMORY_SIZE = 4 << 20
# ESR_EL1.EC. Arm ARM, D23 "ESR_EL1".
_CLASSES = {
    0x00: "undefined instruction", 0x07: "SVE or FP trap", 0x0E: "illegal execution state", 0x15: "SVC", 0x16: "HVC",
    0x18: "trapped system register", 0x19: "SVE trap", 0x1D: "SME trap", 0x21: "instruction abort",
    0x22: "PC alignment", 0x25: "data abort", 0x26: "SP alignment", 0x2F: "SError", 0x3C: "BRK",
}  # fmt: skip
_SP_EL1 = core("SP_EL1")


@dataclass(frozen=True, slots=True)
class Fault:
    """An exception the guest's handler saw: entry of the vector table and ESR, ELR, FAR, SPSR of EL1."""

    vector: int
    esr: int
    elr: int
    far: int
    spsr: int

    @property
    def exception_class(self) -> int:
        """ESR_EL1.EC."""
        return self.esr >> 26 & 0x3F

    @property
    def name(self) -> str:
        """The exception class in words."""
        return _CLASSES.get(self.exception_class, f"exception class {self.exception_class:#x}")

    def __str__(self) -> str:
        return f"{self.name} (ESR_EL1 {self.esr:#x}) at {self.elr:#x}, FAR_EL1 {self.far:#x}, vector {self.vector}"


class GuestError(Exception):
    """The guest did not do what the entry point promises; ``exit`` is how it left."""

    def __init__(self, message: str, exit: Exit | Fault) -> None:
        super().__init__(message)
        self.exit = exit


class Guest:
    """One vCPU with a payload in ``memory``, initialised and finalized.

    ``features`` defaults to PSCI and, where KVM has it, SVE; ``lengths`` are the vector lengths, by default
    KVM's choice; ZCR_EL1 starts with the longest. Closing the guest closes all of it.
    """

    DONE = DONE

    def __init__(
        self,
        kvm: Kvm,
        payload: str | Payload = "hello",
        *,
        features: Iterable[Feature] | None = None,
        lengths: Iterable[int] | None = None,
    ) -> None:
        self.payload = payload if isinstance(payload, Payload) else load(payload)
        self.payload.check_range(boot.TABLES_END, MEMORY_SIZE)
        if features is None:
            sve = (Feature.SVE,) if kvm.check_extension(lib.KVM_CAP_ARM_SVE) else ()
            features = (Feature.PSCI_0_2, *sve)
        self.features = frozenset(features)
        with ExitStack() as stack:
            self.vm: VirtualMachine = stack.enter_context(kvm.create_vm())
            self.memory: GuestMemory = self.vm.add_memory(MEMORY_SIZE)
            self.vcpu: Vcpu = self.vm.create_vcpu()
            vcpus.init(self.vcpu, *self.features)
            if lengths is not None:
                vcpus.set_vls(self.vcpu, lengths)
            if Feature.SVE in self.features:
                vcpus.finalize(self.vcpu)
                write(self.vcpu, SYSTEM["ZCR_EL1"], boot.ZCR)
            boot.write_tables(self.memory)
            self.payload.write_to(self.memory)
            self.mailbox = Mailbox(self.memory, self.payload)
            self.vcpu.tick = self.payload.symbol("TICK_ADDRESS")
            self._event_address = self.payload.symbol("EVENT_ADDRESS")
            self._pending = False
            self._owned = stack.pop_all()

    def prepare(self, entry: str | int, *parameters: int, privilege: int = 0) -> None:
        """Point the vCPU at an entry point with its parameters in the mailbox; nothing runs yet."""
        if privilege:
            raise PayloadError("arm64 payloads run at EL1 alone: leave --privilege at 0")
        if len(parameters) > PARAMETERS:
            raise ValueError(f"a payload takes at most {PARAMETERS} parameters, not {len(parameters)}")
        self.complete()
        for index, value in enumerate(parameters):
            self.mailbox.write("params", value, index)
        boot.enter(self.vcpu, self.payload)
        write(self.vcpu, PC, entry if isinstance(entry, int) else self.payload.symbol(entry))
        write(self.vcpu, _SP_EL1, self.payload.symbol("stack_top"))

    def complete(self) -> None:
        """Finish a pending MMIO access, so that a new PC is not moved on behind the old instruction."""
        if self._pending:
            self.vcpu.complete()
            self._pending = False

    def resume(self, timeout: float = DEFAULT_TIMEOUT, ticks: int = 1 << 62) -> Exit:
        """Run on from where the guest is, to the next exit that is not a tick."""
        self._pending = False
        exit = self.vcpu.run(timeout, ticks)
        self._pending = isinstance(exit, MmioWrite | MmioRead | Budget)
        return exit

    def event(self, exit: Exit) -> int | None:
        """Return the event number if ``exit`` is the payload's way out, else None."""
        return exit.value if isinstance(exit, MmioWrite) and exit.address == self._event_address else None

    def call(self, entry: str | int, *parameters: int, privilege: int = 0, timeout: float = DEFAULT_TIMEOUT) -> int:
        """Run an entry point to its event and return that: DONE or DIFFERENT.

        Raises GuestError if the guest faults (``exit`` is the Fault), hangs or leaves in another way.
        """
        self.prepare(entry, *parameters, privilege=privilege)
        return self.finish(self.resume(timeout), f"{self.payload.name}.{entry}")

    def finish(self, exit: Exit, what: str = "the payload") -> int:
        """Turn the exit of a run into its event; GuestError if it is none."""
        event = self.event(exit)
        self.complete()
        if event in (DONE, DIFFERENT):
            return int(event)
        if event == EXCEPTION:
            fault = self.fault()
            raise GuestError(f"{what} took {fault}", fault)
        if isinstance(exit, Budget):
            raise GuestError(f"{what} is still ticking after {exit.ticks} ticks", exit)
        raise GuestError(f"{what} left with {exit} at PC {read(self.vcpu, PC):#x}", exit)

    def fault(self) -> Fault:
        """Return the exception that the mailbox describes."""
        return Fault(*(self.mailbox.read(name) for name in ("vector", "esr", "elr", "far", "spsr")))

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
        """Return the general registers and some system registers as lines for people."""
        named = [*(x(n) for n in range(31)), SP, _SP_EL1, PC, PSTATE, FPSR, FPCR]
        values = [f"{register.name:6} {read(self.vcpu, register):016x}" for register in named]
        lines = ["   ".join(values[start : start + 3]) for start in range(0, len(values), 3)]
        names = ["SCTLR_EL1", "CPACR_EL1", "ESR_EL1", "FAR_EL1"]
        names += ["ZCR_EL1"] if Feature.SVE in self.features else []
        system = " ".join(f"{name} {read(self.vcpu, SYSTEM[name]):#x}" for name in names)
        lengths = f" lengths {vcpus.get_vls(self.vcpu)}" if Feature.SVE in self.features else ""
        return [*lines, system + lengths]

    def close(self) -> None:
        """Close the VM with all it owns."""
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
