# SPDX-License-Identifier: Apache-2.0
"""A small arm64 guest: one VM, vCPUs at EL1, one payload, called entry point by entry point.

>>> with Guest(kvm, "hello") as guest:
...     guest.call("hvc", 0x84000000)
...     print(hex(guest.mailbox.values[0]))
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vmm._kvm import lib
from vmm.arm64 import boot
from vmm.arm64 import vcpu as vcpus
from vmm.arm64.registers import FPCR, FPSR, PC, PSTATE, SP, SYSTEM, core, x
from vmm.arm64.vcpu import Feature, read, write
from vmm.guest.base import (
    DIFFERENT,
    DONE,
    EXCEPTION,
    MEMORY_SIZE,
    NO_CAPABILITIES,
    BaseGuest,
    Capabilities,
    GuestError,
)
from vmm.guest.layout import Regions
from vmm.guest.payload import Payload, PayloadError
from vmm.kvm.exits import Exit, MmioWrite
from vmm.kvm.system import Kvm
from vmm.kvm.vcpu import Vcpu

__all__ = ["DIFFERENT", "DONE", "EXCEPTION", "MEMORY_SIZE", "Fault", "Guest", "GuestError"]

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
    def pc(self) -> int:
        """ELR_EL1."""
        return self.elr

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


class Guest(BaseGuest):
    """A payload in ``memory``, with vCPUs that are initialised and finalized. See BaseGuest for memory and vCPUs.

    ``features`` defaults to PSCI and, where KVM has it, SVE; ``lengths`` are the vector lengths, by default
    KVM's choice; ZCR_EL1 starts with the longest. No vCPU is powered off: all run from the start.
    """

    _EVENT, _TICK, _PACE = "EVENT_ADDRESS", "TICK_ADDRESS", "PACE_ADDRESS"
    _TABLES_END, _TABLE_PAGES, _HOLE = boot.TABLES_END, boot.OWN_PAGES, boot.HOLE

    def __init__(
        self,
        kvm: Kvm,
        payload: str | Payload = "hello",
        *,
        features: Iterable[Feature] | None = None,
        lengths: Iterable[int] | None = None,
        memory_size: int = MEMORY_SIZE,
        regions: Regions | None = None,
        vcpus: int = 1,
        capabilities: Capabilities = NO_CAPABILITIES,
    ) -> None:
        if features is None:
            sve = (Feature.SVE,) if kvm.check_extension(lib.KVM_CAP_ARM_SVE) else ()
            features = (Feature.PSCI_0_2, *sve)
        self._features = frozenset(features)
        self._lengths = lengths
        super().__init__(kvm, payload, memory_size, regions=regions, vcpus=vcpus, capabilities=capabilities)

    @property
    def features(self) -> frozenset[Feature]:
        """The features the vCPU was initialised with."""
        return vcpus.features(self.vcpu)

    def _set_up(self) -> None:
        for processor in self.processors:
            self._initialise(processor.vcpu)
        boot.write_tables(self.memory, self.memory_end)
        for own in self.own:
            boot.write_own_tables(self.memory, self.payload, own)

    def _initialise(self, vcpu: Vcpu) -> None:
        vcpus.init(vcpu, *self._features)
        if self._lengths is not None:
            vcpus.set_vls(vcpu, self._lengths)
        if Feature.SVE in self._features:
            vcpus.finalize(vcpu)
            write(vcpu, SYSTEM["ZCR_EL1"], boot.ZCR)

    def prepare_vcpu(self, index: int, entry: str | int, *parameters: int, privilege: int = 0) -> None:
        """Point one vCPU at an entry point with its parameters in its mailbox."""
        if privilege:
            raise PayloadError("arm64 payloads run at EL1 only: leave --privilege at 0")
        super().prepare_vcpu(index, entry, *parameters)

    def _enter(self, index: int, address: int, privilege: int) -> None:
        vcpu = self.processors[index].vcpu
        tables = self.own[index - 1].tables if index else boot.LEVEL_1
        boot.enter(vcpu, self.payload.symbol("vectors"), tables, self.memory_end)
        write(vcpu, PC, address)
        write(vcpu, _SP_EL1, self.payload.symbol("stack_top"))

    def _where(self) -> str:
        return f"PC {read(self.left.vcpu, PC):#x}"

    def event(self, exit: Exit) -> int | None:
        """Return the event number if ``exit`` is the payload's way out, else None."""
        return exit.value if isinstance(exit, MmioWrite) and exit.address == self._way_out else None

    def fault(self) -> Fault:
        """Return the exception that the mailbox of the vCPU that left describes."""
        return Fault(*(self.left.mailbox.read(name) for name in ("vector", "esr", "elr", "far", "spsr")))

    def _registers(self, vcpu: Vcpu) -> list[str]:
        """Return the general registers and some system registers."""
        named = [*(x(n) for n in range(31)), SP, _SP_EL1, PC, PSTATE, FPSR, FPCR]
        values = [f"{register.name:6} {read(vcpu, register):016x}" for register in named]
        lines = ["   ".join(values[start : start + 3]) for start in range(0, len(values), 3)]
        names = ["SCTLR_EL1", "CPACR_EL1", "ESR_EL1", "FAR_EL1"]
        names += ["ZCR_EL1"] if Feature.SVE in self.features else []
        system = " ".join(f"{name} {read(vcpu, SYSTEM[name]):#x}" for name in names)
        lengths = f" lengths {vcpus.get_vls(vcpu)}" if Feature.SVE in self.features else ""
        return [*lines, system + lengths]
